-- The keeper's session writes nothing that anybody would miss.
set synchronous_commit = off; set search_path = pg_catalog; set statement_timeout = '10s'
