-- How far the replication origins of one life of a node have been applied, its own ($1) and those of workers; and whether
-- that is on disk.
select s.remote_lsn::text, coalesce(s.local_lsn <= pg_catalog.pg_current_wal_flush_lsn(), false)
from pg_catalog.pg_replication_origin_status s
where s.external_id = $1 or pg_catalog.starts_with(s.external_id, $1 || '_w')
