-- The steps of the transactions of the writers $from to $to, which are of this node, with the microsecond of their
-- commit here.
select writer, seq, step, kind, key, other, code, tag, kept,
    (extract(epoch from pg_catalog.pg_xact_commit_timestamp(xmin)) * 1000000)::bigint
from hot_log where writer between $from and $to
order by writer, seq, step
