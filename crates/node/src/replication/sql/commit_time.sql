-- When the transaction $1 committed here, in microseconds since 1970; nothing when it did not.
select (extract(epoch from pg_catalog.pg_xact_commit_timestamp($1::text::xid)) * 1000000)::bigint
