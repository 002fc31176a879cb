-- Nothing is applied here any more.
select pg_catalog.pg_replication_origin_drop(roname) from pg_catalog.pg_replication_origin
where roname like 'synapsedb\_%'
