-- The replication origins of the cluster's nodes, by their local number.
select roident::text, roname from pg_catalog.pg_replication_origin where roname like 'synapsedb\_%'
