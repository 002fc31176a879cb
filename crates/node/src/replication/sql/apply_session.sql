-- The applier's session: triggers and foreign keys stay silent, commits do not wait (the spool has them), names are explicit.
-- Rows are found by their keys. A plan is kept, and one that was made while the table was small would read the whole of it
-- for every batch once it is large.
set session_replication_role = replica; set synchronous_commit = off; set search_path = pg_catalog;
set datestyle = iso; set intervalstyle = postgres; set extra_float_digits = 3; set timezone = utc;
set statement_timeout = $row_timeout; set lock_timeout = $lock_timeout; set log_min_messages = fatal; set idle_in_transaction_session_timeout = 0; set row_security = off;
set jit = off; set plan_cache_mode = force_generic_plan; set client_min_messages = error;
set enable_seqscan = off; set enable_hashjoin = off; set enable_mergejoin = off
