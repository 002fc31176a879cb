-- This node's probe row: when it reaches another node, everything before it has.
insert into synapsedb.probe (node, boot, written_at) values ($1, $2::text::uuid, clock_timestamp())
on conflict on constraint probe_pkey do update set boot = excluded.boot, written_at = excluded.written_at
