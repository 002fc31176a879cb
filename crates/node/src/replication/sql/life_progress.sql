-- How far one life of a node has been applied by anybody: its lane ($1 is its replication origin) or a worker of it, of
-- which one commits at a time. What has been applied is a prefix, so the furthest counts.
select coalesce(pg_catalog.max(s.remote_lsn), '0/0'::pg_lsn)::text
from pg_catalog.pg_replication_origin_status s
where s.external_id = $1 or pg_catalog.starts_with(s.external_id, $1 || '_w')
