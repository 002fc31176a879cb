-- A change in quarantine was tried again in vain.
update synapsedb.quarantine set attempts = attempts + 1, reason = $2 where id = $1::bigint
