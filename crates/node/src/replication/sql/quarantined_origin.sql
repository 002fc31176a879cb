-- Whose change it is that waits in quarantine.
select origin from synapsedb.quarantine where id = $1 and message is not null
