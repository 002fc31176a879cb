-- Whether a trigger may work, and fail, at the commit of an applier's transaction.
select exists (select from pg_catalog.pg_trigger where tgdeferrable and tgenabled in ('R', 'A'))::text
