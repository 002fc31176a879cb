-- The rows at a place that a local write has taken. Of each, who wrote it: the transaction id, the number of its origin,
-- the node if there is no origin, the commit time in microseconds since 1970; its primary key; the name of the origin.
select t.xmin::text, v.roident::text, ({without_origin})::integer, (extract(epoch from v."timestamp") * 1000000)::bigint,
    array[{key}]::text[], o.roname
from {table} as t cross join lateral pg_catalog.pg_xact_commit_timestamp_origin(t.xmin) v
left join pg_catalog.pg_replication_origin o on o.roident = v.roident
where v."timestamp" is not null and {found}
