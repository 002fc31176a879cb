-- Every function's schema and name, and whether a function of that name may do anything whenever it is called.
SELECT n.nspname::text, p.proname::text, bool_or(p.provolatile = 'v')
FROM pg_catalog.pg_proc p
JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
WHERE p.prokind <> 'p'
GROUP BY 1, 2
