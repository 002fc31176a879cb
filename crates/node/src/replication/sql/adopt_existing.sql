-- Tables and sequences that were there before the event triggers.
select count(synapsedb.identify_table(c.oid)) + (
    select count(synapsedb.align_sequence(s.oid))
    from pg_catalog.pg_class s join pg_catalog.pg_namespace n on n.oid = s.relnamespace
    where s.relkind = 'S' and s.relpersistence = 'p'
        and n.nspname not in ('synapsedb', 'pg_catalog', 'information_schema'))
from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
where c.relkind in ('r', 'p') and c.relpersistence = 'p' and c.relreplident = 'd'
    and n.nspname not in ('synapsedb', 'pg_catalog', 'information_schema')
    and not exists (select from pg_catalog.pg_index where indrelid = c.oid and indisprimary)
