-- Whether there is a replication origin of a life of a node, its own ($1) or that of a worker.
select 1 from pg_catalog.pg_replication_origin where roname = $1 or pg_catalog.starts_with(roname, $1 || '_w') limit 1
