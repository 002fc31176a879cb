-- The SCRAM verifier of the application's role.
select rolpassword from pg_catalog.pg_authid where rolname = 'synapsedb'
