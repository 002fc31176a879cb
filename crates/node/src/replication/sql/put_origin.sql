-- Makes a replication origin unless it is there.
select pg_catalog.pg_replication_origin_create($1)
where not exists (select from pg_catalog.pg_replication_origin where roname = $1)
