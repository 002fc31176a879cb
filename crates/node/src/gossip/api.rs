//! `GET /gossip/members`: the members as this node sees them.

use std::collections::BTreeMap;

use axum::extract::State;
use axum::routing::get;
use axum::{Json, Router};
use serde::Serialize;
use utoipa::{OpenApi, ToSchema};

use super::{Handle, MemberState, MemberView};

/// The members as one node sees them.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct MembersBody {
    /// The node that answers.
    pub node: u16,
    /// All members, the answering node included, in the order of their numbers.
    pub members: Vec<MemberBody>,
}

/// One member.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct MemberBody {
    /// Its number.
    pub node: u16,
    /// Where its agent is reached.
    pub address: String,
    /// What is believed of it.
    pub state: MemberState,
    /// Milliseconds since that was first believed.
    pub since_ms: u64,
    /// The life of its data; 0 when it was never heard of.
    pub incarnation: u32,
    /// Milliseconds since its last heartbeat arrived here; absent when none ever did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub heartbeat_age_ms: Option<u64>,
    /// Whether its PostgreSQL server takes sessions, as it said last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub postgres_ready: Option<bool>,
    /// Where its own WAL ended, as it said last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wal_lsn: Option<String>,
    /// Per origin, up to which commit it has applied, as it said last.
    pub applied: BTreeMap<String, String>,
    /// Per node, the age in milliseconds of the last heartbeat that this member heard of it.
    pub hears: BTreeMap<String, u64>,
}

/// The routes of gossip.
pub fn routes(handle: Handle) -> Router {
    Router::new().route("/gossip/members", get(members)).with_state(handle)
}

#[derive(OpenApi)]
#[openapi(paths(members))]
struct Document;

/// The description of the routes.
pub fn document() -> utoipa::openapi::OpenApi {
    Document::openapi()
}

/// The members as this node sees them.
#[utoipa::path(
    get,
    path = "/gossip/members",
    tag = "gossip",
    responses((status = 200, description = "The members as this node sees them", body = MembersBody))
)]
pub async fn members(State(handle): State<Handle>) -> Json<MembersBody> {
    Json(handle.status())
}

impl Handle {
    /// The members as this node sees them.
    pub fn status(&self) -> MembersBody {
        let view = self.view();
        let members = view.members.iter().map(|(node, member)| {
            let address = self.shared.addresses.borrow().get(node).cloned().unwrap_or_default();
            MemberBody::new(node.get(), address, member)
        });
        MembersBody { node: self.shared.me.get(), members: members.collect() }
    }
}

impl MemberBody {
    fn new(node: u16, address: String, member: &MemberView) -> Self {
        let facts = member.facts.as_ref();
        let applied = facts.map(|facts| facts.applied.iter()).into_iter().flatten();
        Self {
            node,
            address,
            state: member.state,
            since_ms: member.since_ms,
            incarnation: member.incarnation.0,
            heartbeat_age_ms: member.heartbeat_age_ms,
            postgres_ready: facts.map(|facts| facts.postgres_ready),
            wal_lsn: facts.map(|facts| facts.wal_lsn.to_string()),
            applied: applied.map(|(origin, lsn)| (origin.to_string(), lsn.to_string())).collect(),
            hears: member.hears.iter().map(|(node, age)| (node.to_string(), *age)).collect(),
        }
    }
}
