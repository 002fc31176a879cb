-- Whether a slot is there, and for whose reports commits wait.
select exists (select from pg_catalog.pg_replication_slots where slot_name = $1),
    pg_catalog.current_setting('synchronous_standby_names')
