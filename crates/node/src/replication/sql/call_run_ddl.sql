-- One DDL statement of another node.
select synapsedb.run_ddl($1, $2, $3)
