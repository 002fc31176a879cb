-- The changes of a table that wait in quarantine, as they came.
select origin::text, commit_lsn::text, pg_catalog.encode(relation, 'hex'), pg_catalog.encode(message, 'hex')
from synapsedb.quarantine
where schema_name = $1 and table_name = $2 and relation is not null and message is not null
