-- Drops the procedures that a former lane of the same origin made.
do $drop$
declare
    old regprocedure;
begin
    for old in
        select p.oid from pg_catalog.pg_proc p join pg_catalog.pg_namespace n on n.oid = p.pronamespace
        where n.nspname = 'synapsedb' and pg_catalog.starts_with(p.proname, $1)
    loop
        execute pg_catalog.format('drop procedure %s', old);
    end loop;
end
$drop$;
