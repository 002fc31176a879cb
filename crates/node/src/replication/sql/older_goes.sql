-- A row of another node gives way to a later local write that had been there before it; the log says so. A row without
-- an origin is local, unless it came with the copy of another node's server.
with gone as (
    delete from {table} as t
    where {found} and (
        select (v.roident <> 0 or {without_origin} <> {origin})
            and (extract(epoch from v."timestamp") * 1000000 < {time}
            or extract(epoch from v."timestamp") * 1000000 = {time}
                and (v.roident in ({lower}) or v.roident = 0 and {without_origin} < {origin}))
        from pg_catalog.pg_xact_commit_timestamp_origin(t.xmin) v)
    returning t.xmin as writer, pg_catalog.to_jsonb(t) as content
)
insert into synapsedb.conflict (schema_name, table_name, type, resolution, policy, remote_row, local_node, local_lsn,
    local_time, remote_node, remote_lsn, remote_time, remote_vector, detail)
select {schema_name}, {table_name}, 'late', 'keep_local', 'last_write_wins', content, {origin}, {lsn}::pg_lsn,
    pg_catalog.to_timestamp({time} / 1000000.0), 0, '0/0', pg_catalog.clock_timestamp(), '{}'::jsonb,
    'a row arrived after a later local write had deleted it or taken its unique value'
from gone
returning id
