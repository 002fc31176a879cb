-- The columns of a local table that were dropped here, and of which a peer may still write; with the transaction that
-- dropped each: its id, the number of its origin, its commit time in microseconds since 1970 (nothing for an open one), and
-- its node if it has no origin.
select r.dropped_column, r.xmin::text, v.roident::text, (extract(epoch from v."timestamp") * 1000000)::bigint::text,
    ({without_origin})::text
from synapsedb.altered r
join pg_catalog.pg_class c on c.oid = r.relation
join pg_catalog.pg_namespace n on n.oid = c.relnamespace
cross join lateral pg_catalog.pg_xact_commit_timestamp_origin(r.xmin) v
where n.nspname = $1 and c.relname = $2 and r.dropped_column is not null
