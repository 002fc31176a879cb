-- What was settled on this node, and what waits for a person: local tables, never replicated.
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
    local_node int,
    local_lsn pg_lsn,
    local_time timestamptz,
    remote_node int,
    remote_lsn pg_lsn,
    remote_time timestamptz,
    remote_vector jsonb,
    detail text
);

create table if not exists synapsedb.quarantine (
    id bigint generated always as identity primary key,
    at timestamptz not null default clock_timestamp(),
    origin int,
    incarnation bigint,
    commit_lsn pg_lsn,
    commit_time timestamptz,
    position int,
    schema_name text,
    table_name text,
    kind text,
    old_row jsonb,
    new_row jsonb,
    statement text,
    relation bytea,
    message bytea,
    reason text,
    sqlstate text,
    attempts int not null default 1
);
