-- What settles concurrent writes on a table: set and shown by these functions, replicated like rows.
create or replace function synapsedb.set_policy(relation regclass, policy text) returns void
language plpgsql security definer set search_path = pg_catalog as $policy$
declare
    described record;
    wanted text := btrim(policy);
    full_rows boolean := wanted = 'merge_columns' or wanted like '%delta(%';
begin
    select n.nspname, c.relname, c.relowner, c.relkind, c.relreplident into strict described
        from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.oid = relation;
    if not pg_has_role(session_user, described.relowner, 'USAGE') then
        raise exception 'must be owner of table %', relation using errcode = 'insufficient_privilege';
    end if;
    if described.relkind <> 'r' then
        raise exception '% is not an ordinary table', relation
            using hint = 'Set the policy on each partition.', errcode = 'wrong_object_type';
    end if;
    if not exists (select from pg_index where indrelid = relation and indisprimary) then
        raise exception 'table % has no primary key: its rows cannot be told apart', relation
            using errcode = 'object_not_in_prerequisite_state';
    end if;
    if wanted !~ '^(last_write_wins(\s*,\s*delta\(.+\))?|first_write_wins|merge_columns|origin_wins\(\d+\)|function\(.+\))$' then
        raise exception '"%" is not a policy', policy using errcode = 'invalid_parameter_value',
            hint = 'last_write_wins, first_write_wins, origin_wins(NODE), merge_columns, function(SCHEMA.NAME) of two jsonb.';
    end if;
    if full_rows and described.relreplident <> 'f' then
        execute format('alter table %s replica identity full', relation);
    elsif not full_rows and described.relreplident = 'f' then
        execute format('alter table %s replica identity default', relation);
    end if;
    -- Also the default: so a table whose policy was taken back tells that it had one.
    insert into synapsedb.policy values (described.nspname, described.relname, wanted)
        on conflict on constraint policy_pkey do update set policy = excluded.policy;
end
$policy$;

-- The column adds up: every concurrent update counts.
create or replace function synapsedb.set_delta(relation regclass, column_name text) returns void
language plpgsql set search_path = pg_catalog as $delta$
declare
    known text;
    type_name regtype;
begin
    select atttypid into type_name from pg_attribute
        where attrelid = relation and attname = column_name and attnum > 0 and not attisdropped;
    if not found then
        raise exception 'table % has no column "%"', relation, column_name using errcode = 'undefined_column';
    end if;
    if type_name not in ('int2'::regtype, 'int4', 'int8', 'numeric', 'float4', 'float8', 'money') then
        raise exception 'column "%" is of type %, which does not add up', column_name, type_name
            using errcode = 'datatype_mismatch';
    end if;
    select p.policy into known from synapsedb.policy p join pg_class c on c.relname = p.table_name
        join pg_namespace n on n.oid = c.relnamespace and n.nspname = p.schema_name where c.oid = relation;
    if known is not null and known not like 'last_write_wins%' then
        raise exception 'table % has the policy %, delta columns go with last_write_wins only', relation, known
            using errcode = 'object_not_in_prerequisite_state';
    end if;
    perform synapsedb.set_policy(relation, case
        when known like '%delta(%' then regexp_replace(known, '\)$', format(', "%s")', replace(column_name, '"', '""')))
        else format('last_write_wins, delta("%s")', replace(column_name, '"', '""')) end);
end
$delta$;

-- Every table with what settles concurrent writes on it.
create or replace function synapsedb.policies() returns table (relation regclass, policy text)
language sql stable set search_path = pg_catalog as $policies$
    select c.oid::regclass, coalesce(p.policy, 'last_write_wins')
    from pg_class c join pg_namespace n on n.oid = c.relnamespace
    left join synapsedb.policy p on p.schema_name = n.nspname and p.table_name = c.relname
    where c.relkind = 'r' and c.relpersistence = 'p' and n.nspname not in ('synapsedb', 'pg_catalog', 'information_schema')
    order by 1
$policies$;

-- Runs a user's function that makes one row of two as the owner of the table, never as the agent: see run_ddl.
create or replace function synapsedb.run_merge(merge text, relation regclass, first jsonb, second jsonb) returns jsonb
language plpgsql set search_path = pg_catalog as $merge$
declare
    runner text := 'merge_as_' || pg_backend_pid();
    result jsonb;
begin
    execute format('create function synapsedb.%I(first jsonb, second jsonb) returns jsonb language plpgsql
        security definer as ''begin return %s(first, second); end''', runner, replace(merge, '''', ''));
    execute format('alter function synapsedb.%I owner to %I', runner,
        (select pg_get_userbyid(relowner) from pg_class where oid = relation));
    execute format('select synapsedb.%I($1, $2)', runner) into result using first, second;
    execute format('drop function synapsedb.%I', runner);
    return result;
end
$merge$;
revoke all on function synapsedb.run_merge(text, regclass, jsonb, jsonb) from public;
