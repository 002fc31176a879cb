-- Writes down a settled conflict. Rows come as objects of texts and are kept as objects of the table's types.
insert into synapsedb.conflict (schema_name, table_name, type, resolution, policy, key, local_row, remote_row, local_node,
    local_lsn, local_time, remote_node, remote_lsn, remote_time, remote_vector, detail)
values ($1, $2, $3, $4, $5, synapsedb.typed($1, $2, $6), $7::jsonb, synapsedb.typed($1, $2, $8), $9::integer,
    nullif($10::pg_lsn, '0/0'), $11::timestamptz, $12::integer, $13::pg_lsn, $14::timestamptz, $15::jsonb, $16)
