-- Who this server is in the cluster, for the event triggers.
insert into synapsedb.node (node, cluster_id, incarnation, sequence_stride) values ($1, $2::text::uuid, $3, $4)
on conflict on constraint node_pkey do update
set node = excluded.node, cluster_id = excluded.cluster_id, incarnation = excluded.incarnation
returning sequence_stride
