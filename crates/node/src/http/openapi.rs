//! The OpenAPI document of all ports, put together from the routes.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use utoipa::OpenApi as _;
use utoipa::openapi::{OpenApi, Server};

use super::api::documented::{
    __path_health, __path_metrics, __path_openapi_json, __path_ready, __path_status,
};
use super::planned::documented::{
    __path_backup_create, __path_backup_list, __path_backup_restore, __path_backup_status,
    __path_deadlock_graph, __path_deadlock_stats,
};
use super::{Port, api};

#[derive(utoipa::OpenApi)]
#[openapi(
    info(
        title = "SynapseDB agent",
        description = "Each agent serves the routes of a component on that component's port, and the routes tagged \
                       `agent` on every port. Every answer that is not a success is an `ErrorBody`."
    ),
    paths(
        health,
        ready,
        status,
        metrics,
        openapi_json,
        raft_status,
        gossip_members,
        deadlock_graph,
        deadlock_stats,
        backup_status,
        backup_list,
        backup_create,
        backup_restore
    ),
    components(schemas(api::ErrorBody))
)]
struct Document;

/// This node's view of the consensus.
#[utoipa::path(get, path = "/raft/status", tag = "raft", responses(
    (status = 200, description = "Leader, term, log positions and the replicated state", body = Object)
))]
#[expect(dead_code, reason = "it is there for its description: raft serves the route")]
fn raft_status() {}

/// The members as this node sees them.
#[utoipa::path(get, path = "/gossip/members", tag = "gossip", responses(
    (status = 200, description = "Each member with its state and what it said last", body = Object)
))]
#[expect(dead_code, reason = "it is there for its description: gossip serves the route")]
fn gossip_members() {}

/// The document; `documents` of the components replace the general description of their routes.
pub(super) fn document(documents: Vec<OpenApi>, addresses: &BTreeMap<Port, SocketAddr>) -> OpenApi {
    let mut whole = Document::openapi();
    whole.info.version = env!("CARGO_PKG_VERSION").to_owned();
    for mut document in documents {
        // `merge` keeps what is there already, so what is described twice is dropped first.
        for path in document.paths.paths.keys() {
            whole.paths.paths.remove(path);
        }
        document.servers = None;
        whole.merge(document);
    }
    for (path, item) in &mut whole.paths.paths {
        let address = Port::of_path(path).and_then(|port| addresses.get(&port));
        item.servers = address.map(|address| vec![Server::new(format!("http://{address}"))]);
    }
    whole
}
