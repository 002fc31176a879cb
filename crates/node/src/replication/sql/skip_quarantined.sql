-- Deletes a change from the quarantine and answers what it was, as JSON.
with given_up as (delete from synapsedb.quarantine where id = $1 returning *)
select pg_catalog.to_json(q)::text
from (
    select id, at, origin, incarnation, commit_lsn, commit_time, position, schema_name, table_name, kind,
        old_row, new_row, statement, reason, sqlstate, attempts
    from given_up
) q
