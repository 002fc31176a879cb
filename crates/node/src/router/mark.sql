-- The marker of a transaction that has written: by it a lost COMMIT is told from one that did not take effect.
select pg_catalog.pg_logical_emit_message(true, 'synapsedb.outcome',
    $1 operator(pg_catalog.||) pg_catalog.current_setting('synchronous_commit'))
where pg_catalog.pg_current_xact_id_if_assigned() is not null
