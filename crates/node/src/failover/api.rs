//! The component's status as JSON: part of `GET /status`.

use serde::Serialize;
use utoipa::ToSchema;

/// Who the primary is, and what this node last decided or did about it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct Status {
    /// Whether the cluster knows this node as it is now.
    pub registered: bool,
    /// Why the last registration failed; null when it did not.
    pub registration_error: Option<String>,
    /// Whether this node is the leader, which is the one that decides.
    pub deciding: bool,
    /// The primary; null while there is none.
    pub primary: Option<u16>,
    /// Grows by one with every change of the primary.
    pub epoch: u64,
    /// Whether a primary is needed and no node could be it; only the deciding node knows.
    pub nobody_eligible: bool,
    /// Primaries that this node has appointed since its agent started.
    pub appointments: u64,
    /// Why the last appointment failed; null when it did not.
    pub appointment_error: Option<String>,
}
