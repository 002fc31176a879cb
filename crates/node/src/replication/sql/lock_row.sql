-- Keeps other lanes from deciding upon the same row until this transaction ends.
select pg_catalog.pg_advisory_xact_lock($1::bigint)
