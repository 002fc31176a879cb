-- The oldest changes in quarantine on this node, as JSON.
select pg_catalog.to_json(q)::text
from (
    select id, at, origin, incarnation, commit_lsn, commit_time, position, schema_name, table_name, kind,
        old_row, new_row, statement, reason, sqlstate, attempts
    from synapsedb.quarantine
    order by id
    limit $1
) q
