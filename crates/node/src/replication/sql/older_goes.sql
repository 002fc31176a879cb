-- A row of another node gives way to a later local write that had been there before it; the log says so.
with gone as (
    delete from {table} as t where {found} and t.xmin::text = {writer}
    returning pg_catalog.to_jsonb(t) as content
)
insert into synapsedb.conflict (schema_name, table_name, type, resolution, policy, remote_row, local_node, local_lsn,
    local_time, remote_node, remote_lsn, remote_time, remote_vector, detail)
select {schema_name}, {table_name}, 'late', 'keep_local', 'last_write_wins', content, {origin}, {lsn}::pg_lsn,
    pg_catalog.to_timestamp({time} / 1000000.0), 0, '0/0', pg_catalog.clock_timestamp(), '{}'::jsonb,
    'a row arrived after a later local write had deleted it or taken its unique value'
from gone
returning id
