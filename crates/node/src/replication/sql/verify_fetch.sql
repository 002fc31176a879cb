-- The rows of some keys, in their order: hash, version, values and commit time, or nothing.
select found.hash, found.version, found.texts, found.commit_time
from unnest({key_arrays}) with ordinality as k({key_names}, place)
left join lateral (
    select {hash}::text as hash, t.xmin::text as version, {value_texts} as texts,
        pg_catalog.pg_xact_commit_timestamp(t.xmin)::text as commit_time
    from only {table} t where ({keys}) = ({key_looked_up})
) found on true
order by k.place
