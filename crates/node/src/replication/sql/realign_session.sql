-- It must not wait for other nodes, nor for ever for a user who holds a sequence, and nobody's settings may change it.
set synchronous_commit = local; set search_path = pg_catalog; set statement_timeout = '10s'
