-- What ALTER TABLE has done that may meet a write which had not seen it, or what it hides.
select id, xmin::text from synapsedb.altered order by id
