-- What the applier must know of a local table: its columns, which of them are the primary key, and what those that were
-- added later are in the rows from before; and how many columns it has ever had.
select c.oid::text,
    a.attname,
    pg_catalog.format_type(a.atttypid, a.atttypmod),
    a.attidentity = 'a' as always_identity,
    a.attgenerated <> '' as generated,
    coalesce(a.attnum = any (k.indkey), false) as in_primary_key,
    case when a.atthasmissing then (a.attmissingval::text::text[])[1] end as missing,
    c.relnatts::text
from pg_catalog.pg_class c
join pg_catalog.pg_namespace n on n.oid = c.relnamespace
join pg_catalog.pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
left join pg_catalog.pg_index k on k.indrelid = c.oid and k.indisprimary
where n.nspname = $1 and c.relname = $2 and c.relkind in ('r', 'p', 'f')
order by a.attnum
