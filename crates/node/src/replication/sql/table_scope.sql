-- How far what is written to a table reaches, for transactions that are applied at the same time: 'rows' where a row and its
-- unique values are told apart by their texts, 'table' where they are not, 'everything' where more than the rows may be
-- read or written.
select case
    when c.relkind <> 'r' or c.relispartition
        or exists (select from pg_catalog.pg_inherits h where c.oid in (h.inhrelid, h.inhparent))
        or exists (select from pg_catalog.pg_trigger t where t.tgrelid = c.oid and t.tgenabled in ('R', 'A'))
        or exists (select from pg_catalog.pg_rewrite r
            where r.ev_class = c.oid and r.ev_type <> '1' and r.ev_enabled in ('R', 'A'))
        or exists (select from synapsedb.policy p where p.schema_name = n.nspname and p.table_name = c.relname)
        or not exists (select from pg_catalog.pg_index x where x.indrelid = c.oid and x.indisprimary)
        then 'everything'
    when exists (
        select from pg_catalog.pg_index x
        where x.indrelid = c.oid and (x.indisunique or x.indisexclusion) and (
            x.indisexclusion or x.indpred is not null or x.indexprs is not null
            or exists (
                select from unnest(x.indkey::int2[]) with ordinality k (attnum, place)
                join pg_catalog.pg_attribute a on a.attrelid = c.oid and a.attnum = k.attnum
                join pg_catalog.pg_type t on t.oid = a.atttypid
                where k.place <= x.indnkeyatts and t.typtype <> 'e' and a.atttypid <> all (array['int2', 'int4', 'int8',
                    'text', 'varchar', 'bpchar', 'uuid', 'bytea', 'bool', 'date', 'timestamp', 'timestamptz', 'numeric',
                    'oid', 'name', 'float4', 'float8']::regtype[]::oid[]))
            or exists (
                select from unnest(x.indcollation::oid[]) i (collation_oid)
                join pg_catalog.pg_collation l on l.oid = i.collation_oid and not l.collisdeterministic)
            or exists (
                select from unnest(x.indclass::oid[]) i (class_oid)
                join pg_catalog.pg_opclass o on o.oid = i.class_oid and not o.opcdefault)))
        then 'table'
    else 'rows' end
from pg_catalog.pg_class c
join pg_catalog.pg_namespace n on n.oid = c.relnamespace
where n.nspname = $1 and c.relname = $2
