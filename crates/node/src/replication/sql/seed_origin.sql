-- The copied node is another node from now on, and everything of it through this commit is here.
select pg_catalog.pg_replication_origin_advance($1, $2::text::pg_lsn)
