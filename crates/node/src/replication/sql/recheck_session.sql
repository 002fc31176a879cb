-- The session that mends what a late decoded local write shows: nothing of it is replicated, and it waits for nobody.
set session_replication_role = replica; set synchronous_commit = local; set search_path = pg_catalog;
set statement_timeout = '10s'; set lock_timeout = '50ms'; set row_security = off;
set datestyle = iso; set intervalstyle = postgres; set timezone = utc; set client_min_messages = error;
do $origin$
begin
    if not exists (select from pg_catalog.pg_replication_origin where roname = 'synapsedb_recheck') then
        perform pg_catalog.pg_replication_origin_create('synapsedb_recheck');
    end if;
end
$origin$
