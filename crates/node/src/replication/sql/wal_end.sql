-- Where this server's WAL ends.
select pg_catalog.pg_current_wal_lsn()::text
