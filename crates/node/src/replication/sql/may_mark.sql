-- Whether every role may write messages into the WAL, which is PostgreSQL's default.
select coalesce(pg_catalog.bool_and(pg_catalog.has_function_privilege('public', p.oid, 'execute')), false)
from pg_catalog.pg_proc as p
where p.proname = 'pg_logical_emit_message' and p.pronamespace = 'pg_catalog'::pg_catalog.regnamespace
