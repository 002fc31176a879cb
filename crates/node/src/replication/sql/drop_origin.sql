-- Drops the replication origins of a life that has ended ($1 and those of its workers), unless they are what tells how far
-- its node has been applied: those of the present life ($2, empty where there is none) have not come as far.
select pg_catalog.pg_replication_origin_drop(o.roname)
from pg_catalog.pg_replication_origin o
cross join (
    select pg_catalog.max(s.remote_lsn) filter (where s.external_id = $1 or pg_catalog.starts_with(s.external_id, $1 || '_w')),
        pg_catalog.max(s.remote_lsn) filter (where s.external_id = $2 or pg_catalog.starts_with(s.external_id, $2 || '_w'))
    from pg_catalog.pg_replication_origin_status s
) furthest (ended, now)
where (o.roname = $1 or pg_catalog.starts_with(o.roname, $1 || '_w'))
    and ($2 = '' or furthest.ended is null or furthest.ended <= furthest.now)
