//! A node with a clock of its own.

use std::sync::PoisonError;

use anyhow::Result;

use super::Node;
use crate::clock::{self, Clock};

impl Node {
    /// Whether this machine allows [`Node::own_clock`].
    ///
    /// # Errors
    /// What is missing, to be said by a test that is skipped for it.
    pub fn can_have_own_clock() -> Result<(), String> {
        clock::library().map(drop).map_err(|error| format!("{error:#}"))
    }

    /// Gives the node, before it is started, a clock of its own that is `ahead_ms` milliseconds ahead of the others'
    /// (or behind, if negative).
    ///
    /// # Panics
    /// When this machine does not allow it, see [`Node::can_have_own_clock`], or the node has been started.
    pub fn own_clock(&self, ahead_ms: i64) {
        assert!(self.agent_pid().is_none(), "node {} has been started", self.number);
        match Clock::make(&self.folder) {
            Ok(clock) => {
                self.configure("postgres.bin_dir", clock.programs().display().to_string());
                *self.clock.lock().unwrap_or_else(PoisonError::into_inner) = Some(clock);
            }
            Err(error) => panic!("node {} gets no clock of its own: {error:#}", self.number),
        }
        self.set_clock(ahead_ms);
    }

    /// Sets the clock of a node that has one of its own, at once, whether the node runs or not.
    ///
    /// # Panics
    /// When it has none, or the file cannot be written.
    pub fn set_clock(&self, ahead_ms: i64) {
        self.change_clock(|clock| clock.set(ahead_ms));
    }

    /// Lets the clock of a node that has one of its own stand still at a second since 1970, until it is set.
    ///
    /// # Panics
    /// When it has none, or the file cannot be written.
    pub fn stop_clock(&self, unix_s: u64) {
        self.change_clock(|clock| clock.stop_at(unix_s));
    }

    fn change_clock(&self, change: impl FnOnce(&Clock) -> Result<()>) {
        let clock = self.clock.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(clock) = clock.as_ref() else {
            panic!("node {} has no clock of its own", self.number)
        };
        if let Err(error) = change(clock) {
            panic!("the clock of node {} was not set: {error:#}", self.number);
        }
    }

    /// How far its clock is ahead, if it has one of its own.
    pub fn clock_ahead_ms(&self) -> Option<i64> {
        let clock = self.clock.lock().unwrap_or_else(PoisonError::into_inner);
        clock.as_ref().map(Clock::ahead_ms)
    }
}
