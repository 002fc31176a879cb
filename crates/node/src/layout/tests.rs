//! Ports, interruption, and what is refused.

#![allow(clippy::unwrap_used)]

use std::net::TcpListener;

use expect_test::expect;

use super::*;

/// A directory that the server's user may enter.
fn directory() -> tempfile::TempDir {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::Builder::new().prefix("synapsedb-layout-").tempdir_in("/tmp").unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    dir
}

/// A base whose ports are free now.
fn free_base() -> u16 {
    (0..50)
        .map(|_| TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port())
        .filter(|port| *port < 60_000)
        .find(|base| ports::plan(3, Some(*base)).is_ok_and(|plan| plan.taken(&[]).is_empty()))
        .unwrap()
}

fn options(data: &Path, base: u16) -> Options {
    let data = data.to_owned();
    Options {
        data,
        nodes: 3,
        port_base: Some(base),
        split_port: None,
        bin_dir: None,
        password: None,
    }
}

#[test]
fn the_well_known_ports() {
    let plan = ports::plan(3, None).unwrap();
    assert_eq!((plan.read, plan.write, plan.stats), (5001, 5002, 8404));
    let (id, third) = plan.nodes[2];
    assert_eq!(id.get(), 3);
    let Ports { postgres, raft, gossip, deadlock, backup, peers } = third;
    assert_eq!(
        [postgres, raft, gossip, deadlock, backup, peers],
        [5434, 8088, 8089, 8090, 8091, 7403]
    );
}

#[test]
fn no_port_twice_for_any_number_of_nodes() {
    for base in [None, Some(1024), Some(20_000), Some(65_391)] {
        for nodes in 1..=NodeId::MAX {
            let mut all: Vec<u16> =
                ports::plan(nodes, base).unwrap().all().into_iter().map(|(port, _)| port).collect();
            let count = all.len();
            all.sort_unstable();
            all.dedup();
            assert_eq!(all.len(), count);
        }
    }
    expect!["--nodes is 17; allowed: 1 to 16"]
        .assert_eq(&ports::plan(17, None).unwrap_err().to_string());
    expect!["--port-base is 80; allowed: 1024 to 65391"]
        .assert_eq(&ports::plan(3, Some(80)).unwrap_err().to_string());
}

#[test]
fn a_taken_port_names_the_process() {
    let base = free_base();
    let _taken = TcpListener::bind(("127.0.0.1", base + 33)).unwrap();
    let plan = ports::plan(3, Some(base)).unwrap();
    let taken = plan.taken(&[]);
    assert_eq!(taken.len(), 1);
    assert_eq!(taken[0].holder.as_ref().unwrap().0, std::process::id());
    let text = taken[0].to_string();
    let start = format!(
        "port {} (PostgreSQL, of node 2) is taken by process {} (",
        base + 33,
        std::process::id()
    );
    assert!(text.starts_with(&start), "{text}");
    assert!(plan.taken(&[NodeId::new(2).unwrap()]).is_empty(), "its own node may hold it");
    let dir = directory();
    let error = init(&options(&dir.path().join("data"), base)).unwrap_err().to_string();
    assert!(error.contains(&text) && error.contains("nothing was made"), "{error}");
    assert!(!dir.path().join("data").exists());
}

#[test]
fn an_interrupted_init_is_finished() {
    let dir = directory();
    let data = dir.path().join("data");
    let options = options(&data, free_base());
    let made = init(&options).unwrap();
    // As a crash would leave it: the intent, some of the nodes, and half of another.
    let path = data.join(CLUSTER_FILE);
    let text = std::fs::read_to_string(&path)
        .unwrap()
        .replace("\"complete\": true", "\"complete\": false");
    std::fs::write(&path, text).unwrap();
    std::fs::rename(data.join("node-2"), data.join("node-2.partial")).unwrap();
    std::fs::remove_file(data.join("node-2.partial/identity.json")).unwrap();
    std::fs::remove_dir_all(data.join("node-3")).unwrap();
    let error = load(&data).unwrap_err().to_string();
    assert!(error.contains("interrupted"), "{error}");
    let again = init(&options).unwrap();
    assert_eq!(again.cluster_id, made.cluster_id);
    let identity: Identity =
        serde_json::from_slice(&std::fs::read(data.join("node-2/identity.json")).unwrap()).unwrap();
    assert_eq!(identity.uuid, made.nodes[1].uuid);
    let key = |node: u16| std::fs::read(data.join(format!("node-{node}/tls/gossip.key"))).unwrap();
    assert_eq!(key(1), key(3), "one gossip key for all");
    assert!(!data.join("node-2.partial").exists());
    load(&data).unwrap();
}

#[test]
fn init_twice_changes_nothing_and_contradictions_are_refused() {
    let dir = directory();
    let data = dir.path().join("data");
    let options = options(&data, free_base());
    let made = init(&options).unwrap();
    let toml = std::fs::read(data.join("node-1/agent.toml")).unwrap();
    assert_eq!(init(&options).unwrap().to_json(), made.to_json());
    assert_eq!(std::fs::read(data.join("node-1/agent.toml")).unwrap(), toml);
    let error = init(&Options { nodes: 5, ..options.clone() }).unwrap_err().to_string();
    assert!(error.contains("already holds a cluster of 3 nodes"), "{error}");
    std::fs::remove_dir_all(data.join("node-2")).unwrap();
    let error = init(&options).unwrap_err().to_string();
    assert!(error.contains("node-2 is gone or damaged"), "{error}");
}

#[test]
fn a_directory_of_somebody_else_is_left_alone() {
    let dir = directory();
    std::fs::write(dir.path().join("thesis.txt"), "x").unwrap();
    let error = init(&options(dir.path(), free_base())).unwrap_err().to_string();
    assert!(error.contains("thesis.txt"), "{error}");
    std::fs::write(dir.path().join(CLUSTER_FILE), "{}").unwrap();
    assert!(find(dir.path()).unwrap_err().to_string().contains("is not a SynapseDB cluster file"));
}

#[test]
fn a_deep_directory_gets_a_short_socket() {
    let dir = directory();
    let data = dir.path().join("d".repeat(80));
    let cluster = init(&options(&data, free_base())).unwrap();
    let socket = &cluster.nodes[0].socket_dir;
    assert!(socket.starts_with("/tmp") && socket.as_os_str().len() < 60, "{}", socket.display());
}

#[test]
fn a_lost_identity_is_not_replaced() {
    let dir = directory();
    let fresh = Identity {
        cluster_id: uuid::Uuid::new_v4(),
        node: NodeId::new(1).unwrap(),
        uuid: uuid::Uuid::new_v4(),
        incarnation: Incarnation::FIRST,
    };
    assert_eq!(identity_of(dir.path(), &fresh).unwrap(), fresh);
    let other = Identity { uuid: uuid::Uuid::new_v4(), ..fresh.clone() };
    assert_eq!(identity_of(dir.path(), &other).unwrap(), fresh, "the known one is kept");
    let stranger = Identity { cluster_id: uuid::Uuid::new_v4(), ..fresh.clone() };
    assert!(identity_of(dir.path(), &stranger).unwrap_err().to_string().contains("cluster.id"));
    std::fs::remove_file(dir.path().join("identity.json")).unwrap();
    std::fs::create_dir(dir.path().join("raft")).unwrap();
    assert!(identity_of(dir.path(), &fresh).unwrap_err().to_string().contains("lost its identity"));
}
