-- What the server's commits wait for: whose reports, and the level of sessions that choose none.
select pg_catalog.current_setting('synchronous_standby_names'),
    coalesce((select setting from pg_catalog.pg_file_settings where name = 'synchronous_commit' and applied), 'on')
