-- The server has left the cluster: its DDL goes nowhere any more.
set session_replication_role = replica; set client_min_messages = warning;
drop event trigger if exists synapsedb_upkeep;
drop event trigger if exists synapsedb_capture;
drop event trigger if exists synapsedb_note_path;
drop event trigger if exists synapsedb_note_drop;
drop event trigger if exists synapsedb_note_rewrite;
drop event trigger if exists synapsedb_note_dropped_columns;
drop publication if exists synapsedb
