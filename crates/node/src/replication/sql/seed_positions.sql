-- What the copied server had applied of every node.
select external_id, remote_lsn::text from pg_catalog.pg_replication_origin_status where external_id like 'synapsedb\_%'
