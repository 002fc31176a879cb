-- For each transaction id of $1, in its order: whether a reader sees its rows now. An id has no epoch: it is taken to be
-- within half of all ids of the next one.
with now as (
    select pg_catalog.pg_current_snapshot() as snapshot
)
select pg_catalog.pg_visible_in_snapshot(
        (next.id + ((commits.xid - next.id + 2147483648) & 4294967295) - 2147483648)::text::xid8,
        now.snapshot)
from now
    cross join lateral (
        select pg_catalog.pg_snapshot_xmax(now.snapshot)::text::bigint as id
    ) next
    cross join pg_catalog.unnest($1::bigint[]) with ordinality commits (xid, place)
order by commits.place
