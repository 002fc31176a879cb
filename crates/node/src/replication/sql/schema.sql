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

-- What settles concurrent writes on a table, where it is not last_write_wins. Replicated like a user's table.
create table if not exists synapsedb.policy (
    schema_name text not null,
    table_name text not null,
    policy text not null,
    primary key (schema_name, table_name)
);
grant select on synapsedb.policy to public;
-- A change tells what it was before.
do $identity$
begin
    if (select relreplident from pg_catalog.pg_class where oid = 'synapsedb.policy'::pg_catalog.regclass) <> 'f' then
        alter table synapsedb.policy replica identity full;
    end if;
end
$identity$;

-- What was settled between concurrent writes on this node: both rows, both writers. Not replicated.
create table if not exists synapsedb.conflict (
    id bigint generated always as identity primary key,
    at timestamptz not null default clock_timestamp(),
    schema_name text,
    table_name text,
    type text,
    resolution text,
    policy text,
    key jsonb,
    local_row jsonb,
    remote_row jsonb,
    local_node integer,
    local_lsn pg_lsn,
    local_time timestamptz,
    remote_node integer,
    remote_lsn pg_lsn,
    remote_time timestamptz,
    remote_vector jsonb,
    detail text
);
create index if not exists conflict_at on synapsedb.conflict (at);

-- Rows and statements of other nodes that could not be applied here. Not replicated.
create table if not exists synapsedb.quarantine (
    id bigint generated always as identity primary key,
    at timestamptz not null default clock_timestamp(),
    origin integer not null,
    incarnation bigint not null,
    commit_lsn pg_lsn not null,
    commit_time timestamptz not null,
    position integer not null,
    schema_name text,
    table_name text,
    kind text not null,
    old_row jsonb,
    new_row jsonb,
    statement text,
    relation bytea,
    message bytea,
    reason text not null,
    sqlstate text,
    attempts integer not null default 1
);

-- An object of texts as an object of the table's types, for people; as it is where that cannot be.
create or replace function synapsedb.typed(schema_name text, table_name text, content text) returns jsonb
language plpgsql set search_path = pg_catalog as $typed$
declare
    result jsonb;
begin
    execute format('select jsonb_object_agg(e.key, e.value) from jsonb_each(to_jsonb(
        jsonb_populate_record(null::%I.%I, $1))) e where $1 ? e.key', schema_name, table_name)
        into result using content::jsonb;
    return result;
exception when others then
    return content::jsonb;
end
$typed$;

-- Ends the transaction of an applier whose statement did not meet the row that it expects.
create or replace function synapsedb.unmet() returns void language plpgsql set search_path = pg_catalog as $unmet$
begin
    raise exception 'the row is not as its writer saw it' using errcode = 'SY001';
end
$unmet$;
revoke all on function synapsedb.unmet() from public;

-- The owner of the database may look at what was settled and at what is kept back.
do $grant$
begin
    execute (select pg_catalog.format('grant select on synapsedb.conflict, synapsedb.quarantine to %I',
        pg_catalog.pg_get_userbyid(datdba)) from pg_catalog.pg_database where datname = pg_catalog.current_database());
end
$grant$;
