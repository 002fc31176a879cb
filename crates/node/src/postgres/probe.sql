SELECT current_setting('server_version_num')::int,
       pg_postmaster_start_time()::text,
       (SELECT system_identifier FROM pg_control_system())::text
