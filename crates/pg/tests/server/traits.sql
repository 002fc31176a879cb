-- What of a session outlives a transaction, as one text per kind.
SELECT 'settings', concat_ws(',',
    (SELECT string_agg(name || '=' || setting, ',' ORDER BY name) FROM pg_settings),
    current_setting('a.b', true), current_user, session_user)
UNION ALL
SELECT 'held', concat_ws(',',
    (SELECT string_agg(name, ' ' ORDER BY name) FROM pg_prepared_statements WHERE from_sql),
    (SELECT string_agg(name, ' ' ORDER BY name) FROM pg_cursors WHERE is_holdable),
    (SELECT string_agg(c, ' ' ORDER BY c) FROM pg_listening_channels() c),
    (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()),
    (SELECT string_agg(relname, ' ' ORDER BY relname) FROM pg_class WHERE relnamespace = pg_my_temp_schema()),
    (SELECT string_agg(proname, ' ' ORDER BY proname) FROM pg_proc WHERE pronamespace = pg_my_temp_schema()))
