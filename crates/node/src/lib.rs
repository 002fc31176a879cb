//! **Does.** The SynapseDB agent: one process beside each PostgreSQL server, and the command line that runs it.
//!
//! A component is a folder with the same face: `mod.rs` (what it does, where it runs, its invariant; `Config`,
//! `Status`, `Handle`, `new`), `task.rs` (its loop), `api.rs` (its routes and their JSON). [`node`] wires them all on
//! one page, in the order in which they may know each other.

pub mod cli;
pub mod config;
pub mod failover;
pub mod gossip;
pub mod http;
pub mod layout;
mod members;
pub mod metrics;
pub mod node;
pub mod peers;
pub mod pid_file;
pub mod postgres;
pub mod process;
pub mod raft;
pub mod replication;
pub mod router;
mod seed;
pub mod supervisor;
pub mod tasks;
pub mod tls;
mod twin;
mod vote;
