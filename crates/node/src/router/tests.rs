//! The router against real PostgreSQL servers.
