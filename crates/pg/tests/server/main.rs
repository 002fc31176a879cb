//! Tests against a real PostgreSQL server, which they make, start and stop themselves.

#![allow(clippy::unwrap_used)]

mod replication;
mod scram;
mod session;
mod sql;
mod support;
mod traits;
