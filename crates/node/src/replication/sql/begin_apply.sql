-- The chain guard: fails unless $1 is the last transaction that was applied. Makes the one that begins a writing one.
select pg_catalog.pg_current_xact_id()
where 1 / (coalesce(pg_catalog.pg_replication_origin_session_progress(false), '0/0'::pg_lsn) = $1::pg_lsn)::int = 1
