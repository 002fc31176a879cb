-- How far this session's replication origin has been applied.
select coalesce(pg_catalog.pg_replication_origin_session_progress(false), '0/0'::pg_lsn)::text
