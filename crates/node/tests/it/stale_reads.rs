//! What is promised of reads holds while an applier is paused and a node is lost: a session sees what it has written
//! and never less than before, a global read all that was acknowledged to anybody. The same harness shows that weaker
//! levels promise less, so that it can fail.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use synapsedb_dev::client::{Server, Session};
use synapsedb_dev::{Cluster, Node, eventually};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::{NOTICED, binary};

/// How long each level is tried at least.
const TRIED: Duration = Duration::from_secs(4);
/// How many answered reads each level must have, which a busy machine needs longer for.
const ENOUGH: u64 = 60;
/// How long each level is tried at most.
const TRIED_AT_MOST: Duration = Duration::from_secs(60);
/// How long an applier is paused at a time.
const PAUSED: Duration = Duration::from_millis(900);
/// Registers, each written by one task alone; in the first one's writes all are interested.
const REGISTERS: usize = 5;

/// What a level has shown.
#[derive(Debug, Default)]
struct Tally {
    reads: u64,
    /// Reads that did not show what their session had written.
    not_own: u64,
    /// Reads that showed less than an earlier one of their session.
    back: u64,
    /// Reads that did not show what had been acknowledged to somebody before they began.
    missed: u64,
    /// Errors by their code; a lost connection has none.
    errors: BTreeMap<String, u64>,
}

impl Tally {
    fn add(&mut self, other: Self) {
        self.reads += other.reads;
        self.not_own += other.not_own;
        self.back += other.back;
        self.missed += other.missed;
        for (code, count) in other.errors {
            *self.errors.entry(code).or_default() += count;
        }
    }
}

/// What the tasks of one level share.
struct World {
    read: Server,
    write: Server,
    level: &'static str,
    /// By register, the last value whose write was acknowledged.
    acknowledged: [AtomicU64; REGISTERS],
    /// How many reads were answered.
    reads: AtomicU64,
    over: AtomicBool,
}

/// A client: its session, and what the session must show at least.
struct Client {
    world: Arc<World>,
    server: Server,
    session: Option<Session>,
    register: usize,
    written: u64,
    seen: u64,
    tally: Tally,
}

impl Client {
    fn new(world: &Arc<World>, server: &Server, register: usize) -> Self {
        let (world, server) = (Arc::clone(world), server.clone());
        let tally = Tally::default();
        Self { world, server, session: None, register, written: 0, seen: 0, tally }
    }

    /// Runs a statement; a session that is lost is replaced by one that has promised nothing yet.
    async fn run(&mut self, sql: &str) -> Option<Vec<String>> {
        if self.session.as_ref().is_none_or(|session| session.is_closed()) {
            let session = self.server.try_session().await.ok()?;
            let level = format!("set synapsedb.consistency = {}", self.world.level);
            session.rows(&level).await.ok()?;
            (self.session, self.written, self.seen) = (Some(session), 0, 0);
        }
        let answer = self.session.as_ref()?.rows(sql).await;
        answer.inspect_err(|error| self.count(error)).ok()
    }

    fn count(&mut self, error: &tokio_postgres::Error) {
        let code = error.code().map_or("lost".to_owned(), |code| code.code().to_owned());
        *self.tally.errors.entry(code).or_default() += 1;
    }

    /// Whether the write was acknowledged.
    async fn write(&mut self, value: u64) -> bool {
        let register = self.register;
        let sql = format!("update register set v = {value} where id = {register} returning v");
        if self.run(&sql).await.is_none_or(|rows| rows.len() != 1) {
            return false;
        }
        self.written = value;
        self.world.acknowledged[register].fetch_max(value, Ordering::SeqCst);
        true
    }

    async fn read(&mut self) {
        let acknowledged = self.world.acknowledged[self.register].load(Ordering::SeqCst);
        let sql = format!("select v from register where id = {}", self.register);
        let Some(rows) = self.run(&sql).await else { return };
        let value: u64 = rows[0].parse().unwrap();
        self.tally.reads += 1;
        self.world.reads.fetch_add(1, Ordering::SeqCst);
        self.tally.not_own += u64::from(value < self.written);
        self.tally.back += u64::from(value < self.seen);
        self.tally.missed += u64::from(value < acknowledged);
        self.seen = self.seen.max(value);
    }

    fn is_over(&self) -> bool {
        self.world.over.load(Ordering::SeqCst)
    }
}

/// Writes and reads in one session of the read endpoint.
async fn writes_and_reads(mut client: Client) -> Tally {
    let mut value = 0;
    while !client.is_over() {
        value += 1;
        client.write(value).await;
        client.read().await;
        client.read().await;
    }
    client.tally
}

/// Writes at the write endpoint, and carries what it has seen there to a session of the read endpoint.
async fn carries(mut writer: Client, mut reader: Client) -> Tally {
    let mut value = 0;
    while !writer.is_over() {
        value += 1;
        if writer.write(value).await
            && let Some(token) = writer.run("show synapsedb.token").await
            && reader.run(&format!("set synapsedb.token = '{}'", token[0])).await.is_some()
        {
            // The token goes with it, so this session must show what the other has written.
            reader.written = value;
        }
        reader.read().await;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    reader.tally.add(writer.tally);
    reader.tally
}

/// Only reads what somebody else writes.
async fn watches(mut client: Client) -> Tally {
    while !client.is_over() {
        client.read().await;
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    client.tally
}

/// Holds what a node applies back, as long as the session lives: it locks what all others have just written.
async fn pause(cluster: &Cluster, paused: &Node) -> Session {
    let lock = paused.session().await;
    lock.rows("begin; lock table gate in access exclusive mode").await.unwrap();
    for node in cluster.nodes().iter().filter(|node| node.number() != paused.number()) {
        let sql = format!("update gate set v = v + 1 where id = {}", node.number());
        // One of them may be away just now.
        let _ = node.server().try_rows(&sql).await;
    }
    lock
}

/// So often the level that promises nothing is tried until something stale was read.
const EVENTUAL_TRIES: u32 = 3;

/// Tries a level while one node's applier is paused again and again and another node's server is lost.
async fn tried(cluster: &Cluster, level: &'static str, paused: &Node, lost: &Node) -> Tally {
    cluster.node(1).sql("update register set v = 0").await;
    let zeros = vec!["0"; REGISTERS];
    cluster.all_show("select v from register order by id", &zeros).await;
    let world = Arc::new(World {
        read: cluster.read_endpoint(),
        write: cluster.write_endpoint(),
        level,
        acknowledged: Default::default(),
        reads: AtomicU64::new(0),
        over: AtomicBool::new(false),
    });
    let client = |server: &Server, register| Client::new(&world, server, register);
    let mut tasks = JoinSet::new();
    for register in [0, 1] {
        tasks.spawn(carries(client(&world.write, register), client(&world.read, register)));
    }
    for register in 2..REGISTERS {
        tasks.spawn(writes_and_reads(client(&world.read, register)));
    }
    for _ in 0..4 {
        tasks.spawn(watches(client(&world.read, 0)));
    }
    let begun = tokio::time::Instant::now();
    for round in 0.. {
        let lock = pause(cluster, paused).await;
        tokio::time::sleep(PAUSED / 2).await;
        if round % 4 == 1 {
            lost.kill_postgres();
        }
        tokio::time::sleep(PAUSED / 2).await;
        lock.rows("rollback").await.unwrap();
        let enough = world.reads.load(Ordering::SeqCst) >= ENOUGH && begun.elapsed() >= TRIED;
        if enough || begun.elapsed() >= TRIED_AT_MOST {
            break;
        }
        tokio::time::sleep(PAUSED / 3).await;
    }
    world.over.store(true, Ordering::SeqCst);
    let mut tally = Tally::default();
    while let Some(ended) = tasks.join_next().await {
        tally.add(ended.unwrap());
    }
    cluster.wait_ready().await;
    eprintln!("{level}: {tally:?}");
    assert!(tally.reads >= ENOUGH, "{level}: hardly anything was read: {tally:?}");
    tally
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_show_what_their_level_promises() {
    let cluster = binary().lay_out(3);
    for node in cluster.nodes() {
        node.configure("router.read_lag_max_ms", 4_000);
    }
    cluster.start().await;
    let port = cluster.write_endpoint().value("select current_setting('port')").await;
    let is_primary = |node: &&Node| node.server().port.to_string() == port;
    let primary = cluster.nodes().iter().find(is_primary).unwrap();
    let others: Vec<&Node> = cluster.nodes().iter().filter(|node| !is_primary(node)).collect();
    let (paused, lost) = (others[0], others[1]);
    cluster
        .node(1)
        .sql(&format!(
            "create table gate (id int primary key, v int); insert into gate select i, 0 from generate_series(1, 3) i;
             create table register (id int primary key, v bigint);
             insert into register select i, 0 from generate_series(0, {REGISTERS} - 1) i"
        ))
        .await;
    cluster.all_show("select count(*) from register", &[&REGISTERS.to_string()]).await;

    let session = tried(&cluster, "session", paused, lost).await;
    assert_eq!((session.not_own, session.back), (0, 0), "{session:?}");
    assert!(session.missed > 0, "nothing was stale, so nothing was tried: {session:?}");

    let global = tried(&cluster, "global", paused, lost).await;
    assert_eq!((global.not_own, global.back, global.missed), (0, 0, 0), "{global:?}");

    // On a machine full of other tests the clients may seldom meet the paused node.
    let mut eventual = tried(&cluster, "eventual", paused, lost).await;
    for _ in 1..EVENTUAL_TRIES {
        if eventual.not_own == 0 || eventual.back == 0 {
            eventual.add(tried(&cluster, "eventual", paused, lost).await);
        }
    }
    assert!(eventual.not_own > 0 && eventual.back > 0, "the harness finds nothing: {eventual:?}");

    a_node_that_is_far_behind_is_not_read_from(&cluster, paused).await;
    a_silent_member_is_named_and_its_tokens_hold(&cluster, primary).await;
}

/// So long every router takes at most to hear how far a node is behind: a few `replication.probe_interval_ms`.
const HEARD: Duration = Duration::from_secs(3);

/// Its lag is above `router.read_lag_max_ms`: sessions leave it, and are told.
async fn a_node_that_is_far_behind_is_not_read_from(cluster: &Cluster, paused: &Node) {
    // Were all of them behind, all would be read from; and what was behind before it is paused catches up.
    cluster.assert_equal_rows().await;
    let old =
        "select node from synapsedb.probe where clock_timestamp() - written_at > interval '3 s'";
    for node in cluster.nodes() {
        eventually("it has heard of every node", NOTICED, async || node.shows(old, &[]).await)
            .await;
    }
    // What the routers have heard of it may still be from before.
    tokio::time::sleep(HEARD).await;
    let number = paused.number();
    let lock = pause(cluster, paused).await;
    let session = cluster.read_endpoint().session().await;
    eventually("it is said that the node is behind", NOTICED, async || {
        let told = session.rows("show synapsedb.last_route").await.map_err(|e| e.to_string())?;
        let behind = format!("; node {number} is ");
        if !told[0].contains(&behind) || told[0].starts_with(&format!("node {number}")) {
            return Err(told[0].clone());
        }
        let page = statistics(cluster).await.map_err(|error| error.to_string())?;
        let line = page.lines().find(|line| line.starts_with(&format!("read,node{number},")));
        let line = line.ok_or("no line of the node")?;
        if line.contains(",NOLB,") && line.contains("ms behind") {
            Ok(())
        } else {
            Err(line.into())
        }
    })
    .await;
    // Every worker of every router has to hear it.
    tokio::time::sleep(HEARD).await;
    for _ in 0..100 {
        let session = cluster.read_endpoint().session().await;
        let port = session.rows("select current_setting('port')").await.unwrap();
        if port == [paused.server().port.to_string()] {
            let told = session.rows("show synapsedb.last_route").await.unwrap();
            panic!("one reads there: {told:?}\n{}", statistics(cluster).await.unwrap());
        }
    }
    lock.rows("rollback").await.unwrap();
    eventually("it is read from again", NOTICED, async || {
        let told = session.rows("show synapsedb.last_route").await.map_err(|e| e.to_string())?;
        if told[0].contains("behind") { Err(told[0].clone()) } else { Ok(()) }
    })
    .await;
}

/// The statistics of the router, in the columns of HAProxy.
pub async fn statistics(cluster: &Cluster) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", cluster.ports().stats())).await?;
    stream.write_all(b"GET /stats;csv HTTP/1.0\r\nhost: localhost\r\n\r\n").await?;
    let mut page = String::new();
    stream.read_to_string(&mut page).await?;
    Ok(page)
}

/// Nobody knows what a member has acknowledged that does not answer: a global read says so, others go on, also those
/// that must see what is known to have come from it.
async fn a_silent_member_is_named_and_its_tokens_hold(cluster: &Cluster, lost: &Node) {
    let write = cluster.write_endpoint().session().await;
    write.rows("update register set v = 1000000 where id = 0").await.unwrap();
    let token = write.rows("show synapsedb.token").await.unwrap().remove(0);
    assert!(token.contains(&format!("{}=", lost.number())), "{token}");
    cluster.all_show("select v from register where id = 0", &["1000000"]).await;
    // So long that every agent has heard how far it was.
    tokio::time::sleep(Duration::from_secs(1)).await;
    lost.kill_agent();
    lost.kill_postgres();
    let read = cluster.read_endpoint();
    let carried = format!("set synapsedb.token = '{token}'");
    eventually("a session sees what the member had committed", NOTICED, async || {
        let session = read.try_session().await.map_err(|error| format!("{error:#}"))?;
        let mut rows = Vec::new();
        for sql in [&carried, "select v from register where id = 0"] {
            rows = session.rows(sql).await.map_err(|error| format!("{error:?}"))?;
        }
        if rows == ["1000000"] { Ok(()) } else { panic!("a stale row: {rows:?}") }
    })
    .await;
    eventually("a global read names the member", NOTICED, async || {
        let session = read.try_session().await.map_err(|error| format!("{error:#}"))?;
        session.rows("set synapsedb.consistency = global").await.map_err(|e| e.to_string())?;
        let Err(error) = session.rows("select v from register").await else {
            return Err("it was answered".to_owned());
        };
        let error = error.as_db_error().ok_or("no error of the router's")?;
        let named = error.message().contains(&format!("node {}", lost.number()));
        if error.code().code() != "SY002" || !named {
            return Err(format!("{error}"));
        }
        // The session goes on.
        for sql in ["set synapsedb.consistency = session", "select count(*) from register"] {
            session.rows(sql).await.map_err(|error| format!("{sql}: {error:?}"))?;
        }
        Ok(())
    })
    .await;
    lost.start();
    cluster.wait_ready().await;
    let session = read.session().await;
    session.rows("set synapsedb.consistency = global").await.unwrap();
    eventually("global reads go on", NOTICED, async || {
        session.rows("select v from register").await.map(drop).map_err(|error| error.to_string())
    })
    .await;
}
