-- Rows of copied servers: transactions without an origin older than the boundary are of that node. Oldest first.
select (before_xid::text::numeric % 4294967296)::text, node::text
from synapsedb.inherited
where pg_catalog.pg_snapshot_xmax(pg_catalog.pg_current_snapshot())::text::numeric - before_xid::text::numeric
    < 2147483648
order by before_xid
