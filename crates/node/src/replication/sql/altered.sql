-- What ALTER TABLE has done here that peers may not have seen when they wrote: columns that are gone, and rewrites.
-- Every row of a rewritten table has the rewriting transaction as its xmin, though that wrote none of them: the
-- appliers look for the writer from before. Not replicated.

-- The xmin of an entry of a rewrite (without a column) is the xmin of the rows that it has stored.
create table if not exists synapsedb.altered (
    id bigint generated always as identity primary key,
    relation oid not null,
    dropped_column text
);

grant select on synapsedb.altered to public;

create or replace function synapsedb.note_rewrite() returns event_trigger
language plpgsql security definer set search_path = pg_catalog as $note$
begin
    insert into synapsedb.altered (relation)
        select oid from pg_class where oid = pg_event_trigger_table_rewrite_oid() and relpersistence = 'p';
end
$note$;

-- Only what all nodes drop: a user's statement, or a repeated one. What somebody drops on this node alone is missing.
create or replace function synapsedb.note_dropped_columns() returns event_trigger
language plpgsql security definer set search_path = pg_catalog as $note$
begin
    if current_setting('session_replication_role') = 'replica' and not pg_replication_origin_session_is_setup() then
        return;
    end if;
    insert into synapsedb.altered (relation, dropped_column)
        select objid, address_names[3] from pg_event_trigger_dropped_objects()
        where object_type = 'table column' and not is_temporary;
end
$note$;

-- The transactions that have rewritten a table or what inherits from it, as of now. Called when a statement is planned,
-- whose snapshot may be older than the lock for which it has waited: a volatile function takes its own.
create or replace function synapsedb.rewriters_now(relation oid) returns xid[]
language plpgsql volatile set search_path = pg_catalog as $now$
begin
    return (with recursive family (member) as (
            select rewriters_now.relation union select inhrelid from pg_inherits join family on inhparent = member)
        select coalesce(array_agg(r.xmin), '{}') from synapsedb.altered r
            where r.dropped_column is null and r.relation in (select member from family));
end
$now$;

-- The same, declared immutable so that it is computed when a statement on the table is planned, and costs nothing
-- afterwards: a rewrite, as every change of a table, makes PostgreSQL plan all statements on it anew.
create or replace function synapsedb.rewriters(relation oid) returns xid[]
language plpgsql immutable set search_path = pg_catalog as $rewriters$
begin
    return synapsedb.rewriters_now(rewriters.relation);
end
$rewriters$;

-- How many columns a table has ever had, as of now.
create or replace function synapsedb.columns_now(relation oid) returns integer
language sql volatile set search_path = pg_catalog
as 'select relnatts::integer from pg_class where oid = columns_now.relation';

-- True, or the end of the statement that was made for the table as it was: a column has come since then. It is computed
-- when the statement is planned, as above: so it is told before anybody else has heard of the change.
create or replace function synapsedb.shaped(relation oid, columns integer) returns boolean
language plpgsql immutable set search_path = pg_catalog as $shaped$
begin
    if synapsedb.columns_now(shaped.relation) <> shaped.columns then
        raise exception using errcode = 'SY001', message = 'the table has another column since the statement was made';
    end if;
    return true;
end
$shaped$;
revoke all on function synapsedb.rewriters_now(oid), synapsedb.rewriters(oid), synapsedb.columns_now(oid),
    synapsedb.shaped(oid, integer) from public;
