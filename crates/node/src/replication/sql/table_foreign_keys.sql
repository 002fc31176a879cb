-- The foreign keys of a table and to it, as they were declared: on a table, or on what it is a partition of.
with tables as (
    select c.oid from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
    where n.nspname = $1 and c.relname = $2
), family as (
    select oid from tables
    union
    select a.relid::oid from tables, pg_catalog.pg_partition_ancestors(tables.oid) a (relid)
)
select pg_catalog.json_build_object(
        'name', f.conname,
        'child', (select pg_catalog.json_build_array(n.nspname, c.relname)
            from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace where c.oid = f.conrelid),
        'parent', (select pg_catalog.json_build_array(n.nspname, c.relname)
            from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace where c.oid = f.confrelid),
        'columns', (select pg_catalog.json_agg(pg_catalog.json_build_object(
                'child', a.attname, 'type', pg_catalog.format_type(a.atttypid, a.atttypmod), 'parent', p.attname)
                order by k.place)
            from unnest(f.conkey, f.confkey) with ordinality k (child, parent, place)
            join pg_catalog.pg_attribute a on a.attrelid = f.conrelid and a.attnum = k.child
            join pg_catalog.pg_attribute p on p.attrelid = f.confrelid and p.attnum = k.parent),
        'child_key', coalesce((select pg_catalog.json_agg(a.attname)
            from pg_catalog.pg_index i cross join unnest(i.indkey::int2[]) k (attnum)
            join pg_catalog.pg_attribute a on a.attrelid = i.indrelid and a.attnum = k.attnum
            where i.indrelid = f.conrelid and i.indisprimary), '[]'))::text,
    f.conrelid in (select oid from family) as is_child,
    f.confrelid in (select oid from family) as is_parent
from pg_catalog.pg_constraint f
where f.contype = 'f' and f.conparentid = 0
    and (f.conrelid in (select oid from family) or f.confrelid in (select oid from family))
    -- Those over periods compare by more than equality.
    and not exists (select from unnest(f.conpfeqop) o (oid) join pg_catalog.pg_operator using (oid) where oprname <> '=')
order by f.oid
