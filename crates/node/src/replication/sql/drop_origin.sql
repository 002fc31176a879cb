-- Drops the replication origin ($1) of a life that has ended, unless it is what tells how far its node has been
-- applied: that of the present life ($2, empty where there is none) has not come as far.
select pg_catalog.pg_replication_origin_drop(o.roname)
from pg_catalog.pg_replication_origin o
left join pg_catalog.pg_replication_origin_status ended on ended.external_id = o.roname
left join pg_catalog.pg_replication_origin_status now on now.external_id = $2
where o.roname = $1 and ($2 = '' or ended.remote_lsn is null or ended.remote_lsn <= now.remote_lsn)
