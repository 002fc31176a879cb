select case source when 'client' then 'client' else 'session' end as kind, name, setting
from pg_catalog.pg_settings
where source in ('client', 'session')
    and name not in ('transaction_isolation', 'transaction_read_only', 'transaction_deferrable')
union all
select 'session', 'role', pg_catalog.current_setting('role')
where pg_catalog.current_setting('role') <> 'none'
union all
select 'user', null, session_user::text
union all
select 'pin', null, 'temporary tables'
where exists (
    select
    from pg_catalog.pg_class
    where relnamespace = pg_catalog.pg_my_temp_schema()
)
union all
select 'pin', null, 'advisory locks'
where exists (
    select
    from pg_catalog.pg_locks
    where locktype = 'advisory' and pid = pg_catalog.pg_backend_pid()
)
union all
select 'pin', null, 'cursors WITH HOLD'
where exists (select from pg_catalog.pg_cursors where is_holdable)
union all
select 'channel', channel, ''
from pg_catalog.pg_listening_channels() as channel
union all
select 'pin', null, 'prepared statements by PREPARE'
where exists (select from pg_catalog.pg_prepared_statements where from_sql)
