-- Per replication origin of ours: how far it has been applied, and whether that is on disk; with the end of the WAL.
select s.external_id, s.remote_lsn::text, coalesce(s.local_lsn <= pg_catalog.pg_current_wal_flush_lsn(), false),
    pg_catalog.pg_current_wal_lsn()::text
from (select) one
left join pg_catalog.pg_replication_origin_status s on s.external_id like 'synapsedb\_%'
