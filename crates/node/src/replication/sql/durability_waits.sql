-- Who waits for other nodes, whether that holds up an applier, which transactions run, and for whose reports is waited.
with recursive waiting as materialized (
    select pid from pg_catalog.pg_stat_activity where wait_event = 'SyncRep'
), chain (pid) as (
    select b.pid from pg_catalog.pg_stat_activity a, unnest(pg_catalog.pg_blocking_pids(a.pid)) b (pid)
    where a.application_name like 'synapsedb apply %' and a.wait_event_type = 'Lock' and exists (select from waiting)
    union
    select b.pid from chain, unnest(pg_catalog.pg_blocking_pids(chain.pid)) b (pid)
)
select (select count(*) from waiting),
    exists (select from chain join waiting using (pid)),
    array(select backend_xid::text from pg_catalog.pg_stat_activity where backend_xid is not null),
    pg_catalog.current_setting('synchronous_standby_names')
