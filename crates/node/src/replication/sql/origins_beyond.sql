-- Sets back the replication origins of one life of a node ($1) that tell of more than $2.
select pg_catalog.pg_replication_origin_advance(s.external_id, $2::text::pg_lsn)
from pg_catalog.pg_replication_origin_status s
where (s.external_id = $1 or pg_catalog.starts_with(s.external_id, $1 || '_w')) and s.remote_lsn > $2::text::pg_lsn
