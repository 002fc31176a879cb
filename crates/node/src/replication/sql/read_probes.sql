-- The age of the newest probe row of every node that has arrived here, and when it was committed there.
select node, boot::text, (extract(epoch from clock_timestamp() - written_at) * 1000)::bigint as age_ms,
    (extract(epoch from pg_catalog.pg_xact_commit_timestamp(xmin)) * 1000000)::bigint as commit_unix_us
from synapsedb.probe
