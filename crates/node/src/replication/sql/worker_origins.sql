-- The replication origins of workers for the life of a node to which $1 belongs.
select roname from pg_catalog.pg_replication_origin where pg_catalog.starts_with(roname, $1 || '_w') order by roname
