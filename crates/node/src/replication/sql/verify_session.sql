-- A session that compares: the same text of every value on every node, and no more load than one process.
set session_replication_role = origin; set synchronous_commit = local; set search_path = pg_catalog;
set datestyle = iso; set intervalstyle = postgres; set extra_float_digits = 3; set timezone = utc;
set bytea_output = hex; set lc_monetary = 'C'; set quote_all_identifiers = off; set row_security = off;
set jit = off; set max_parallel_workers_per_gather = 0; set client_min_messages = error;
set idle_session_timeout = '5min'
