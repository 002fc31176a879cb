-- Writes to the log of conflicts which children have lost their parent, unless it says so already.
with found as (
    select pg_catalog.to_jsonb(c) as content, w.at as written_at, w.roident, k.node, k.lsn, k.at,
        pg_catalog.jsonb_build_object({parent_values}) as parent
    from {children}
    cross join lateral pg_catalog.pg_xact_commit_timestamp_origin(c.xmin) as w (at, roident)
    where pg_catalog.num_nulls({referring}) = 0 and not exists (select from {parent} as p where {matches})
    limit {limit}
), told as (
    select found.*, case roident when 0 then {here} else (
        select pg_catalog.split_part(o.roname, '_', 2)::integer from pg_catalog.pg_replication_origin o
        where o.roident = found.roident and o.roname like 'synapsedb\_%\_%') end as writer
    from found
)
insert into synapsedb.conflict (schema_name, table_name, type, resolution, policy, key, local_row, remote_row, local_node,
    local_time, remote_node, remote_lsn, remote_time, detail)
select {schema_name}, {table_name}, 'foreign_key', 'keep_child', 'foreign_key',
    (select pg_catalog.jsonb_object_agg(e.key, e.value) from pg_catalog.jsonb_each(content) e
        where e.key = any (array[{child_key}]::text[])),
    content, parent, writer, written_at, node, lsn::pg_lsn, at::timestamptz, {detail}
from told
where not exists (
    select from synapsedb.conflict known
    where known.type = 'foreign_key' and known.schema_name = {schema_name} and known.table_name = {table_name}
        and known.detail = {detail} and known.local_row = content
        and known.local_time is not distinct from written_at)
returning id
