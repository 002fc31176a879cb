-- The session that looks for children without a parent: it waits for nobody, and what it writes is this node's own.
set synchronous_commit = local; set search_path = pg_catalog; set row_security = off; set timezone = utc;
set datestyle = iso; set intervalstyle = postgres; set extra_float_digits = 3; set client_min_messages = error;
set lock_timeout = '1s'; set statement_timeout = {limit_ms}
