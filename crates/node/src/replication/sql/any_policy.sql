-- Whether a table has, or had, a policy of its own.
select exists (select from synapsedb.policy where schema_name = $1 and table_name = $2)::text
