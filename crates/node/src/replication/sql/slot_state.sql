-- Where this node's slot stands, beside where its WAL ends.
select pg_catalog.pg_current_wal_lsn()::text,
    s.slot_name is not null,
    coalesce(s.confirmed_flush_lsn, '0/0'::pg_lsn)::text,
    coalesce(s.wal_status, '')
from (select) one left join pg_catalog.pg_replication_slots s on s.slot_name = $1
