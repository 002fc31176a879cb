//! A flipped bit or a missing file in what the agent keeps is found by its checksum and refused, never served.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use synapsedb_dev::{HttpPort, eventually};

use crate::{NOTICED, agent, cluster};

/// All files below a folder that end in `ending`.
fn files(folder: &Path, ending: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path, ending));
        } else if path.to_string_lossy().ends_with(ending) {
            found.push(path);
        }
    }
    found
}

/// Flips one bit of every place where `text` stands in the file; says how many there were.
fn flip(path: &Path, text: &[u8]) -> usize {
    let mut bytes = fs::read(path).unwrap();
    let places: Vec<_> = (0..bytes.len().saturating_sub(text.len()))
        .filter(|at| bytes[*at..].starts_with(text))
        .collect();
    for at in &places {
        bytes[at + text.len() / 2] ^= 1;
    }
    fs::write(path, bytes).unwrap();
    places.len()
}

fn complains(log: &str) {
    let words = ["checksum", "corrupt", "damaged"];
    let log = log.to_lowercase();
    assert!(words.iter().any(|word| log.contains(word)), "no word of {words:?} in:\n{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_bit_in_the_spool_is_found() {
    let cluster = cluster(3).await;
    // Node 3 is away, so that the spool of node 1 has to keep the rows for it.
    cluster.node(1).sql("create table spooled (id int primary key, v text)").await;
    cluster.all_show("select count(*) from spooled", &["0"]).await;
    cluster.node(3).stop();
    for id in 1..=50 {
        cluster
            .node(1)
            .sql(&format!("insert into spooled values ({id}, 'a value to be found {id}')"))
            .await;
    }
    synapsedb_dev::eventually("node 2 has the rows", NOTICED, async || {
        cluster.node(2).shows("select count(*) from spooled", &["50"]).await
    })
    .await;
    cluster.node(1).stop();
    let places: usize = files(&cluster.node(1).folder().join("spool"), ".seg")
        .iter()
        .map(|file| flip(file, b"a value to be found 17"))
        .sum();
    assert!(places > 0, "the row is not in the spool");
    cluster.node(3).start();
    let log = cluster.node(1).refuses_to_start(Duration::from_secs(60));
    complains(&log);
    assert!(log.contains(".seg"), "the file is not named:\n{log}");
    let wrong = "select count(*) from spooled where v not like 'a value to be found %'";
    synapsedb_dev::eventually("node 3 shows no wrong row", NOTICED, async || {
        cluster.node(3).shows(wrong, &["0"]).await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_bit_in_the_raft_file_is_found() {
    let cluster = cluster(3).await;
    cluster.node(2).stop();
    let address = format!("127.0.0.1:{}", cluster.node(1).peers_port());
    let found = files(&cluster.node(2).folder().join("raft"), ".redb");
    let places: usize = found.iter().map(|file| flip(file, address.as_bytes())).sum();
    assert!(places > 0, "the address of node 1 is not in {found:?}");
    complains(&cluster.node(2).refuses_to_start(Duration::from_secs(60)));
    cluster.node(1).sql("create table goes_on (id int primary key)").await;
    synapsedb_dev::eventually("node 3 goes on", NOTICED, async || {
        cluster.node(3).shows("select count(*) from goes_on", &["0"]).await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_raft_file_or_a_missing_one_is_refused() {
    let cluster = cluster(3).await;
    cluster.node(2).stop();
    let file = files(&cluster.node(2).folder().join("raft"), ".redb").remove(0);
    let bytes = fs::read(&file).unwrap();
    fs::write(&file, &bytes[..bytes.len() / 2]).unwrap();
    let log = cluster.node(2).refuses_to_start(Duration::from_secs(60));
    assert!(log.contains("redb"), "the file is not named:\n{log}");
    fs::remove_file(&file).unwrap();
    let log = cluster.node(2).refuses_to_start(Duration::from_secs(60));
    assert!(log.contains("raft"), "the file is not named:\n{log}");
    fs::write(&file, &bytes).unwrap();
    cluster.start().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_or_broken_identity_is_refused() {
    let cluster = cluster(1).await;
    cluster.node(1).stop();
    let file = cluster.node(1).folder().join("identity.json");
    let text = fs::read_to_string(&file).unwrap();
    for broken in ["", "{", "{}"] {
        fs::write(&file, broken).unwrap();
        assert!(cluster.node(1).refuses_to_start(NOTICED).contains("identity.json"));
    }
    fs::remove_file(&file).unwrap();
    assert!(cluster.node(1).refuses_to_start(NOTICED).contains("identity.json"));
    fs::write(&file, text).unwrap();
    cluster.start().await;
}

/// From PostgreSQL 16 on, an applier that is ended between the last statement of a transaction and its commit leaves
/// progress behind that was never made.
#[tokio::test(flavor = "multi_thread")]
async fn progress_that_no_commit_stands_behind_is_taken_back() {
    let cluster = cluster(3).await;
    let (one, two) = (cluster.node(1), cluster.node(2));
    one.sql("create table told (id int primary key); insert into told values (1)").await;
    cluster.all_show("select count(*) from told", &["1"]).await;
    // Node 2 gets rows and cannot apply them.
    let lock = agent(two).session().await;
    lock.rows("begin; lock table told in exclusive mode").await.unwrap();
    for id in 2..=4 {
        one.sql(&format!("insert into told values ({id})")).await;
    }
    let mut received = String::new();
    eventually("node 2 has received the rows", NOTICED, async || {
        let written = one.value("select pg_current_wal_lsn()::text").await;
        let status = two.http(HttpPort::Raft, "/replication/status").await;
        let lanes = status["lanes"].as_array().unwrap();
        let lane = lanes.iter().find(|lane| lane["origin"] == 1).unwrap();
        received = lane["received_lsn"].as_str().unwrap().to_owned();
        let behind = format!("select '{received}'::pg_lsn >= '{written}'::pg_lsn - 65536");
        match one.value(&behind).await.as_str() {
            "t" if lane["applied_lsn"] != lane["received_lsn"] => Ok(()),
            _ => Err(lane.to_string()),
        }
    })
    .await;
    two.kill_agent();
    let liar = agent(two).session().await;
    let end = "select pg_terminate_backend(pid) from pg_stat_activity where application_name like 'synapsedb apply%'";
    liar.rows(end).await.unwrap();
    eventually("the origin is free", NOTICED, async || {
        let take = "select pg_replication_origin_session_setup(roname) from pg_replication_origin
                    where roname ~ '^synapsedb_1_'";
        let taken = liar.rows(take).await;
        taken.map(|_| ()).map_err(|error| synapsedb_dev::client::words(&error))
    })
    .await;
    let lie = format!(
        "begin; select pg_current_xact_id();
         select pg_replication_origin_xact_setup('{received}', now()); rollback"
    );
    liar.rows(&lie).await.unwrap();
    let told = "select pg_replication_origin_session_progress(false)::text";
    let lied = liar.rows(told).await.unwrap() == [received];
    let version = "select current_setting('server_version_num')::int >= 160000";
    assert_eq!(lied, liar.rows(version).await.unwrap() == ["t"]);
    drop((liar, lock));
    two.start();
    cluster.all_show("select count(*) from told", &["4"]).await;
    cluster.assert_equal_rows().await;
    assert_eq!(two.log().contains("was never committed"), lied, "{}", two.log_tail());
}
