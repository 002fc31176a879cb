-- Whether a change waits in quarantine that can be tried again.
select exists (select from synapsedb.quarantine where message is not null)
