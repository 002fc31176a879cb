-- Makes a transaction of DDL alone visible to the publisher, which then counts it as seen.
select pg_catalog.pg_logical_emit_message(true, 'synapsedb.applied', '')
