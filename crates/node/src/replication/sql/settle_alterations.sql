-- Everybody has seen these, and what they hide.
delete from synapsedb.altered where id = any ($1)
