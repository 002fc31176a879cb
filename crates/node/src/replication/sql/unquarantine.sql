-- A change in quarantine has been applied.
delete from synapsedb.quarantine where id = $1::bigint
