//! What clients are told of a COMMIT, or of a write outside a transaction, whose server is killed meanwhile: it is the
//! truth, on all nodes, and the session goes on.

mod load;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use load::{Load, Told, Way};
use postgres_protocol::message::frontend;
use rustix::process::Signal;
use synapsedb_dev::client::{Server, Session, words};
use synapsedb_dev::shared::Borrowed;
use synapsedb_dev::{Cluster, Node, Shared, eventually, process};
use tokio::sync::Mutex;

use crate::router_transparency::wire::Wire;
use crate::{NOTICED, agent, binary};

static CLUSTER: Shared = Shared::new();
static TURN: Mutex<()> = Mutex::const_new(());

/// Answers of which nothing is known, of all those to interrupted writes: as few as this.
const UNKNOWN_OF_HUNDRED_MAX: usize = 20;

/// The cluster of these tests. On a machine that is busy with other tests a server comes back late.
async fn shared() -> Borrowed {
    let patient = |cluster: &Cluster| {
        for node in cluster.nodes() {
            node.configure("router.resolve_wait_ms", 10_000);
        }
    };
    CLUSTER.configured(binary(), patient).await
}

/// The node whose server answers at the write endpoint.
async fn primary(cluster: &Cluster) -> &Node {
    let mut number = String::new();
    eventually("a primary answers", NOTICED, async || {
        let port = cluster.write_endpoint().try_rows("select current_setting('port')").await;
        number = port.map_err(|error| format!("{error:#}"))?.concat();
        Ok(())
    })
    .await;
    cluster.nodes().iter().find(|node| node.server().port.to_string() == number).unwrap()
}

/// Process ids of the sessions of clients on a node's server.
async fn backends(node: &Node, but: &str) -> Vec<String> {
    let sql = format!(
        "select pid from pg_stat_activity
         where usename = 'synapsedb' and backend_type = 'client backend' and pid <> pg_backend_pid() {but}"
    );
    agent(node).try_rows(&sql).await.unwrap_or_default()
}

fn kill(pids: &[String]) {
    for pid in pids {
        process::send(pid.parse().unwrap(), Signal::KILL);
    }
}

/// Kills the whole server at once: its postmaster and every process of it.
fn kill_server(node: &Node) {
    let lock = std::fs::read_to_string(node.pgdata().join("postmaster.pid")).unwrap();
    let postmaster = lock.lines().next().unwrap().to_owned();
    let children = format!("/proc/{postmaster}/task/{postmaster}/children");
    let children = std::fs::read_to_string(children).unwrap_or_default();
    let pids = std::iter::once(postmaster).chain(children.split_whitespace().map(str::to_owned));
    kill(&pids.collect::<Vec<_>>());
}

/// Waits until the server takes sessions again, or another one is the primary.
async fn recovered(cluster: &Cluster) {
    primary(cluster).await;
    cluster.wait_ready().await;
}

async fn outcomes(cluster: &Cluster, outcome: &str) -> f64 {
    let mut sum = 0.0;
    for node in cluster.nodes() {
        let label = format!("outcome=\"{outcome}\"");
        sum += node.metric("synapsedb_router_outcomes_total", &label).await;
    }
    sum
}

/// How many took effect, how many did not, and of how many that is not known.
async fn all_outcomes(cluster: &Cluster) -> [f64; 3] {
    [
        outcomes(cluster, "committed").await,
        outcomes(cluster, "aborted").await,
        outcomes(cluster, "unknown").await,
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_told_of_an_interrupted_commit_is_the_truth() {
    let _turn = TURN.lock().await;
    let cluster = shared().await;
    cluster.node(1).sql("create table told (id bigint primary key)").await;
    cluster.all_show("select count(*) from told", &["0"]).await;
    let ways =
        [Way::Block, Way::Block, Way::Batch, Way::Batch, Way::Single, Way::Single, Way::Query];
    let before = all_outcomes(&cluster).await;
    let load = Load::start(&cluster.write_endpoint(), "told", &ways);
    for round in 0..6 {
        tokio::time::sleep(Duration::from_millis(400)).await;
        let node = primary(&cluster).await;
        match round % 3 {
            // One session: the server ends all others and recovers.
            0 => kill(&backends(node, "limit 1").await),
            1 => kill_server(node),
            _ => node.kill_postgres(),
        }
        recovered(&cluster).await;
        // Sessions alone: the server lives on.
        let node = primary(&cluster).await;
        let ended =
            "select pg_terminate_backend(pid) from pg_stat_activity where usename = 'synapsedb'";
        let _ = agent(node).try_rows(ended).await;
    }
    let told = load.finish().await;
    recovered(&cluster).await;
    cluster.assert_equal_rows().await;
    let counts = told.compare(&cluster.node(1).rows("select id from told").await);
    eprintln!("killed servers, what writers were told: {counts}");
    let [committed, aborted, unknown] = {
        let after = all_outcomes(&cluster).await;
        std::array::from_fn(|outcome| after[outcome] - before[outcome])
    };
    eprintln!("interrupted: committed {committed}, aborted {aborted}, unknown {unknown}");
    assert!(committed + aborted > 0.0, "nothing was interrupted, so that nothing is shown");
    // A write by Query carries no marker.
    let marked = told.count(|way, told| way != Way::Query && told == Told::Unknown);
    let most = (committed + aborted + unknown) as usize * UNKNOWN_OF_HUNDRED_MAX / 100;
    assert!(marked <= most.max(1), "{marked} of {committed} + {aborted} + {unknown} are unknown");
    let lost = told.count(|_, told| told == Told::Lost);
    assert_eq!(lost, 0, "no agent was killed, and a connection of a client was lost: {counts}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_is_killed_under_load() {
    let _turn = TURN.lock().await;
    let cluster = shared().await;
    cluster.node(1).sql("create table counted (id bigint primary key)").await;
    cluster.all_show("select count(*) from counted", &["0"]).await;
    let before = primary(&cluster).await;
    let ways = [Way::Block, Way::Batch, Way::Single, Way::Query];
    let load = Load::start(&cluster.write_endpoint(), "counted", &ways);
    let stop = Arc::new(AtomicBool::new(false));
    let readers: Vec<_> =
        (0..6).map(|_| tokio::spawn(read(cluster.read_endpoint(), stop.clone()))).collect();
    tokio::time::sleep(Duration::from_secs(1)).await;
    before.kill_agent();
    kill_server(before);
    eventually("another node is the primary", NOTICED, async || {
        let number = primary(&cluster).await.number();
        if number == before.number() { Err("still the same".to_owned()) } else { Ok(()) }
    })
    .await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    stop.store(true, Ordering::Relaxed);
    let (mut answered, mut lost) = (0, 0);
    for reader in readers {
        let (of_one, lost_of_one) = reader.await.unwrap();
        (answered, lost) = (answered + of_one, lost + lost_of_one);
    }
    let told = load.finish().await;
    before.start();
    cluster.wait_ready().await;
    cluster.assert_equal_rows().await;
    let counts = told.compare(&cluster.node(1).rows("select id from counted").await);
    eprintln!(
        "a node killed: readers got {answered} answers and no error; {lost} connections were lost"
    );
    eprintln!("a node killed, what writers were told: {counts}");
    assert!(answered > 0);
}

/// Reads until it is stopped: how many answers it got, and how many connections were lost with their agent.
async fn read(endpoint: Server, stop: Arc<AtomicBool>) -> (usize, usize) {
    let (mut answered, mut lost) = (0, 0);
    while !stop.load(Ordering::Relaxed) {
        // An agent that is killed while it takes the connection is one that is lost.
        let Ok(session) = endpoint.try_session().await else {
            lost += 1;
            continue;
        };
        while !stop.load(Ordering::Relaxed) {
            match session.rows("select count(*) from counted where id < 0").await {
                Ok(rows) => {
                    assert_eq!(rows, ["0"]);
                    answered += 1;
                }
                Err(error) if error.code().is_none() => {
                    lost += 1;
                    break;
                }
                Err(error) => panic!("a read failed: {}", words(&error)),
            }
        }
    }
    (answered, lost)
}

/// Sends a COMMIT that takes long before it commits, and kills the session in the meantime; what the client is told.
async fn interrupted(
    cluster: &Cluster,
    session: &Session,
    end: impl AsyncFnOnce(&Node, String),
) -> String {
    let node = primary(cluster).await;
    let pid: i32 = session.query_one("select pg_backend_pid()", &[]).await.unwrap().get(0);
    let ended = async {
        eventually("the COMMIT is under way", NOTICED, async || {
            let sql = format!(
                "select 1 from pg_stat_activity where pid = {pid} and wait_event_type is not null
                               and query ~* '^commit' and state = 'active'"
            );
            match agent(node).try_rows(&sql).await.unwrap_or_default().len() {
                1 => Ok(()),
                _ => Err("not yet".to_owned()),
            }
        })
        .await;
        end(node, pid.to_string()).await;
    };
    let (answer, ()) = tokio::join!(session.batch_execute("commit"), ended);
    match answer {
        Ok(()) => "COMMIT".to_owned(),
        Err(error) => words(&error),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_fails_late_is_told_as_such_and_the_session_goes_on() {
    let _turn = TURN.lock().await;
    let cluster = shared().await;
    let slow = "create table slow (id int primary key);
        create function slowly() returns trigger language plpgsql as
            $$ begin perform pg_sleep(30); return null; end $$;
        create constraint trigger slowly after insert on slow deferrable initially deferred
            for each row execute function slowly()";
    primary(&cluster).await.sql(slow).await;
    let session = cluster.write_endpoint().session().await;
    session.batch_execute("begin; insert into slow values (1)").await.unwrap();
    let told = interrupted(&cluster, &session, async |node, pid| {
        agent(node).sql(&format!("select pg_terminate_backend({pid})")).await;
    })
    .await;
    assert!(told.contains("40001") && told.contains("did not take effect"), "{told}");
    assert_eq!(session.rows("select count(*) from slow").await.unwrap(), ["0"]);
    // The whole server is gone for a while.
    session.batch_execute("begin; insert into slow values (2)").await.unwrap();
    let told = interrupted(&cluster, &session, async |node, _| kill_server(node)).await;
    assert!(told.contains("40001") && told.contains("did not take effect"), "{told}");
    recovered(&cluster).await;
    assert_eq!(session.rows("select count(*) from slow").await.unwrap(), ["0"]);
}

/// Ends the session whose commit is done and waits for other members before it is told.
async fn end_the_waiting(node: &Node) {
    let ended =
        "select pg_terminate_backend(pid) from pg_stat_activity where wait_event = 'SyncRep'";
    eventually("a commit waits for members", NOTICED, async || {
        match agent(node).try_rows(ended).await.unwrap_or_default().len() {
            0 => Err("none waits".to_owned()),
            _ => Ok(()),
        }
    })
    .await;
}

/// From now on commits that wait for members wait for a standby that never comes; or no longer.
async fn set_standby(node: &Node, name: &str) {
    agent(node).sql(&format!("alter system set synchronous_standby_names = '{name}'")).await;
    agent(node).sql("select pg_reload_conf()").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_took_effect_is_told_as_such() {
    let _turn = TURN.lock().await;
    let cluster = shared().await;
    let node = primary(&cluster).await;
    // Its commits are of class `local` until the very end, where they begin to wait: there they can be met.
    let late = "create table late (id int primary key);
        create function lately() returns trigger language plpgsql as
            $$ begin perform set_config('synchronous_commit', 'on', true); return null; end $$;
        create constraint trigger lately after insert on late deferrable initially deferred
            for each row execute function lately()";
    node.sql(late).await;
    cluster.all_show("select count(*) from late", &["0"]).await;
    let session = cluster.write_endpoint().session().await;
    let single = session.prepare("insert into late values ($1)").await.unwrap();
    let (mut wire, _) = Wire::login(&cluster.write_endpoint(), &[]).await;
    set_standby(node, "nobody").await;

    session.batch_execute("begin; insert into late values (1)").await.unwrap();
    let (told, ()) = tokio::join!(session.batch_execute("commit"), end_the_waiting(node));
    told.unwrap();
    let (told, ()) = tokio::join!(session.execute(&single, &[&2_i32]), end_the_waiting(node));
    assert_eq!(told.unwrap(), 1, "with the number of its rows");
    let mut commit = load::statement("commit", None, true);
    frontend::sync(&mut commit);
    assert_eq!(
        wire.query("begin; insert into late values (3)").await,
        ["C BEGIN", "C INSERT 0 1", "Z T"]
    );
    wire.send(&commit).await;
    let (mut told, ()) = tokio::join!(wire.answer(1), end_the_waiting(node));
    told.retain(|line| !line.starts_with("N "));
    assert_eq!(told, ["1", "2", "n", "C COMMIT", "Z I"]);
    // In a chain the first part is done, and the next one is lost.
    wire.query("begin; insert into late values (4)").await;
    let (mut told, ()) = tokio::join!(wire.query("commit and chain"), end_the_waiting(node));
    told.retain(|line| !line.starts_with("N "));
    assert_eq!(told, ["C COMMIT", "Z E"]);
    let said = wire.query("select 1").await.concat();
    assert!(said.contains("C=40001"), "{said}");
    assert_eq!(wire.query("rollback").await, ["C ROLLBACK", "Z I"]);
    // A write by Query has no marker.
    let (told, ()) = tokio::join!(wire.query("insert into late values (5)"), end_the_waiting(node));
    assert!(told.concat().contains("C=08007"), "{told:?}");
    // A transaction that was to wait for members from its beginning is not said to have them.
    session.batch_execute("begin; set local synchronous_commit = on").await.unwrap();
    session.batch_execute("insert into late values (6)").await.unwrap();
    let (told, ()) = tokio::join!(session.batch_execute("commit"), end_the_waiting(node));
    let told = words(&told.unwrap_err());
    assert!(told.contains("08007") && told.contains("took effect"), "{told}");

    set_standby(node, "\"synapsedb publisher\"").await;
    assert_eq!(session.rows("select count(*) from late").await.unwrap(), ["6"]);
    cluster.all_show("select count(*) from late", &["6"]).await;
}

/// The client finds out at its COMMIT that its transaction is lost.
#[tokio::test(flavor = "multi_thread")]
async fn a_commit_of_what_was_lost_before_is_no_success() {
    let _turn = TURN.lock().await;
    let cluster = shared().await;
    let node = primary(&cluster).await;
    let (mut wire, _) = Wire::login(&cluster.write_endpoint(), &[]).await;
    let pid = wire.query("begin; select pg_backend_pid()").await[2].replace("D ", "");
    let end = format!("select pg_terminate_backend({pid}, 5000)");
    agent(node).sql(&end).await;
    let said = wire.query("commit").await;
    assert!(said[0].contains("C=40001") && said[1..] == ["Z I"], "{said:?}");
    let pid = wire.query("begin; select pg_backend_pid()").await[2].replace("D ", "");
    agent(node).sql(&format!("select pg_terminate_backend({pid}, 5000)")).await;
    let mut commit = load::statement("commit", None, true);
    frontend::sync(&mut commit);
    wire.send(&commit).await;
    let said = wire.answer(1).await;
    assert_eq!(said[..3], ["1", "2", "n"]);
    assert!(said[3].contains("C=40001") && said[4..] == ["Z I"], "{said:?}");
    let pid = wire.query("begin; select pg_backend_pid()").await[2].replace("D ", "");
    agent(node).sql(&format!("select pg_terminate_backend({pid}, 5000)")).await;
    assert_eq!(wire.query("rollback").await, ["C ROLLBACK", "Z I"]);
}

/// The same load, and a router that was told to write no markers.
#[tokio::test(flavor = "multi_thread")]
async fn without_markers_nothing_is_known() {
    let laid_out = binary().lay_out(1);
    laid_out.node(1).configure("router.resolve_commits", false);
    laid_out.start().await;
    let cluster = laid_out;
    cluster.node(1).sql("create table told (id bigint primary key)").await;
    let ways = [Way::Block, Way::Block, Way::Block, Way::Single, Way::Single, Way::Single];
    let load = Load::start(&cluster.write_endpoint(), "told", &ways);
    let interrupted = async || outcomes(&cluster, "unknown").await > 0.0;
    for _ in 0..10 {
        tokio::time::sleep(Duration::from_millis(300)).await;
        kill(&backends(cluster.node(1), "limit 1").await);
        recovered(&cluster).await;
        if interrupted().await {
            break;
        }
    }
    let told = load.finish().await;
    let counts = told.compare(&cluster.node(1).rows("select id from told").await);
    eprintln!("without markers: {counts}");
    assert!(told.count(|_, told| told == Told::Unknown) > 0, "nothing was interrupted: {counts}");
    assert_eq!(told.count(|_, told| told == Told::TookEffect), 0);
    assert_eq!(outcomes(&cluster, "committed").await + outcomes(&cluster, "aborted").await, 0.0);
}

/// What peers send with markers is applied by compiled procedures as without them.
#[tokio::test(flavor = "multi_thread")]
async fn marked_transactions_are_applied_by_procedures() {
    let _turn = TURN.lock().await;
    let cluster = shared().await;
    let node = primary(&cluster).await;
    node.sql("create table quick (id int primary key, v text)").await;
    cluster.all_show("select count(*) from quick", &["0"]).await;
    let (routed, direct) = (cluster.write_endpoint().session().await, node.session().await);
    let other = cluster.nodes().iter().find(|other| other.number() != node.number()).unwrap();
    let procedures = format!(
        "select count(*) from pg_proc where pronamespace = 'synapsedb'::regnamespace
         and proname ~ '^apply_{}_' and prosrc ~ '\\mquick\\M'",
        node.number()
    );
    let insert = "insert into quick values ($1, 'x')";
    let (by_router, by_server) =
        (routed.prepare(insert).await.unwrap(), direct.prepare(insert).await.unwrap());
    for id in 0..200_i32 {
        routed.execute(&by_router, &[&id]).await.unwrap();
    }
    cluster.all_show("select count(*) from quick", &["200"]).await;
    assert_eq!(other.value(&procedures).await, "1", "with markers no procedure is made");
    for id in 1_000..1_200_i32 {
        direct.execute(&by_server, &[&id]).await.unwrap();
    }
    cluster.all_show("select count(*) from quick", &["400"]).await;
    assert_eq!(other.value(&procedures).await, "1", "without a marker it is another shape");
    // A transaction of which peers get nothing but its marker is in nobody's way.
    node.sql("create unlogged table only_here (id int)").await;
    routed.batch_execute("begin; insert into only_here values (1)").await.unwrap();
    routed.batch_execute("commit").await.unwrap();
    routed.execute(&by_router, &[&5_000_i32]).await.unwrap();
    cluster.all_show("select count(*) from quick", &["401"]).await;
    node.sql("drop table only_here").await;
}
