-- The rewrites whose rows may meet a write that had not seen what they hide.
select id, xmin::text from synapsedb.rewrite order by id
