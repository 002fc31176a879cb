-- Texts of values as the stream has them.
set datestyle = iso; set intervalstyle = postgres; set extra_float_digits = 3; set timezone = utc; set bytea_output = hex;
set search_path = pg_catalog; set statement_timeout = '10s'; set row_security = off
