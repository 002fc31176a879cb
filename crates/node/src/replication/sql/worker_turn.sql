-- The chain guard of a worker: fails unless $2 is the last transaction of the origin $1 that anybody has applied.
select 1 / (coalesce(pg_catalog.max(s.remote_lsn), '0/0'::pg_lsn) = $2::pg_lsn)::int
from pg_catalog.pg_replication_origin_status s
where s.external_id = $1 or pg_catalog.starts_with(s.external_id, $1 || '_w')
