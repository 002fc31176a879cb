-- Keeps a change that cannot be applied.
insert into synapsedb.quarantine (origin, incarnation, commit_lsn, commit_time, position, schema_name, table_name, kind,
    old_row, new_row, statement, reason, sqlstate, relation, message)
values ($1::integer, $2::bigint, $3::pg_lsn, $4::timestamptz, $5::integer, $6, $7, $8, $9::jsonb, $10::jsonb, $11, $12, $13,
    $14::bytea, $15::bytea)
