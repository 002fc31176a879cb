-- This server is another node from now on.
update synapsedb.node set node = $1, incarnation = $2 returning cluster_id::text
