-- A session that repairs: nothing that it writes is published, and no trigger fires.
select pg_catalog.pg_replication_origin_create('synapsedb_settle')
where not exists (select from pg_catalog.pg_replication_origin where roname = 'synapsedb_settle');
select pg_catalog.pg_replication_origin_session_setup('synapsedb_settle');
set session_replication_role = replica; set lock_timeout = '10s'
