//! What belongs to a life of a node: older copies and clones are refused, and a dead origin's last commits reach all.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use synapsedb_dev::{Cluster, HttpPort, Node, eventually};

use crate::{NOTICED, binary, cluster, skip};

/// How long a refused agent may take to end, its server's start included.
const REFUSED: Duration = Duration::from_secs(60);

fn copy(from: &Path, to: &Path) {
    let status = Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap();
    assert!(status.success(), "cp {} {}", from.display(), to.display());
}

fn replace(with: &Path, at: &Path) {
    let _ = std::fs::remove_dir_all(at);
    copy(with, at);
}

/// The newer directory with one part of the older.
fn mix(new: &Path, old: &Path, part: &str, node: &Node) {
    replace(new, node.folder());
    replace(&old.join(part), &node.folder().join(part));
}

async fn as_before(other: &Node) {
    eventually("the other node is as it was", NOTICED, async || {
        other.shows("select count(*) from lived", &["200"]).await
    })
    .await;
}

/// The directory that is there now is refused for this reason. Raft may have given it entries before that, on which the
/// others count from then on: the newer directory gets them too.
fn refuses(node: &Node, new: &Path, reason: &str) {
    let log = node.refuses_to_start(REFUSED);
    assert!(log.contains(reason), "{log}");
    if !log.contains("the Raft log of this node ends") {
        replace(&node.folder().join("raft"), &new.join("raft"));
    }
}

async fn write(node: &Node, from: u32, to: u32) {
    node.sql(&format!(
        "insert into lived (id, v) select n, 'node {}' from generate_series({from}, {to}) n",
        node.number()
    ))
    .await;
}

/// Writes until the WAL of a node that starts from 100 rows is past `end`, where another server of its number was when
/// it was about to stop.
async fn past(node: &Node, end: &str) {
    // What it has still written then.
    const STOPPING: u32 = 1 << 20;
    let passed = format!("select pg_current_wal_insert_lsn() - '{end}' > {STOPPING}");
    for batch in 1.. {
        write(node, batch * 1000, batch * 1000 + 999).await;
        if node.value(&passed).await == "t" {
            return;
        }
    }
}

async fn with_table(nodes: u16) -> Cluster {
    let cluster = cluster(nodes).await;
    cluster.node(1).sql("create table lived (id int primary key, v text)").await;
    cluster.all_show("select count(*) from lived", &["0"]).await;
    cluster
}

/// Waits until node 2 says why it does not publish.
async fn waits_for_peers(node: &Node) {
    eventually("it waits for its peers and says so", NOTICED, async || {
        let (_, text) = node
            .try_http(HttpPort::Raft, "/replication/status")
            .await
            .map_err(|error| error.to_string())?;
        if text.contains("must say what they have of this node") { Ok(()) } else { Err(text) }
    })
    .await;
}

/// An older spool is made good where the slot still reads what it lacks; where it does not, it is refused.
async fn older_spool(cluster: &Cluster, new: &Path, old: &Path) {
    let node = cluster.node(1);
    mix(new, old, "spool", node);
    node.start();
    eventually("the older spool is made good or refused", REFUSED, async || match node.ended() {
        Some(_) if node.log().contains("the spool is an older copy") => Ok(()),
        Some(_) | None => node.ready().await,
    })
    .await;
    let rows = "select count(*), count(distinct id) from lived";
    if node.ended().is_some() {
        // PostgreSQL 17 and later take a slot to the disk when they stop: then it has nothing left of what is lacking.
        node.kill_agent();
        for other in [2, 3].map(|other| cluster.node(other)) {
            other.shows(rows, &["200|200"]).await.unwrap();
        }
        // Raft may have given it entries before it ended.
        replace(&node.folder().join("raft"), &new.join("raft"));
    } else {
        // It has gone on, and is the real one from now on.
        cluster.all_show(rows, &["200|200"]).await;
        node.stop();
        replace(node.folder(), new);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_rolled_back_to_an_older_copy_is_refused() {
    let cluster = with_table(3).await;
    let node = cluster.node(1);
    let [old, new] = ["old", "new"].map(|name| cluster.data().join(name));
    write(node, 1, 100).await;
    cluster.all_show("select count(*) from lived", &["100"]).await;
    node.stop();
    copy(node.folder(), &old);
    node.start();
    cluster.wait_ready().await;
    write(node, 101, 200).await;
    cluster.all_show("select count(*) from lived", &["200"]).await;
    let end = node.value("select pg_current_wal_insert_lsn()").await;
    node.stop();
    std::fs::rename(node.folder(), &new).unwrap();

    // All of it, as a snapshot would bring it back.
    copy(&old, node.folder());
    refuses(node, &new, "it was restored from an older copy");
    // Parts of it.
    mix(&new, &old, "pgdata", node);
    refuses(node, &new, "the server was replaced by an older copy");
    older_spool(&cluster, &new, &old).await;

    // All of it again; nobody is there to ask, and the server goes its own way, past what the peers have.
    cluster.node(2).stop();
    cluster.node(3).stop();
    replace(&old, node.folder());
    node.start();
    waits_for_peers(node).await;
    past(node, &end).await;
    cluster.node(2).start();
    cluster.node(3).start();
    eventually("the copy ends", REFUSED, async || {
        node.ended().map(drop).ok_or_else(|| node.log_tail())
    })
    .await;
    assert!(node.log().contains("which has gone its own way since"), "{}", node.log_tail());
    node.kill_agent();

    // The others are as they were, and the real one goes on where it was.
    for other in [2, 3].map(|other| cluster.node(other)) {
        as_before(other).await;
    }
    // The copy has voted meanwhile: with the Raft log of before, the real one would not be let in.
    replace(&node.folder().join("raft"), &new.join("raft"));
    replace(&new, node.folder());
    node.start();
    cluster.wait_ready().await;
    write(node, 201, 300).await;
    cluster.all_show("select count(*), count(distinct id) from lived", &["300|300"]).await;
    cluster.assert_equal_rows().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clone_under_the_same_number_is_refused() {
    let cluster = with_table(3).await;
    write(cluster.node(2), 1, 50).await;
    cluster.all_show("select count(*) from lived", &["50"]).await;
    // A copy of the whole directory, with its own places and ports.
    let clone = cluster.data().join("clone");
    cluster.node(2).stop();
    copy(cluster.node(2).folder(), &clone);
    cluster.node(2).start();
    cluster.wait_ready().await;
    let text = std::fs::read_to_string(clone.join("agent.toml")).unwrap();
    let ports = cluster.ports();
    let mut text = text
        .replace(cluster.node(2).folder().to_str().unwrap(), clone.to_str().unwrap())
        .replace(&ports.postgres(2).to_string(), &ports.postgres(9).to_string())
        .replace(&ports.peers(2).to_string(), &ports.peers(9).to_string());
    for http in 0..4 {
        let (two, nine) = (ports.http(2) + http, ports.http(9) + http);
        text = text.replace(&two.to_string(), &nine.to_string());
    }
    std::fs::write(clone.join("agent.toml"), text).unwrap();
    let mut child = Command::new(binary().path())
        .args(["agent", "--config"])
        .arg(clone.join("agent.toml"))
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let deadline = Instant::now() + REFUSED;
    while child.try_wait().unwrap().is_none() {
        if Instant::now() > deadline {
            let _ = child.kill();
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let output = child.wait_with_output().unwrap();
    let log = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{log}");
    assert!(log.contains("another agent runs as node 2"), "{log}");
    write(cluster.node(2), 51, 100).await;
    cluster.all_show("select count(*), count(distinct id) from lived", &["100|100"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_origins_last_commits_reach_everybody() {
    let cluster = with_table(3).await;
    if let Err(reason) = cluster.node(1).can_be_cut_off() {
        return skip(&reason);
    }
    write(cluster.node(1), 1, 10).await;
    cluster.all_show("select count(*) from lived", &["10"]).await;
    let cut = cluster.node(1).cut_link(cluster.node(3));
    cluster.node(3).pause_agent();
    write(cluster.node(1), 11, 500).await;
    eventually("node 2 has them", NOTICED, async || {
        cluster.node(2).shows("select count(*) from lived", &["500"]).await
    })
    .await;
    cluster.node(1).kill_agent();
    cluster.node(1).kill_postgres();
    assert_eq!(cluster.node(3).value("select count(*) from lived").await, "10");
    cluster.node(3).resume();
    eventually("node 3 has them from node 2", NOTICED, async || {
        cluster.node(3).shows("select count(*), count(distinct id) from lived", &["500|500"]).await
    })
    .await;
    drop(cut);
    // The dead one comes back, and nobody has anything twice.
    cluster.start().await;
    write(cluster.node(1), 501, 510).await;
    cluster.all_show("select count(*), count(distinct id) from lived", &["510|510"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_link_is_gone_around() {
    let cluster = with_table(3).await;
    if let Err(reason) = cluster.node(1).can_be_cut_off() {
        return skip(&reason);
    }
    let cut = cluster.node(1).cut_link(cluster.node(3));
    write(cluster.node(1), 1, 100).await;
    eventually("node 3 has them by way of node 2", NOTICED, async || {
        cluster.node(3).shows("select count(*) from lived", &["100"]).await
    })
    .await;
    let status = cluster.node(3).http(HttpPort::Raft, "/replication/status").await;
    assert_eq!(status["lanes"][0]["origin"], 1, "{status}");
    drop(cut);
    write(cluster.node(1), 101, 200).await;
    cluster.all_show("select count(*), count(distinct id) from lived", &["200|200"]).await;
}
