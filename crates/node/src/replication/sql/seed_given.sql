-- What every sequence has given last here. One that was dropped may still be in the table, under a number given again.
select schema_name, name, last_value
from (
    select n.nspname::text as schema_name, c.relname::text as name,
        case when c.relkind = 'S' then pg_catalog.pg_sequence_last_value(c.oid) end as last_value
    from synapsedb.sequence s
    join pg_catalog.pg_class c on c.oid = s.sequence
    join pg_catalog.pg_namespace n on n.oid = c.relnamespace) given
where last_value is not null
