//! One node whose router has pools of two server connections, so that whatever a session leaves behind on one of them
//! meets others at once. Every test has a database, and with it a pool, of its own.

use synapsedb_dev::client::Server;
use synapsedb_dev::shared::Borrowed;
use synapsedb_dev::{Cluster, Shared};

use crate::binary;

/// Server connections of a pool.
const POOL_SIZE: i64 = 2;
/// What every database of a test has.
const TABLES: &str =
    "create table items (id int primary key, v text); insert into items values (1, 'one')";

static CLUSTER: Shared = Shared::new();
static BY_SESSION: Shared = Shared::new();

/// The node that all tests of the router's transparency share.
pub async fn routed() -> Borrowed {
    let small = |cluster: &Cluster| {
        cluster.node(1).configure("router.pool_size", POOL_SIZE);
        cluster.switch_split_on();
    };
    CLUSTER.sized(binary(), 1, small).await
}

/// A node whose router gives every client a server connection of its own.
pub async fn routed_by_session() -> Borrowed {
    let whole = |cluster: &Cluster| {
        cluster.node(1).configure("router.pool_mode", "session");
    };
    BY_SESSION.sized(binary(), 1, whole).await
}

/// A way to a new database: directly, or by one of the endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    Direct,
    Read,
    Write,
    Split,
}

/// Makes a database, which the application's role owns, and returns it as it is reached by `way`.
pub async fn database(cluster: &Cluster, name: &str, way: Way) -> Server {
    let agent = cluster.node(1).agent_server();
    agent.sql(&format!("create database {name} owner synapsedb")).await;
    let mut server = match way {
        Way::Direct => cluster.node(1).server().clone(),
        Way::Read => cluster.read_endpoint(),
        Way::Write => cluster.write_endpoint(),
        Way::Split => cluster.split_endpoint(),
    };
    server.database = name.to_owned();
    let direct = Server { port: cluster.node(1).server().port, ..server.clone() };
    direct.sql(TABLES).await;
    server
}
