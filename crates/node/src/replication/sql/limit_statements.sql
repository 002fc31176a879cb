-- How long a statement of this transaction may take from now on, in milliseconds; 0 for as long as it needs.
select pg_catalog.set_config('statement_timeout', $1, true)
