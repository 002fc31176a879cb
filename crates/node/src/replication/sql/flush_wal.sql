-- Takes everything that has been committed to the disk, and so to the decoding of the WAL: up to where that is.
with taken as (
    select pg_catalog.pg_logical_emit_message(true, 'synapsedb.flush', '') as lsn,
        pg_catalog.set_config('synchronous_commit', 'local', true)
)
select lsn::text from taken
