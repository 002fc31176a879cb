//! A peer with a true certificate that sends garbage: refused by name, and no other stream suffers.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use prometheus_client::registry::Registry;
use synapsedb::layout::{self, Identity};
use synapsedb::peers::{self, CallError, PeerAddress, PeerStream};
use synapsedb::replication::spool::{self, Header, SpoolId};
use synapsedb::tasks::Shutdown;
use synapsedb::tls;
use synapsedb_core::ids::NodeId;
use synapsedb_core::lsn::Lsn;
use synapsedb_core::time::Timestamp;
use synapsedb_core::version::VersionVector;
use synapsedb_dev::{Cluster, Node, eventually};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::JoinHandle;

use super::lane;
use crate::NOTICED;

/// What is sent in the place of transactions, and what the receiver must say of it.
const STAGES: [&str; 4] = ["is longer than", "checksum", "does not follow", "malformed"];

fn number(node: u16) -> NodeId {
    NodeId::new(node).unwrap()
}

pub(super) fn identity(cluster: &Cluster, node: u16) -> Identity {
    let known = layout::load(cluster.data()).unwrap();
    known.node(node).unwrap().first_identity(&known)
}

/// A frame of one whole transaction, as a spool would send it.
pub(super) fn frame(id: SpoolId, commit_lsn: Lsn, message: &[u8]) -> Bytes {
    let folder = tempfile::tempdir().unwrap();
    let (mut writer, spool) = spool::open(folder.path(), id, spool::Config::default()).unwrap();
    let unix_us = time::OffsetDateTime::now_utc().unix_timestamp() * 1_000_000;
    let commit_time = Timestamp::from_unix_us(unix_us);
    writer
        .begin(&Header { commit_lsn, commit_time, xid: 7, vector: VersionVector::new() })
        .unwrap();
    writer.message(message).unwrap();
    writer.commit(Lsn(commit_lsn.0 + 8)).unwrap();
    writer.show().unwrap();
    spool.reader_after(Lsn::ZERO).unwrap().try_next().unwrap().unwrap().raw
}

/// Answers one request for transactions with garbage.
async fn serve(id: SpoolId, stage: usize, mut stream: PeerStream) -> std::io::Result<()> {
    let length = stream.io.read_u32_le().await?;
    let mut request = vec![0; length as usize];
    stream.io.read_exact(&mut request).await?;
    let request: serde_json::Value = serde_json::from_slice(&request)?;
    let after: Lsn = serde_json::from_value(request["after"].clone())?;
    let answer = br#"{"answer":"frames"}"#;
    stream.io.write_u32_le(u32::try_from(answer.len()).unwrap()).await?;
    stream.io.write_all(answer).await?;
    // A message of kind I that ends too early, in a frame with nothing wrong.
    let next = frame(id, Lsn(after.0 + 0x1000), b"I\0\0\x40");
    let bytes = match stage {
        0 => Bytes::from_static(b"\xfe\xff\xff\x7fnot a frame at all"),
        1 => {
            let mut flipped = next.to_vec();
            *flipped.last_mut().unwrap() ^= 1;
            flipped.into()
        }
        // A truncate of nothing is a message like any other.
        2 => frame(id, after, b"T\0\0\0\0\0"),
        _ => next,
    };
    stream.io.write_all(&bytes).await?;
    stream.io.flush().await?;
    // Until the other side has had enough.
    while stream.io.read_u8().await.is_ok() {}
    Ok(())
}

/// A peer in the place of node 3, with its certificate.
struct Impostor {
    who: Identity,
    peers: peers::Handle,
    /// Which of [`STAGES`] it is in.
    stage: Arc<AtomicUsize>,
    stop: Shutdown,
    running: JoinHandle<anyhow::Result<()>>,
}

impl Impostor {
    fn start(cluster: &Cluster) -> Self {
        let who = identity(cluster, 3);
        let id =
            SpoolId { cluster: who.cluster_id, origin: who.node, incarnation: who.incarnation };
        let three = cluster.node(3);
        let config = peers::Config {
            listen: format!("127.0.0.1:{}", three.peers_port()),
            ..peers::Config::default()
        };
        let address = |node: u16| PeerAddress {
            node: number(node),
            address: format!("127.0.0.1:{}", cluster.node(node).peers_port()),
        };
        let certificates = tls::Config::in_directory(&three.folder().join("tls"));
        let certificates = tls::load(&certificates, &who).unwrap();
        let (addresses, mut registry) = ((1..=3).map(address).collect(), Registry::default());
        let (peers, task) =
            peers::new(config, who.clone(), addresses, &certificates, &mut registry).unwrap();
        let stage = Arc::new(AtomicUsize::new(0));
        let now = stage.clone();
        peers.serve_stream("spool", move |stream| {
            let stage = now.load(Ordering::SeqCst);
            Box::pin(async move { drop(serve(id, stage, stream).await) })
        });
        let stop = Shutdown::new();
        let running = tokio::spawn(task.run(stop.clone()));
        Self { who, peers, stage, stop, running }
    }

    /// What it asks of node 1 in garbage is an error for it, and nothing more.
    async fn asks(&self) {
        for service in ["replication.guard", "replication.verify", "replication.row"] {
            let garbage = Bytes::from_static(b"\xff{garbage");
            let answer = self.peers.call(number(1), service, garbage).await;
            assert!(matches!(answer, Err(CallError::Remote { .. })), "{service}: {answer:?}");
        }
        let mut asking = self.peers.open(number(1), "spool").await.unwrap();
        asking.io.write_all(b"\xff\xff\xff\xff not a request").await.unwrap();
        let ended = tokio::time::timeout(Duration::from_secs(5), asking.io.read_u8()).await;
        assert!(matches!(ended, Ok(Err(_))), "{ended:?}");
    }

    /// What nobody can have is not taken for an acknowledgement.
    async fn acknowledges(&self, one: &Node) {
        let mut asking = self.peers.open(number(1), "spool").await.unwrap();
        let (life, after) = (self.who.incarnation.0, u64::MAX >> 1);
        let request = format!(r#"{{"format":2,"origin":1,"incarnation":{life},"after":{after}}}"#);
        asking.io.write_u32_le(u32::try_from(request.len()).unwrap()).await.unwrap();
        asking.io.write_all(request.as_bytes()).await.unwrap();
        asking.io.write_all(&[0x7f; 16]).await.unwrap();
        asking.io.flush().await.unwrap();
        eventually("node 1 ends the stream", NOTICED, async || {
            let said = one.log().contains("it acknowledges 7F7F7F7F/7F7F7F7F");
            if said { Ok(()) } else { Err(one.log_tail()) }
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_from_a_peer_is_refused_and_stops_no_other_stream() {
    let cluster = crate::binary().lay_out(3);
    cluster.nodes().iter().for_each(|node| node.configure("replication.retry_max_ms", 200));
    cluster.start().await;
    let [one, two, three] = [1, 2, 3].map(|node| cluster.node(node));
    one.sql("create table despite (id int primary key)").await;
    cluster.all_show("select count(*) from despite", &["0"]).await;
    // Nobody else is there to be asked for what node 3 sends.
    two.stop();
    three.stop();
    let impostor = Impostor::start(&cluster);
    impostor.asks().await;
    for (number, words) in STAGES.iter().enumerate() {
        impostor.stage.store(number, Ordering::SeqCst);
        eventually(&format!("node 1 refuses it: {words}"), NOTICED, async || {
            let lane = lane(one, 3).await?;
            let told = lane["fetch_error"].as_str().is_some_and(|error| error.contains(words));
            if told { Ok(()) } else { Err(lane.to_string()) }
        })
        .await;
    }
    // Everybody else goes on meanwhile, in both directions.
    two.start();
    for id in 1..=3 {
        one.sql(&format!("insert into despite values ({id})")).await;
    }
    eventually("node 2 has the rows of node 1", NOTICED, async || {
        two.shows("select count(*) from despite", &["3"]).await
    })
    .await;
    two.sql("insert into despite values (4)").await;
    eventually("node 1 has the row of node 2", NOTICED, async || {
        one.shows("select count(*) from despite", &["4"]).await
    })
    .await;
    impostor.acknowledges(one).await;

    // The real one comes back: nothing of the garbage is anywhere.
    impostor.stop.cancel();
    impostor.running.await.unwrap().unwrap();
    three.start();
    cluster.wait_ready().await;
    three.sql("insert into despite values (5)").await;
    cluster.all_show("select count(*) from despite", &["5"]).await;
    cluster.assert_equal_rows().await;
}
