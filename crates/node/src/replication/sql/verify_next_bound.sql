-- The key of the n-th row of a range.
select {key_texts} from only {table} t where {range} order by {keys} offset $1 limit 1
