-- The application's logged tables, all or those of a name: columns in the order of their names, and the primary key.
select n.nspname::text, c.relname::text,
    coalesce((
        select pg_catalog.json_agg(pg_catalog.json_build_object(
            'name', a.attname, 'type', pg_catalog.format_type(a.atttypid, a.atttypmod)) order by a.attname collate "C")
        from pg_catalog.pg_attribute a
        where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped and a.attgenerated = ''), '[]')::text,
    coalesce((
        select pg_catalog.json_agg(pg_catalog.json_build_object(
            'name', a.attname, 'type', pg_catalog.format_type(a.atttypid, a.atttypmod)) order by k.place)
        from pg_catalog.pg_index i
        cross join unnest(i.indkey::smallint[]) with ordinality as k(attnum, place)
        join pg_catalog.pg_attribute a on a.attrelid = i.indrelid and a.attnum = k.attnum
        where i.indrelid = c.oid and i.indisprimary and k.place <= i.indnkeyatts), '[]')::text
from pg_catalog.pg_class c
join pg_catalog.pg_namespace n on n.oid = c.relnamespace
where c.relkind = 'r' and c.relpersistence = 'p'
    and n.nspname !~ '^pg_' and n.nspname not in ('information_schema', 'synapsedb')
    and not exists (
        select from pg_catalog.pg_depend d
        where d.classid = 'pg_catalog.pg_class'::regclass and d.objid = c.oid and d.deptype = 'e')
    and ($1::text is null or c.oid in (
        select tree.relid
        from pg_catalog.parse_ident($1) as p(parts)
        join pg_catalog.pg_class named on named.relname = p.parts[pg_catalog.cardinality(p.parts)]
            and named.relkind in ('r', 'p')
        join pg_catalog.pg_namespace named_in on named_in.oid = named.relnamespace
            and (pg_catalog.cardinality(p.parts) = 1 or named_in.nspname = p.parts[1])
        cross join lateral (
            select named.oid union select relid::oid from pg_catalog.pg_partition_tree(named.oid)) as tree(relid)))
order by 1, 2
