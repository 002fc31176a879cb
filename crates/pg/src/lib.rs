//! **Speaks.** PostgreSQL's wire protocol (both sides), logical replication and SQL text.
//!
//! This crate knows PostgreSQL and nothing of a cluster: an origin is a name here. Two ways lead to a server:
//! [`client`] for control SQL (a `tokio_postgres` client) and [`conn`] for everything that must be fast (our own
//! framing, with pipelining left to the caller). [`replication`] reads a logical slot, [`pgoutput`] decodes what
//! it carries, [`wire`] has the messages of both directions, [`sql`] understands statements by PostgreSQL's own
//! parser, [`quote`] builds SQL from names and [`scram`] makes the verifiers of passwords.

pub mod client;
pub mod config;
pub mod conn;
pub mod error;
pub mod pgoutput;
pub mod quote;
pub mod replication;
pub mod scram;
pub mod sql;
mod transport;
pub mod wire;

pub use config::{Config, Host};
pub use error::{Error, ErrorKind, Result};
