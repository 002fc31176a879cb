//! **Decides.** Every rule of SynapseDB as plain functions and state machines.
//!
//! Nothing here does IO, reads a clock, awaits or draws randomness: time and chance are arguments, and the same
//! inputs give the same outputs in the same order on every node. Each module has one of four shapes:
//!
//! | shape | signature | modules |
//! |---|---|---|
//! | **step** | `(now, event) -> Vec<Effect>` | [`backoff`], [`durability`], [`schedule`] |
//! | **plan** | `(intent, reality) -> Vec<Action>`; applying the plan leads to an empty plan | [`sequence`] |
//! | **decide** | `(facts) -> Decision` | [`delivery`], [`conflict`], [`policy`] |
//! | | | [`failover`], [`guard`], [`outcome`], [`source`], [`verify`] |
//! | **apply** | `(Command) -> Outcome` | [`state`] |
//!
//! The rest are the words they share: [`ids`], [`lsn`], [`time`], [`version`], [`change`], and what is
//! remembered of recent writes, [`history`] and [`rewrite`], and what a transaction writes, [`writeset`].

pub mod backoff;
pub mod change;
pub mod conflict;
pub mod delivery;
pub mod durability;
pub mod failover;
pub mod group;
pub mod guard;
pub mod history;
pub mod ids;
pub mod lsn;
pub mod outcome;
pub mod policy;
pub mod rewrite;
pub mod schedule;
pub mod sequence;
pub mod source;
pub mod state;
pub mod time;
pub mod verify;
pub mod version;
pub mod writeset;
