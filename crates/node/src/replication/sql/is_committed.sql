-- Whether one of the $4 transactions before $3 is the one of origin $1, by its lane or a worker (or of nobody: it came with a copy),
-- that committed at $2; whether some of them are so old that it cannot be before them; whether they are known at all.
select coalesce(bool_or(c."timestamp" = $2::text::timestamptz and (o.roident is not null or c.roident = 0)), false),
    coalesce(min(c."timestamp") filter (where c.roident = 0) < $2::text::timestamptz - interval '1 minute', false),
    count(c."timestamp") > 0
from pg_catalog.generate_series(greatest($3::bigint - $4::bigint, 3), $3::bigint - 1) x
cross join lateral pg_catalog.pg_xact_commit_timestamp_origin((x % 4294967296)::text::xid) c
left join pg_catalog.pg_replication_origin o
    on (o.roname = $1 or pg_catalog.starts_with(o.roname, $1 || '_w')) and o.roident = c.roident
where x % 4294967296 >= 3
