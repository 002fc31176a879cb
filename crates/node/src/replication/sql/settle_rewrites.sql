-- Everybody has seen what these rewrites hide.
delete from synapsedb.rewrite where id = any ($1)
