-- The age of the newest probe row of every node that has arrived here.
select node, boot::text, (extract(epoch from clock_timestamp() - written_at) * 1000)::bigint as age_ms
from synapsedb.probe
