-- Notes a repaired row among the conflicts of this node.
insert into synapsedb.conflict
    (schema_name, table_name, type, resolution, policy, key, local_row, remote_row, local_time, remote_node,
    remote_time, detail)
values ($1, $2, 'repair', 'remote', 'repair', $3::text::jsonb, $4::text::jsonb, $5::text::jsonb,
    $6::text::timestamptz, $7, $8::text::timestamptz, $9)
