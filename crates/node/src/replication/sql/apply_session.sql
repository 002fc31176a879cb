-- The applier's session: triggers and foreign keys stay silent, commits do not wait (the spool has them), names are explicit.
set session_replication_role = replica; set synchronous_commit = off; set search_path = pg_catalog;
set datestyle = iso; set intervalstyle = postgres; set extra_float_digits = 3; set timezone = utc;
set statement_timeout = $row_timeout; set lock_timeout = $lock_timeout; set log_min_messages = fatal; set idle_in_transaction_session_timeout = 0; set row_security = off;
set jit = off; set plan_cache_mode = force_generic_plan; set client_min_messages = error
