-- One step of a user's merge: two rows, as objects of the table's types, become one.
select synapsedb.run_merge($1, $2::text::regclass, synapsedb.typed($5, $6, $3), synapsedb.typed($5, $6, $4))::text
