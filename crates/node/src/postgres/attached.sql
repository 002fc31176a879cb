SELECT current_setting('wal_level'),
       current_setting('track_commit_timestamp'),
       current_setting('max_replication_slots')::int,
       current_setting('max_wal_senders')::int,
       (SELECT rolsuper FROM pg_catalog.pg_roles WHERE rolname = current_user)
