-- Whether anybody waits for a lock that this session has.
select exists (
    select from pg_catalog.pg_locks l
    where not l.granted and pg_catalog.pg_backend_pid() = any (pg_catalog.pg_blocking_pids(l.pid)))::text
