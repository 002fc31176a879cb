-- Whether the server has a session of this process id; one that has ended its transaction for good has left.
select 1 from pg_catalog.pg_stat_activity where pid = $1
