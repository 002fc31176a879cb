//! **Tries.** The three-node fixture, faults, load, benchmarks and the style checks; nothing but tests depends on it.
//!
//! A cluster test begins with [`binary`] and [`Binary::cluster`]: real agents and real PostgreSQL servers on ports
//! that are free, laid out in a directory of their own, ended when the [`Cluster`] is dropped or the process dies.
//! The methods of [`Cluster`] and [`Node`] panic with what was tried, where, and why it failed: they are the
//! assertions of a test. The `try_` methods return the error instead.

pub mod bench;
pub mod binary;
pub mod causality;
pub mod chaos;
pub mod client;
pub mod clock;
pub mod cluster;
pub mod digest;
pub mod disk;
pub mod eventually;
pub mod firewall;
pub mod load;
pub mod node;
pub mod ports;
pub mod postgres;
pub mod process;
pub mod reaper;
pub mod regress;
pub mod shared;
pub mod sim;
pub mod tidy;

pub use binary::{Binary, binary};
pub use cluster::Cluster;
pub use eventually::eventually;
pub use node::{HttpPort, Node};
pub use shared::Shared;
