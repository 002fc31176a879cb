-- The rows of some keys, in their order: hash and version, or nothing.
select found.hash, found.version
from unnest({key_arrays}) with ordinality as k({key_names}, place)
left join lateral (
    select {hash}::text as hash, t.xmin::text as version from only {table} t where ({keys}) = ({key_looked_up})
) found on true
order by k.place
