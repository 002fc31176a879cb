//! A cluster of pure nodes, without servers, disks or clocks: its rules against every small history, and in a seeded
//! world that loses, delays and reorders messages, cuts the network, crashes nodes and sets clocks wrong.

mod chance;
#[cfg(test)]
mod exhaustive;
pub mod model;
pub mod node;
pub mod replica;
pub mod statement;
#[cfg(test)]
mod tests;
pub mod world;

pub use world::{Config, Report, run};
