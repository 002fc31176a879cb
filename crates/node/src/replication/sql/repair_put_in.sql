-- Inserts a row; answers what it is.
insert into {table} as t ({names}) overriding system value values ({values})
returning pg_catalog.to_jsonb(t)::text
