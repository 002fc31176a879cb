-- Notes the caller's search_path before the statement runs. It has no SET clause, so that it sees it.
create or replace function synapsedb.note_path() returns event_trigger language plpgsql as $path$
begin
    perform pg_catalog.set_config('synapsedb.caller_path', pg_catalog.current_setting('search_path'), false);
end
$path$;

-- Puts every DDL statement into the stream, in commit order with the rows. SECURITY INVOKER: it must see the caller's
-- role. The SET clause makes PostgreSQL write its name with the schema wherever it is named.
create or replace function synapsedb.capture_ddl() returns event_trigger
language plpgsql set search_path = pg_catalog as $capture$
declare
    stack text;
    nested text;
    sent text := pg_catalog.current_query();
    statement text;
    creates json;
    recorded boolean;
    counter text := 'synapsedb.n_' || pg_catalog.replace(pg_catalog.lower(tg_tag), ' ', '_');
    seen text;
    ordinal integer := 1;
    command record;
    local_only boolean := true;
    large_objects boolean := true;
    commands integer := 0;
begin
    get diagnostics stack = pg_context;
    if pg_catalog.strpos(stack, 'upkeep_ddl()') > 0 then
        return;
    end if;

    nested := pg_catalog.substr(stack, pg_catalog.strpos(stack || E'\n', E'\n') + 1);
    if nested = '' then
        -- The n-th command with this tag in what the client sent as one string.
        seen := pg_catalog.current_setting(counter, true);
        if pg_catalog.split_part(seen, '#', 1) = pg_catalog.statement_timestamp()::text then
            ordinal := pg_catalog.split_part(seen, '#', 2)::integer + 1;
        end if;
        perform pg_catalog.set_config(counter, pg_catalog.statement_timestamp()::text || '#' || ordinal, false);
    elsif nested like 'SQL statement "%' then
        sent := pg_catalog.substr(nested, 16, pg_catalog.strpos(nested, E'"\nPL/pgSQL function ') - 16);
    else
        sent := null;
    end if;

    for command in select * from pg_catalog.pg_event_trigger_ddl_commands() loop
        commands := commands + 1;
        large_objects := large_objects and pg_catalog.lower(command.object_type) = 'large object';
        local_only := local_only
            and coalesce(command.schema_name in ('pg_temp', 'synapsedb') or command.in_extension, false);
        if tg_tag in ('CREATE TABLE AS', 'SELECT INTO') and not local_only then
            -- Its rows are in the stream already: what must be repeated is the table, not the query.
            select pg_catalog.json_build_array(n.nspname, c.relname) into creates
                from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
                where c.oid = command.objid;
            select 'CREATE TABLE ' || command.object_identity || ' ('
                || coalesce(pg_catalog.string_agg(pg_catalog.quote_ident(attname) || ' '
                    || pg_catalog.format_type(atttypid, atttypmod)
                    || case when attcollation <> 0 and attcollation <> typcollation
                        then ' COLLATE ' || attcollation::pg_catalog.regcollation::text else '' end,
                    ', ' order by attnum), '') || ')'
                into statement
                from pg_catalog.pg_attribute join pg_catalog.pg_type t on t.oid = atttypid
                where attrelid = command.objid and attnum > 0 and not attisdropped;
        end if;
    end loop;
    if commands > 0 and local_only then
        return;
    end if;
    if commands > 0 and large_objects then
        raise notice 'large objects are not replicated: % took effect on this node only', tg_tag
            using hint = 'Keep large values in a column of type bytea.';
        return;
    end if;
    if tg_tag = 'REINDEX' then
        raise notice 'REINDEX is not replicated: it took effect on this node only';
        return;
    end if;
    if tg_tag like 'DROP %' and pg_catalog.current_setting('synapsedb.dropped_local', true)
        = pg_catalog.statement_timestamp()::text || tg_tag then
        return;
    end if;
    if tg_tag in ('CREATE PUBLICATION', 'ALTER PUBLICATION', 'DROP PUBLICATION',
            'CREATE SUBSCRIPTION', 'ALTER SUBSCRIPTION', 'DROP SUBSCRIPTION') then
        raise notice '% is not replicated: it took effect on this node only', tg_tag;
        return;
    end if;
    if sent is null then
        raise warning '% took effect on this node only', tg_tag
            using detail = 'It ran inside a function whose statements PostgreSQL does not show to event triggers.',
            hint = 'Run it on the other nodes too, or put it into a PL/pgSQL function or outside of functions.';
        return;
    end if;
    if tg_tag in ('CREATE INDEX', 'DROP INDEX', 'REFRESH MATERIALIZED VIEW', 'ALTER TABLE')
        and coalesce(statement, sent) ~* '\mconcurrently\M' then
        raise notice 'the other nodes repeat % without CONCURRENTLY: there, it holds its locks for as long as it takes', tg_tag;
    end if;
    -- An assignment and not PERFORM: then the caller's name stands alone in the second line of the callee's context.
    recorded := synapsedb.record_ddl(pg_catalog.json_build_object(
        'tag', tg_tag,
        'query', coalesce(statement, sent),
        'ordinal', case when statement is null and nested = '' then ordinal else 1 end,
        'whole', statement is not null or nested <> '',
        'creates', creates,
        'role', current_user,
        'search_path', pg_catalog.current_setting('synapsedb.caller_path'))::text);
end
$capture$;

-- Puts the payload into the stream. Refuses everybody but capture_ddl(), which tells the truth about role and
-- statement: PostgreSQL quotes a name such as "synapsedb.capture_ddl", and nobody else can create in this schema.
create or replace function synapsedb.record_ddl(payload text) returns boolean
language plpgsql security definer set search_path = pg_catalog as $record$
declare
    stack text;
    entry bigint;
begin
    get diagnostics stack = pg_context;
    if split_part(stack, E'\n', 2) not like 'PL/pgSQL function synapsedb.capture\_ddl() line %' then
        raise exception 'synapsedb.record_ddl() is called by the event trigger only';
    end if;
    insert into synapsedb.ddl (payload) values (record_ddl.payload) returning id into entry;
    delete from synapsedb.ddl where id = entry;
    return true;
end
$record$;

-- Remembers that a DROP met only temporary objects, or only this product's own: it stays local.
create or replace function synapsedb.note_drop() returns event_trigger language plpgsql as $note$
begin
    if (select pg_catalog.bool_and(is_temporary or schema_name = 'synapsedb')
        from pg_catalog.pg_event_trigger_dropped_objects() where original) then
        perform pg_catalog.set_config('synapsedb.dropped_local',
            pg_catalog.statement_timestamp()::text || tg_tag, true);
    end if;
end
$note$;
