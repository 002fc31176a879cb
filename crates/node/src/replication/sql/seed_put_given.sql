-- Writes down what an earlier life gave ($2 schemas, $3 names, $4 values), if that is known ($1).
with known as (insert into pg_temp.seed_known values ($1))
insert into pg_temp.seed_given
select c.oid, g.last_value
from unnest($2::text[], $3::text[], $4::bigint[]) g (schema_name, name, last_value)
join pg_catalog.pg_namespace n on n.nspname = g.schema_name
join pg_catalog.pg_class c on c.relnamespace = n.oid and c.relname = g.name and c.relkind = 'S'
