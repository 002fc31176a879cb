//! While a client drops a database, nobody's idle connection may keep it: they are closed on every agent.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::holds::Order;
use crate::peers;
use crate::router::Shared;
use crate::router::worker::Worker;

/// The service under which an agent closes its idle connections to a database.
const SERVICE: &str = "router.close_idle";
/// How long another agent may take; PostgreSQL waits for the sessions in a database for five seconds.
const PATIENCE: Duration = Duration::from_secs(1);

/// A client drops a database: meanwhile the server waits for the sessions in it to end, for some seconds.
pub(in crate::router) fn begin(worker: &Worker, database: String) {
    let shared = Arc::clone(&worker.shared);
    tokio::task::spawn_local(async move { close_idle(&shared, &database).await });
}

/// Closes the idle connections to a database, here and at the other agents that answer.
async fn close_idle(shared: &Shared, database: &str) {
    let order = Order::CloseIdle(database.to_owned());
    let others = async {
        let Some(peers) = &shared.peers else { return };
        let calls = peers.others().into_iter().map(|node| async move {
            let body = Bytes::copy_from_slice(database.as_bytes());
            if let Err(error) = peers.call_within(node, SERVICE, body, PATIENCE).await {
                tracing::debug!(%node, "its idle connections to {database} may be left: {error}");
            }
        });
        futures_util::future::join_all(calls).await;
    };
    tokio::join!(shared.order(&order), others);
}

/// Closes idle connections for the peers whose clients drop a database.
pub(in crate::router) fn serve(shared: &Arc<Shared>, peers: &peers::Handle) {
    let shared = Arc::downgrade(shared);
    peers.serve(SERVICE, move |_, body| {
        let shared = shared.clone();
        Box::pin(async move {
            let name = std::str::from_utf8(&body).map_err(|_| "a name that is not UTF-8")?;
            if let Some(shared) = shared.upgrade() {
                shared.order(&Order::CloseIdle(name.to_owned())).await;
            }
            Ok(Bytes::new())
        })
    });
}
