-- The repaired row keeps the commit time of its writer. Where nobody knows it, every other writer is later.
select pg_catalog.pg_replication_origin_xact_setup('0/1'::pg_lsn, coalesce($1::text::timestamptz,
    case when $2 then '2000-01-02 00:00:00+00'::timestamptz else pg_catalog.clock_timestamp() end))
