-- How many rows a range has, and the sum of their hashes.
select count(*), coalesce(sum({hash}), 0)::text from only {table} t where {range}
