-- Which transaction of the origin this is, as the last of it: from PostgreSQL 16 on, one that fails behind this counts as applied.
select pg_catalog.pg_replication_origin_xact_setup($1::pg_lsn, $2::timestamptz)
