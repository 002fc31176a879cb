-- A change in quarantine as it came.
select coalesce(pg_catalog.encode(relation, 'hex'), ''),
    pg_catalog.encode(message, 'hex'),
    commit_lsn::text,
    (extract(epoch from commit_time) * 1000000)::bigint::text
from synapsedb.quarantine
where id = $1::bigint and origin = $2::integer and message is not null
