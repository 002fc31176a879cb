-- Whether there is a replication origin of this name.
select 1 from pg_catalog.pg_replication_origin where roname = $1
