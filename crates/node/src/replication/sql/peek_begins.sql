-- The Begin messages of the slot's stream through a position, without consuming them.
select data
from pg_catalog.pg_logical_slot_peek_binary_changes($1::text::name, $2::text::pg_lsn, null,
    'proto_version', '1', 'publication_names', 'synapsedb')
where pg_catalog.get_byte(data, 0) = 66
