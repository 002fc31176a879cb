-- The probe must not wait for other nodes, and nobody's settings may change it; so with the sequences.
set synchronous_commit = local; set search_path = pg_catalog; set statement_timeout = '10s'
