-- The unique indexes of a local table that are whole and of plain columns: what a row of it claims; and its policy.
select i.relname,
    x.indisprimary,
    x.indimmediate,
    x.indnullsnotdistinct,
    pg_catalog.json_agg(a.attname order by k.place)::text,
    (select p.policy from synapsedb.policy p where p.schema_name = n.nspname and p.table_name = c.relname)
from pg_catalog.pg_index x
join pg_catalog.pg_class c on c.oid = x.indrelid
join pg_catalog.pg_namespace n on n.oid = c.relnamespace
join pg_catalog.pg_class i on i.oid = x.indexrelid
cross join lateral unnest(x.indkey::int2[]) with ordinality k(attnum, place)
join pg_catalog.pg_attribute a on a.attrelid = c.oid and a.attnum = k.attnum
where n.nspname = $1 and c.relname = $2 and x.indisunique and x.indisvalid and x.indpred is null
    and x.indexprs is null and k.place <= x.indnkeyatts
group by n.nspname, c.relname, i.oid, i.relname, x.indisprimary, x.indimmediate, x.indnullsnotdistinct
order by i.oid
