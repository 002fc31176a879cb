-- The number of rows of a table and the md5 over them in an order that no collation changes.
select count(*), md5(coalesce(string_agg(hash, '' order by hash), ''))
from (select md5(t::text) collate "C" as hash from only $table t) hashed
