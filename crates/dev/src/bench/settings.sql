-- The settings on which speed depends, as lines of a configuration.
select format('%s = %L', name, current_setting(name))
from pg_settings
where name in (
    'shared_buffers', 'max_connections', 'fsync', 'synchronous_commit', 'full_page_writes', 'wal_compression',
    'wal_sync_method', 'max_wal_size', 'min_wal_size', 'checkpoint_timeout', 'checkpoint_completion_target',
    'track_commit_timestamp', 'wal_buffers', 'wal_writer_delay', 'wal_writer_flush_after', 'logical_decoding_work_mem', 'jit', 'autovacuum'
)
order by name
