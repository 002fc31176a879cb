-- The columns of a local table that are gone here, and of which a peer may still write.
select r.dropped_column
from synapsedb.altered r
join pg_catalog.pg_class c on c.oid = r.relation
join pg_catalog.pg_namespace n on n.oid = c.relnamespace
where n.nspname = $1 and c.relname = $2 and r.dropped_column is not null
