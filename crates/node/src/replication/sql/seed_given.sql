-- What every sequence has given last here.
select n.nspname::text, c.relname::text, pg_catalog.pg_sequence_last_value(s.sequence)
from synapsedb.sequence s
join pg_catalog.pg_class c on c.oid = s.sequence
join pg_catalog.pg_namespace n on n.oid = c.relnamespace
where pg_catalog.pg_sequence_last_value(s.sequence) is not null
