-- Transactions that the copied server had prepared: it goes on with them, this one must not.
select 'rollback prepared ' || pg_catalog.quote_literal(gid) from pg_catalog.pg_prepared_xacts
where database = pg_catalog.current_database()
