-- The newest conflicts settled on this node, as JSON: of a table, of a type, since an instant, of a number.
select pg_catalog.to_json(c)::text
from (
    select id, at, schema_name, table_name, type, resolution, policy, key, local_row, remote_row,
        local_node, local_lsn, local_time, remote_node, remote_lsn, remote_time, remote_vector, detail
    from synapsedb.conflict
    where ($1::text is null or table_name = $1 or schema_name || '.' || table_name = $1)
        and ($2::text is null or type = $2)
        and ($3::text is null or at >= $3::timestamptz)
        and ($4::bigint is null or id = $4)
    order by id desc
    limit $5
) c
