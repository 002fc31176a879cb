-- The rows of a range: key, hash, version.
select {key_texts}, {hash}::text, t.xmin::text from only {table} t where {range} order by {keys} limit $1
