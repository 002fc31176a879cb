-- The event triggers. Capture fires for users only; upkeep and the notes
-- of alterations also for DDL that is applied (session_replication_role = replica).
do $triggers$
begin
    if not exists (select from pg_event_trigger where evtname = 'synapsedb_capture') then
        create event trigger synapsedb_capture on ddl_command_end execute function synapsedb.capture_ddl();
    end if;
    if not exists (select from pg_event_trigger where evtname = 'synapsedb_note_path') then
        create event trigger synapsedb_note_path on ddl_command_start execute function synapsedb.note_path();
    end if;
    if not exists (select from pg_event_trigger where evtname = 'synapsedb_note_drop') then
        create event trigger synapsedb_note_drop on sql_drop execute function synapsedb.note_drop();
    end if;
    if not exists (select from pg_event_trigger where evtname = 'synapsedb_upkeep') then
        create event trigger synapsedb_upkeep on ddl_command_end execute function synapsedb.upkeep_ddl();
        alter event trigger synapsedb_upkeep enable always;
    end if;
    if not exists (select from pg_event_trigger where evtname = 'synapsedb_note_rewrite') then
        create event trigger synapsedb_note_rewrite on table_rewrite execute function synapsedb.note_rewrite();
        alter event trigger synapsedb_note_rewrite enable always;
    end if;
    if not exists (select from pg_event_trigger where evtname = 'synapsedb_note_dropped_columns') then
        create event trigger synapsedb_note_dropped_columns on sql_drop
            execute function synapsedb.note_dropped_columns();
        alter event trigger synapsedb_note_dropped_columns enable always;
    end if;
    if not exists (select from pg_publication where pubname = 'synapsedb') then
        create publication synapsedb for all tables;
    end if;
end
$triggers$;
