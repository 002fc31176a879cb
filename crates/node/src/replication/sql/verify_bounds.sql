-- Every n-th key of a range.
select key
from (
    select {key_texts} as key, row_number() over (order by {keys}) as place from only {table} t where {range}
) numbered
where place % $1 = 0
order by place
