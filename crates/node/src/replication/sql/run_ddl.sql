-- Repeats a statement as the role that ran it at its origin, inside a SECURITY DEFINER function of that role: there,
-- PostgreSQL refuses SET ROLE and SET SESSION AUTHORIZATION, so nothing in it can become the applier.
create or replace function synapsedb.run_ddl(as_role text, with_path text, statement text) returns void
language plpgsql as $run$
declare
    runner text := 'run_as_' || pg_catalog.pg_backend_pid();
begin
    perform pg_catalog.set_config('check_function_bodies', 'off', true);
    if not exists (select from pg_catalog.pg_roles where rolname = as_role) then
        raise warning 'role "%" is not on this node: its statement is run as the owner of the agent', as_role;
        perform pg_catalog.set_config('search_path', with_path, true);
        execute statement;
    else
        execute pg_catalog.format('create function synapsedb.%I(statement text) returns void language plpgsql
            security definer as ''begin execute statement; end''', runner);
        execute pg_catalog.format('alter function synapsedb.%I owner to %I', runner, as_role);
        perform pg_catalog.set_config('search_path', with_path, true);
        execute pg_catalog.format('select synapsedb.%I($1)', runner) using statement;
        perform pg_catalog.set_config('search_path', 'pg_catalog', true);
        execute pg_catalog.format('drop function synapsedb.%I', runner);
    end if;
    perform pg_catalog.set_config('search_path', 'pg_catalog', true);
end
$run$;
revoke all on function synapsedb.run_ddl(text, text, text) from public;
