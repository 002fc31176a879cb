-- The sequences whose values may come again.
select sequence::pg_catalog.regclass::text from pg_temp.seed_short order by 1
