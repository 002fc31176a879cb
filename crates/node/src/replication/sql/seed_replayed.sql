-- Up to where the copied WAL was replayed when this server was started for the first time.
select pg_catalog.pg_last_wal_replay_lsn()::text
