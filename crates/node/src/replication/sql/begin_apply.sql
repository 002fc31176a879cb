-- The chain guard and the origin of the transaction that follows: fails unless $1 is the last one applied.
select pg_catalog.pg_replication_origin_xact_setup($2::pg_lsn, $3::timestamptz), pg_catalog.pg_current_xact_id()
where 1 / (coalesce(pg_catalog.pg_replication_origin_session_progress(false), '0/0'::pg_lsn) = $1::pg_lsn)::int = 1
