-- The internal schema: what the event triggers need to know of this node. Idempotent; runs at every start.
create schema if not exists synapsedb;

create table if not exists synapsedb.node (
    only_row boolean primary key default true check (only_row),
    node integer not null,
    cluster_id uuid not null,
    incarnation bigint not null,
    sequence_stride integer not null
);

-- The anchor and step that the user gave a sequence; on each node it steps by stride times as much.
create table if not exists synapsedb.sequence (
    sequence oid primary key,
    anchor bigint not null,
    increment bigint not null
);

-- Tables without a primary key whose replica identity was set to FULL here, to be set back when they get one.
create table if not exists synapsedb.keyless (
    relation oid primary key
);

-- A DDL statement passes through here on its way into the stream: inserted and deleted at once, always empty. A table
-- and not a logical message, since only this schema's functions can write it.
create table if not exists synapsedb.ddl (
    id bigint generated always as identity primary key,
    payload text not null
);

-- A copied server: rows without a replication origin that are older than the transaction are those of the node. See
-- the decision record on join.
create table if not exists synapsedb.inherited (
    before_xid xid8 primary key,
    node integer not null
);

-- One row per node, written by its agent: the only table of this schema that is replicated. Its age is the lag.
create table if not exists synapsedb.probe (
    node integer primary key,
    boot uuid not null,
    written_at timestamptz not null
);
alter table synapsedb.probe set (autovacuum_vacuum_threshold = 20, fillfactor = 50);

grant usage on schema synapsedb to public;
grant select on synapsedb.probe, synapsedb.node, synapsedb.inherited to public;

-- A role of the same name would find this schema first: by default, "$user" stands before public in search_path.
do $path$
begin
    if exists (select from pg_catalog.pg_roles where rolname = 'synapsedb') and not exists (
        select from pg_catalog.pg_db_role_setting s join pg_catalog.pg_roles r on r.oid = s.setrole
        where r.rolname = 'synapsedb' and pg_catalog.array_to_string(s.setconfig, ',') like '%search_path=%') then
        execute pg_catalog.format('alter role synapsedb in database %I set search_path = public',
            pg_catalog.current_database());
    end if;
end
$path$;
