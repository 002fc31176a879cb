//! The doors of the router, and where they are.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::Shared;

/// One of the doors.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    utoipa::ToSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Endpoint {
    /// Any healthy node.
    Read,
    /// The primary.
    Write,
    /// Reads on any healthy node, writes on the primary.
    Split,
}

impl Endpoint {
    pub(super) const COUNT: usize = 3;

    /// As it stands in metrics, logs and errors.
    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Split => "split",
        }
    }
}

impl Shared {
    /// The endpoints that this agent has.
    pub(super) fn endpoints(&self) -> impl Iterator<Item = Endpoint> + use<> {
        let split = self.config().split_listen.map(|_| Endpoint::Split);
        [Endpoint::Read, Endpoint::Write].into_iter().chain(split)
    }

    /// Where an endpoint listens, as configured.
    pub(super) fn listens(&self, endpoint: Endpoint) -> SocketAddr {
        match endpoint {
            Endpoint::Read => self.config().read_listen,
            Endpoint::Write => self.config().write_listen,
            Endpoint::Split => self.config().split_listen.unwrap_or(self.config().write_listen),
        }
    }
}
