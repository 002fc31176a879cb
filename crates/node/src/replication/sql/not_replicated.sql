-- What is on this node only: large objects, at most so many counted, and unlogged tables.
select (select count(*) from (select from pg_catalog.pg_largeobject_metadata limit $1) counted),
    (select count(*) from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
        where c.relpersistence = 'u' and c.relkind in ('r', 'p') and n.nspname <> 'synapsedb')
