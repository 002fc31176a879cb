-- How far one replication origin has been applied, and whether that is on disk.
select s.remote_lsn::text, coalesce(s.local_lsn <= pg_catalog.pg_current_wal_flush_lsn(), false)
from pg_catalog.pg_replication_origin_status s
where s.external_id = $1
