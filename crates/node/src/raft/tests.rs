//! Three nodes on real sockets and real files agree, survive each other, and refuse what is damaged.
#![allow(clippy::unwrap_used)]

use std::path::Path;

use synapsedb_core::ids::{Epoch, Incarnation};
use synapsedb_core::state::{Addresses, Refusal};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::peers::tests::{TestCluster, TestNode, counted, eventually, node};

struct Node {
    raft: Handle,
    registry: Registry,
    stop: CancellationToken,
    running: JoinHandle<Result<()>>,
    peers: TestNode,
}

fn config(cluster: &TestCluster, number: u16) -> Config {
    let dir = cluster.directory(&format!("node-{number}")).join("raft");
    Config { dir, ..Config::default() }
}

async fn attempt(cluster: &TestCluster, number: u16, config: Config) -> Result<Node> {
    std::fs::create_dir_all(cluster.directory(&format!("node-{number}"))).unwrap();
    let peers = cluster.start(number);
    let mut registry = Registry::default();
    let made = new(
        config,
        cluster.identity(number),
        cluster.addresses.clone(),
        peers.peers.clone(),
        &mut registry,
    );
    let (raft, task) = match made.await {
        Ok(made) => made,
        Err(error) => {
            peers.stop().await;
            return Err(error);
        }
    };
    let stop = CancellationToken::new();
    let running = tokio::spawn(task.run(stop.clone()));
    Ok(Node { raft, registry, stop, running, peers })
}

async fn start(cluster: &TestCluster, number: u16) -> Node {
    start_with(cluster, number, config(cluster, number)).await
}

async fn start_with(cluster: &TestCluster, number: u16, config: Config) -> Node {
    for _ in 0..100 {
        match attempt(cluster, number, config.clone()).await {
            Ok(node) => return node,
            // The tasks of the node that was here before may still be ending.
            Err(error) if format!("{error:#}").contains("is in use") => {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            Err(error) => panic!("node {number} does not start: {error:#}"),
        }
    }
    panic!("node {number}: its file stays in use");
}

impl Node {
    async fn stop(self) {
        self.stop.cancel();
        self.running.await.unwrap().unwrap();
        self.peers.stop().await;
    }
}

async fn leader(nodes: &[&Node]) -> NodeId {
    eventually("a leader that all know", || {
        let leader = nodes.iter().find(|node| node.raft.is_leader())?.raft.leader()?;
        nodes.iter().all(|node| node.raft.leader() == Some(leader)).then_some(leader)
    })
    .await
}

fn register(cluster: &TestCluster, number: u16) -> Command {
    let identity = cluster.identity(number);
    Command::RegisterMember {
        node: identity.node,
        uuid: identity.uuid.to_string(),
        incarnation: identity.incarnation,
        addresses: Addresses {
            peers: cluster.address(number).to_owned(),
            postgres: "the-address-of-its-server".to_owned(),
            http: String::new(),
        },
        system_identifier: String::new(),
        postgres_version: 150_000,
    }
}

fn primary(number: u16, expected: u64) -> Command {
    Command::SetPrimary { node: node(number), expected: Epoch(expected) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_nodes_agree_and_survive_their_leader() {
    let cluster = TestCluster::new(3);
    let mut nodes =
        vec![start(&cluster, 1).await, start(&cluster, 2).await, start(&cluster, 3).await];
    let first_leader = leader(&nodes.iter().collect::<Vec<_>>()).await;
    for (number, node) in (1..).zip(&nodes) {
        // Two of the three are followers: their proposals travel, and their own state includes them at once.
        let outcome = node.raft.propose(register(&cluster, number)).await.unwrap();
        assert_eq!(outcome, Outcome::Applied);
        assert!(node.raft.state().active(node.peers_node()).is_some());
    }
    assert_eq!(nodes[0].raft.propose(register(&cluster, 1)).await.unwrap(), Outcome::Unchanged);
    assert_eq!(nodes[1].raft.propose(primary(2, 0)).await.unwrap(), Outcome::Applied);
    let stale = nodes[2].raft.propose(primary(3, 0)).await.unwrap();
    assert!(matches!(stale, Outcome::Refused(_)), "{stale:?}");
    let status = nodes[0].raft.status();
    assert_eq!((status.voters.clone(), status.leader), (vec![1, 2, 3], Some(first_leader.get())));
    serde_json::to_string(&status).unwrap();

    let place = nodes.iter().position(|node| node.peers_node() == first_leader).unwrap();
    let before = nodes[place].raft.state();
    nodes.remove(place).stop().await;
    let second_leader = leader(&nodes.iter().collect::<Vec<_>>()).await;
    assert_ne!(first_leader, second_leader);
    assert_eq!(nodes[0].raft.propose(primary(1, 1)).await.unwrap(), Outcome::Applied);

    let back = start(&cluster, first_leader.get()).await;
    assert_eq!(back.raft.state().members, before.members, "the state is there from the start");
    let all: Vec<_> = nodes.iter().chain([&back]).collect();
    eventually("all have the same state", || {
        let expected = all[0].raft.state();
        all.iter().all(|node| node.raft.state() == expected).then_some(())
    })
    .await;
    assert_eq!(back.raft.state().epoch, Epoch(2));
    assert!(counted(&back.registry, "synapsedb_raft_write_seconds_count") > 0);

    // All of them stop and start: nothing is lost.
    nodes.push(back);
    let expected = nodes[0].raft.state();
    for node in nodes {
        node.stop().await;
    }
    let nodes = [start(&cluster, 1).await, start(&cluster, 2).await, start(&cluster, 3).await];
    assert!(nodes.iter().all(|node| node.raft.state() == expected));
    leader(&nodes.iter().collect::<Vec<_>>()).await;
    assert_eq!(nodes[2].raft.propose(primary(3, 2)).await.unwrap(), Outcome::Applied);
}

impl Node {
    fn peers_node(&self) -> NodeId {
        self.raft.shared.identity.node
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_without_a_majority_falls_silent_until_it_is_back() {
    let cluster = TestCluster::new(3);
    let nodes = [start(&cluster, 1).await, start(&cluster, 2).await, start(&cluster, 3).await];
    let leader_before = leader(&nodes.iter().collect::<Vec<_>>()).await;
    let (leading, others): (Vec<_>, Vec<_>) =
        nodes.into_iter().partition(|node| node.peers_node() == leader_before);
    let leading = leading.into_iter().next().unwrap();
    let numbers: Vec<_> = others.iter().map(|node| node.peers_node().get()).collect();
    for node in others {
        node.stop().await;
    }
    eventually("it falls silent", || {
        let status = leading.raft.status();
        (status.silenced && !status.leads && status.leader.is_none()).then_some(())
    })
    .await;
    assert!(!leading.raft.is_leader());
    let mut impatient = leading.raft.shared.config.clone();
    impatient.propose_timeout_ms = 300;
    let error =
        tokio::time::timeout(Duration::from_secs(2), leading.raft.propose(register(&cluster, 1)))
            .await;
    assert!(error.is_err(), "nobody can agree: {error:?}");

    let one = start(&cluster, numbers[0]).await;
    let both = [&leading, &one];
    leader(&both).await;
    assert_eq!(one.raft.propose(register(&cluster, 1)).await.unwrap(), Outcome::Applied);
    eventually("nobody is silenced", || (!leading.raft.status().silenced).then_some(())).await;
    assert!(counted(&leading.registry, "synapsedb_raft_silenced_total") > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_that_was_away_for_long_gets_a_snapshot() {
    let cluster = TestCluster::new(3);
    let config =
        |number| Config { snapshot_entries: 20, keep_entries: 0, ..config(&cluster, number) };
    let first = start_with(&cluster, 1, config(1)).await;
    let second = start_with(&cluster, 2, config(2)).await;
    leader(&[&first, &second]).await;
    for number in 1..=3 {
        first.raft.propose(register(&cluster, number)).await.unwrap();
    }
    for epoch in 0..60 {
        let outcome = first.raft.propose(primary(1 + (epoch % 2) as u16, epoch)).await.unwrap();
        assert_eq!(outcome, Outcome::Applied, "{epoch}");
    }
    eventually("entries are purged", || {
        first.raft.status().purged_index.filter(|&purged| purged > 20)
    })
    .await;
    let third = start_with(&cluster, 3, config(3)).await;
    eventually("node 3 catches up", || (third.raft.state() == first.raft.state()).then_some(()))
        .await;
    assert!(third.raft.status().snapshot_index.is_some());
    third.stop().await;
    let third = start_with(&cluster, 3, config(3)).await;
    assert_eq!(third.raft.state(), first.raft.state());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_lost_its_log_or_its_identity_stays_out() {
    let mut cluster = TestCluster::new(3);
    let (first, second) = (start(&cluster, 1).await, start(&cluster, 2).await);
    let third = start(&cluster, 3).await;
    leader(&[&first, &second, &third]).await;
    first.raft.propose(register(&cluster, 3)).await.unwrap();
    third.stop().await;

    let file = config(&cluster, 3).dir.join(store::FILE);
    let kept = cluster.directory("kept.redb");
    std::fs::rename(&file, &kept).unwrap();
    let text = refusal(&cluster, 3).await;
    assert!(text.contains("is gone, but node 3 has had one"), "{text}");
    assert!(!file.exists(), "nothing was made in its place");
    std::fs::write(&file, b"").unwrap();
    let text = refusal(&cluster, 3).await;
    assert!(text.contains("is damaged: it is empty"), "{text}");
    std::fs::write(&file, b"no database at all").unwrap();
    let text = refusal(&cluster, 3).await;
    assert!(text.contains("is damaged"), "{text}");
    std::fs::copy(config(&cluster, 1).dir.join(store::FILE), &file).unwrap();
    let text = refusal(&cluster, 3).await;
    assert!(text.contains("belongs to node 1") && text.contains("this is node 3"), "{text}");

    // Wiped altogether and made anew under its old number: the others do not speak with it.
    std::fs::remove_dir_all(cluster.directory("node-3")).unwrap();
    cluster.identities[2].uuid = Uuid::new_v4();
    let imposter = start(&cluster, 3).await;
    leader(&[&first, &second]).await;
    let outcome = imposter.raft.propose(register(&cluster, 3)).await.unwrap();
    assert!(
        matches!(outcome, Outcome::Refused(Refusal::OtherIdentity { .. })),
        "it is told so: {outcome:?}"
    );
    // Nor does it count for a majority: with one of the two real ones gone, the other falls silent.
    second.stop().await;
    eventually("no majority with an imposter", || {
        let status = first.raft.status();
        (!status.leads && !imposter.raft.is_leader()).then_some(())
    })
    .await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(!first.raft.is_leader() && !imposter.raft.is_leader());
    imposter.stop().await;
    let second = start(&cluster, 2).await;
    leader(&[&first, &second]).await;

    cluster.identities[2].uuid = first.raft.state().members[&node(3)].uuid.parse().unwrap();
    std::fs::copy(&kept, &file).unwrap();
    let third = start(&cluster, 3).await;
    eventually("node 3 is back", || (third.raft.state() == first.raft.state()).then_some(())).await;
}

async fn refusal(cluster: &TestCluster, number: u16) -> String {
    for _ in 0..100 {
        let error = attempt(cluster, number, config(cluster, number)).await.err().unwrap();
        let text = format!("{error:#}");
        if !text.contains("is in use") {
            return text;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("the file of node {number} stays in use");
}

/// Set for the process that is to meet a full disk.
const FULL_DISK: &str = "SYNAPSEDB_TEST_FULL_DISK";

/// The limit on the size of files stands for a full disk. It is the process's own, so this runs in a fresh one.
#[test]
fn a_full_disk_stops_raft_and_loses_nothing_that_was_answered() {
    // Beyond the limit comes a signal that would end the process: ignored, the write fails instead.
    let script = "trap '' XFSZ; exec \"$0\" --ignored --exact raft::tests::with_a_full_disk";
    let this = std::env::current_exe().unwrap();
    let output = std::process::Command::new("bash")
        .args(["-c", script])
        .arg(this)
        .env(FULL_DISK, "1")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "run by a_full_disk_stops_raft_and_loses_nothing_that_was_answered"]
async fn with_a_full_disk() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    if std::env::var_os(FULL_DISK).is_none() {
        // The limit is for all tests of this process: it needs one of its own.
        return;
    }
    let cluster = TestCluster::new(1);
    let alone = start(&cluster, 1).await;
    leader(&[&alone]).await;
    let command = |count: u32| {
        let mut command = register(&cluster, 1);
        if let Command::RegisterMember { addresses, .. } = &mut command {
            addresses.http = count.to_string();
        }
        command
    };
    let length = std::fs::metadata(config(&cluster, 1).dir.join(store::FILE)).unwrap().len();
    let before = getrlimit(Resource::Fsize);
    let full = rustix::process::Rlimit { current: Some(length + 50_000), ..before };
    setrlimit(Resource::Fsize, full).unwrap();
    let mut answered = 0;
    let error = loop {
        match alone.raft.propose(command(answered + 1)).await {
            Ok(outcome) => assert_eq!(outcome, Outcome::Applied),
            Err(error) => break error.to_string(),
        }
        answered += 1;
        assert!(answered < 10_000, "the disk is never full");
    };
    assert!(error.contains("raft.redb"), "{error}");
    let ended = format!("{:#}", alone.running.await.unwrap().unwrap_err());
    assert!(ended.contains("raft.redb"), "{ended}");
    alone.peers.stop().await;
    drop(alone.raft);

    setrlimit(Resource::Fsize, before).unwrap();
    let alone = start(&cluster, 1).await;
    leader(&[&alone]).await;
    let found: u32 = alone.raft.state().members[&node(1)].addresses.http.parse().unwrap();
    assert!((answered..=answered + 1).contains(&found), "{answered} answered, {found} found");
}

fn identity() -> Identity {
    Identity {
        cluster_id: Uuid::new_v4(),
        node: node(1),
        uuid: Uuid::new_v4(),
        incarnation: Incarnation::FIRST,
    }
}

/// Everything that a file holds, or why it was refused.
fn content(dir: &Path, identity: &Identity) -> std::result::Result<String, String> {
    let opened = std::panic::catch_unwind(|| store::Store::open(dir, identity));
    let (store, loaded) = match opened {
        Err(_) => return Err("it panicked".to_owned()),
        Ok(opened) => opened.map_err(|error| format!("{error:#}"))?,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let vote: Option<openraft::Vote<u64>> = store.read_meta(store::name::VOTE).await.unwrap();
        let entries = store.entries(..).await.unwrap();
        Ok(format!("{vote:?} {entries:?} {:?}", loaded.applied))
    })
}

/// A file with votes, entries and a state, as a crash leaves it or as a clean stop does.
fn filled(dir: &Path, identity: &Identity, crash: bool) -> Vec<u8> {
    use openraft::storage::RaftStateMachine as _;
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let (store, loaded) = store::Store::open(dir, identity).unwrap();
    runtime.block_on(async {
        let (mut machine, ..) = machine::Machine::new(store.clone(), loaded.applied);
        for index in 0..40 {
            let log_id = openraft::LogId::new(openraft::CommittedLeaderId::new(3, 1), index);
            let command = Command::RegisterMember {
                node: node(1 + (index % 3) as u16),
                uuid: identity.uuid.to_string(),
                incarnation: Incarnation::FIRST,
                addresses: Addresses { http: format!("address-{index}"), ..Addresses::default() },
                system_identifier: String::new(),
                postgres_version: 0,
            };
            let request = machine::Request { id: Uuid::new_v4(), command };
            let payload = openraft::EntryPayload::Normal(request);
            let entry = machine::Entry { log_id, payload };
            let entries = vec![entry.clone()];
            store
                .write(move |transaction| store::put_entries(transaction, &entries))
                .await
                .unwrap();
            let vote = openraft::Vote::new(index + 1, 1);
            store
                .write(move |transaction| store::put(transaction, store::name::VOTE, &vote))
                .await
                .unwrap();
            machine.apply([entry]).await.unwrap();
        }
    });
    if !crash {
        drop(store);
        return std::fs::read(dir.join(store::FILE)).unwrap();
    }
    std::fs::read(dir.join(store::FILE)).unwrap()
}

/// Flips bytes all over the file: it is refused, or what changed was not in use; never is anything else read.
#[test]
fn a_flipped_byte_is_found_or_harmless() {
    for crash in [false, true] {
        let root = tempfile::tempdir().unwrap();
        let (dir, identity) = (root.path().join("origin").join("raft"), identity());
        let good = filled(&dir, &identity, crash);
        let dir = root.path().join("copy").join("raft");
        std::fs::create_dir_all(&dir).unwrap();
        let file = dir.join(store::FILE);
        let read = |bytes: &[u8]| {
            std::fs::write(&file, bytes).unwrap();
            content(&dir, &identity)
        };
        let expected = read(&good).unwrap();
        let used: Vec<_> = (0..good.len()).filter(|&place| good[place] != 0).collect();
        let stride = (used.len() / 150).max(1);
        let (mut refused, mut harmless) = (0, 0);
        let header = used.iter().copied().take_while(|&place| place < 512);
        for place in used.iter().copied().step_by(stride).chain(header) {
            let mut flipped = good.clone();
            flipped[place] ^= 0x10;
            match read(&flipped) {
                Ok(content) => {
                    assert_eq!(
                        content, expected,
                        "byte {place} changed what is read (crash: {crash})"
                    );
                    harmless += 1;
                }
                Err(text) => {
                    let clear = text.contains("is damaged") || text.contains("it panicked");
                    assert!(clear, "byte {place}: {text}");
                    refused += 1;
                }
            }
        }
        println!("crash {crash}: {refused} refused, {harmless} harmless of {} bytes", good.len());
        assert!(refused > 0);
        // In the middle of a value that is in use.
        let needle = b"address-39";
        let hits: Vec<_> = (0..good.len() - needle.len())
            .filter(|&place| good[place..].starts_with(needle))
            .collect();
        let mut flipped = good.clone();
        hits.into_iter().for_each(|place| flipped[place] ^= 1);
        let text = read(&flipped).unwrap_err();
        assert!(text.contains("raft.redb is damaged") || text.contains("panicked"), "{text}");
        println!("{text}");
    }
}

#[test]
fn the_pace_follows_a_slow_disk_and_keeps_to_the_settings_on_a_fast_one() {
    let told = Config::default();
    for write_ms in [0, 1, 20, 50] {
        assert_eq!(told.clone().paced(Duration::from_millis(write_ms)), told);
    }
    let id = Uuid::from_u128(1);
    for write_ms in [51, 100, 300, 2_000, u64::MAX / 100] {
        let paced = told.clone().paced(Duration::from_millis(write_ms));
        assert!(paced.openraft(id).is_ok(), "{paced:?}");
        assert!(paced.election_min_ms >= write_ms * 6 && paced.heartbeat_ms >= write_ms * 2);
        assert_eq!(paced.clone().paced(Duration::from_millis(write_ms)), paced);
    }
}
