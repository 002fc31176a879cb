//! Three nodes on real sockets: they find each other, miss the dead, greet the returned and ignore strangers.
#![allow(clippy::unwrap_used)]

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::life::Life;
use super::message::{Heartbeat, Message};
use super::*;
use crate::peers::tests::{TestCluster, counted, eventually, node};

struct Node {
    gossip: Handle,
    registry: Registry,
    stop: CancellationToken,
    running: JoinHandle<Result<()>>,
}

fn start(cluster: &TestCluster, number: u16) -> Node {
    start_with(cluster, number, Config::default())
}

fn start_with(cluster: &TestCluster, number: u16, config: Config) -> Node {
    let mut registry = Registry::default();
    let (gossip, task) = new(
        config,
        cluster.identity(number),
        cluster.addresses.clone(),
        &cluster.tls(number),
        &mut registry,
    )
    .unwrap();
    let stop = CancellationToken::new();
    let running = tokio::spawn(task.run(stop.clone()));
    Node { gossip, registry, stop, running }
}

impl Node {
    /// Ends the node without a word, as SIGKILL does.
    async fn kill(self) {
        self.running.abort();
        let _ = self.running.await;
    }

    fn state(&self, number: u16) -> MemberState {
        self.gossip.view().members[&node(number)].state
    }

    async fn sees(&self, number: u16, state: MemberState) {
        let what = format!("node {number} is {}", state.word());
        eventually(&what, || (self.state(number) == state).then_some(())).await;
    }

    fn dropped(&self, reason: &str) -> u64 {
        let series = format!("synapsedb_gossip_datagrams_dropped_total{{reason=\"{reason}\"}}");
        counted(&self.registry, &series)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_dead_are_suspected_then_down_and_come_back() {
    let cluster = TestCluster::new(3);
    let (first, second, third) = (start(&cluster, 1), start(&cluster, 2), start(&cluster, 3));
    for started in [&first, &second, &third] {
        for number in 1..=3 {
            started.sees(number, MemberState::Alive).await;
        }
    }
    let facts = Facts {
        postgres_ready: true,
        clock_set_back: true,
        applied: [(node(1), Lsn(7))].into_iter().collect(),
        received: [(node(1), Lsn(8))].into_iter().collect(),
        wal_lsn: Lsn(9),
        published_lsn: Lsn(8),
        unread_bytes: 1,
        lag_ms: 2,
    };
    third.gossip.publish(facts.clone());
    eventually("the facts of node 3", || {
        let view = first.gossip.view();
        (view.members[&node(3)].facts.as_ref() == Some(&facts)).then_some(())
    })
    .await;
    eventually("node 2 hears node 3", || {
        let view = first.gossip.view();
        view.members[&node(2)].hears.get(&node(3)).is_some_and(|&age| age < 1_000).then_some(())
    })
    .await;

    let mut changes = first.gossip.watch();
    let dead = tokio::time::Instant::now();
    third.kill().await;
    let mut seen = Vec::new();
    while seen.last() != Some(&MemberState::Down) {
        let state = changes.borrow_and_update().members[&node(3)].state;
        if seen.last() != Some(&state) {
            seen.push(state);
        }
        changes.changed().await.unwrap();
        assert!(dead.elapsed() < Duration::from_secs(10), "{seen:?}");
    }
    println!("node 3 down after {:?}", dead.elapsed());
    assert_eq!(seen, [MemberState::Alive, MemberState::Suspect, MemberState::Down]);
    second.sees(3, MemberState::Down).await;
    let view = first.gossip.view();
    let gone = &view.members[&node(3)];
    assert!(gone.heartbeat_age_ms.unwrap() >= 300, "{gone:?}");

    let third = start(&cluster, 3);
    first.sees(3, MemberState::Alive).await;
    second.sees(3, MemberState::Alive).await;
    third.sees(1, MemberState::Alive).await;

    third.stop.cancel();
    third.running.await.unwrap().unwrap();
    first.sees(3, MemberState::Left).await;
    second.sees(3, MemberState::Left).await;
    let third = start(&cluster, 3);
    first.sees(3, MemberState::Alive).await;
    third.sees(2, MemberState::Alive).await;
    // Nobody who lived was ever taken for dead.
    assert_eq!(first.state(2), MemberState::Alive);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_whole_cluster_that_was_apart_finds_together() {
    let cluster = TestCluster::new(2);
    let (first, second) = (start(&cluster, 1), start(&cluster, 2));
    first.sees(2, MemberState::Alive).await;
    second.sees(1, MemberState::Alive).await;
    second.kill().await;
    first.sees(2, MemberState::Down).await;
    // The clock of node 2 was set back: its new life starts before the one that others remember.
    let mut registry = Registry::default();
    let (gossip, mut task) = new(
        Config::default(),
        cluster.identity(2),
        cluster.addresses.clone(),
        &cluster.tls(2),
        &mut registry,
    )
    .unwrap();
    let earlier = Life { start: task.swim().life().start - 1_000_000, ..task.swim().life() };
    *task.swim() = swim::Swim::new(&Config::default(), earlier);
    let stop = CancellationToken::new();
    let running = tokio::spawn(task.run(stop.clone()));
    let second = Node { gossip, registry, stop, running };
    first.sees(2, MemberState::Alive).await;
    second.sees(1, MemberState::Alive).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn datagrams_of_strangers_are_dropped_and_counted() {
    let cluster = TestCluster::new(2);
    let first = start(&cluster, 1);
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let send = |datagram: &[u8]| socket.send_to(datagram, cluster.address(1)).unwrap();
    let now = task::unix_us();
    let cipher = cluster.tls(2).gossip_cipher();
    let life = Life { node: node(2), incarnation: Incarnation(2), start: 1 };
    let heartbeat = |counter| {
        let (facts, hears) = (Facts::default(), BTreeMap::new());
        Message::Heartbeat(Heartbeat { life, counter, facts, hears }).encode()
    };

    send(b"hello");
    let stranger = TestCluster::new(2).tls(2).gossip_cipher();
    send(&stranger.seal(node(2), now, &heartbeat(1)).unwrap());
    let mut flipped = cipher.seal(node(2), now, &heartbeat(2)).unwrap();
    flipped[40] ^= 1;
    send(&flipped);
    send(&cipher.seal(node(2), now - 60_000_000, &heartbeat(3)).unwrap());
    send(&cipher.seal(node(9), now, &heartbeat(4)).unwrap());
    send(&cipher.seal(node(1), now, &heartbeat(5)).unwrap());
    send(&cipher.seal(node(2), now, b"\xffnonsense").unwrap());
    let good = cipher.seal(node(2), now, &heartbeat(6)).unwrap();
    for _ in 0..3 {
        send(&good);
    }
    eventually("everything counted", || (first.dropped("replayed") == 2).then_some(())).await;
    for (reason, count) in [
        ("malformed", 1),
        ("forged", 2),
        ("stale", 1),
        ("unknown_node", 1),
        ("own", 1),
        ("bad_message", 1),
        ("replayed", 2),
    ] {
        assert_eq!(first.dropped(reason), count, "{reason}");
    }
    assert_eq!(counted(&first.registry, "synapsedb_gossip_heartbeats_received_total"), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn settings_and_addresses_that_cannot_work_are_named() {
    let cluster = TestCluster::new(2);
    let attempt = |config| {
        let mut registry = Registry::default();
        let addresses = cluster.addresses.clone();
        let made = new(config, cluster.identity(1), addresses, &cluster.tls(1), &mut registry);
        format!("{:#}", made.err().unwrap())
    };
    let text = attempt(Config { probe_rtt_ms: 300, ..Config::default() });
    assert!(text.contains("gossip.probe_rtt_ms = 300 must be below"), "{text}");
    let _taken = UdpSocket::bind(cluster.address(1)).unwrap();
    let text = attempt(Config::default());
    assert!(text.contains("cannot receive datagrams on 127.0.0.1:"), "{text}");
}

/// Takes 20 s of all cores: `cargo test -- --ignored a_busy_machine`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes all cores for 20 s"]
async fn a_busy_machine_raises_no_false_alarm() {
    let cluster = TestCluster::new(3);
    let nodes = [start(&cluster, 1), start(&cluster, 2), start(&cluster, 3)];
    for started in &nodes {
        for number in 1..=3 {
            started.sees(number, MemberState::Alive).await;
        }
    }
    let end = std::time::Instant::now() + Duration::from_secs(20);
    let busy: Vec<_> = (0..8)
        .map(|_| std::thread::spawn(move || while std::time::Instant::now() < end {}))
        .collect();
    tokio::time::sleep(Duration::from_secs(20)).await;
    busy.into_iter().for_each(|thread| thread.join().unwrap());
    for started in &nodes {
        for state in ["suspect", "down"] {
            let series = format!("synapsedb_gossip_changes_total{{state=\"{state}\"}}");
            assert_eq!(counted(&started.registry, &series), 0, "{state}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_come_and_go_while_the_agent_runs() {
    let cluster = TestCluster::new(3);
    let (first, second, third) = (start(&cluster, 1), start(&cluster, 2), start(&cluster, 3));
    let all: BTreeMap<_, _> =
        cluster.addresses.iter().map(|member| (member.node, member.address.clone())).collect();
    let mut two = all.clone();
    two.remove(&node(3));
    first.gossip.set_members(&two);
    first.sees(2, MemberState::Alive).await;
    assert!(!first.gossip.view().members.contains_key(&node(3)));
    eventually("what node 3 sends is dropped", || {
        (first.dropped("unknown_node") > 0).then_some(())
    })
    .await;
    first.gossip.set_members(&all);
    first.sees(3, MemberState::Alive).await;
    third.sees(1, MemberState::Alive).await;
    for ended in [first, second, third] {
        ended.kill().await;
    }
}
