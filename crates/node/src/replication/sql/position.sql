-- Behind which all that is committed here ends, and how far every origin has been applied: what readers saw is in it.
select pg_catalog.pg_current_wal_insert_lsn()::text, s.external_id, s.remote_lsn::text
from (select) one
left join pg_catalog.pg_replication_origin_status s on s.external_id like 'synapsedb\_%'
