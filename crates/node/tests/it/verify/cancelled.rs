//! One comparison at a time, which can be cancelled.

use std::time::Duration;

use serde_json::Value;
use synapsedb_dev::{HttpPort, eventually};

use super::{ALONE, verify};
use crate::{NOTICED, binary, shared};

#[tokio::test(flavor = "multi_thread")]
async fn one_comparison_at_a_time_and_it_can_be_cancelled() {
    let _alone = ALONE.lock().await;
    let cluster = shared().await;
    cluster.node(1).sql("create table held (id int primary key)").await;
    cluster.all_show("select count(*) from held", &["0"]).await;
    let lock = cluster.node(2).session().await;
    lock.rows("begin; lock table held").await.unwrap();
    let data = cluster.data().to_str().unwrap().to_owned();
    let first = tokio::task::spawn_blocking(move || {
        binary().run(&["verify", "--data", &data, "--node", "1", "held"])
    });
    let mut id = String::new();
    eventually("the comparison runs", NOTICED, async || {
        let jobs = cluster.node(1).http(HttpPort::Raft, "/replication/verify").await;
        let last =
            jobs["jobs"].as_array().and_then(|jobs| jobs.last()).cloned().unwrap_or_default();
        id = last["id"].as_str().unwrap_or_default().to_owned();
        if last["state"] == "running" && last["table"] == "held" {
            Ok(())
        } else {
            Err(format!("{last}"))
        }
    })
    .await;
    let data = cluster.data().to_str().unwrap();
    let second = binary().run(&["verify", "--data", data, "--node", "1", "held"]);
    let said = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(second.status.code() == Some(1) && said.contains(&id), "{said}");
    let url = cluster.node(1).url(HttpPort::Raft, &format!("/replication/verify/{id}"));
    tokio::task::spawn_blocking(move || ureq::delete(url).call().unwrap()).await.unwrap();
    let first = first.await.unwrap();
    let said = String::from_utf8_lossy(&first.stdout).into_owned();
    assert!(first.status.code() == Some(1) && said.contains("CANCELLED"), "{said}");
    lock.rows("commit").await.unwrap();
    let (code, job) = verify(&cluster, &["held"]);
    assert_eq!(code, 0, "{job:#}");
    assert!(cluster.node(1).metric("synapsedb_replication_verify_jobs_total", "").await >= 1.0);
}

/// Starts a comparison and answers its id.
fn started(node: &str, table: &str) -> String {
    let asked = serde_json::json!({ "table": table });
    let mut answer = ureq::post(format!("{node}/replication/verify")).send_json(asked).unwrap();
    let job: Value = answer.body_mut().read_json().unwrap();
    job["id"].as_str().unwrap().to_owned()
}

/// Waits until a comparison is over, and answers it.
fn ended(node: &str, id: &str) -> Value {
    loop {
        let mut answer = ureq::get(format!("{node}/replication/verify/{id}")).call().unwrap();
        let job: Value = answer.body_mut().read_json().unwrap();
        if !matches!(job["state"].as_str(), Some("waiting" | "running")) {
            return job;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// What a comparison had asked when it was cancelled may arrive after its end.
#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_comparison_leaves_no_node_taken() {
    let _alone = ALONE.lock().await;
    let cluster = shared().await;
    cluster.node(1).sql("create table cancelled (id int primary key)").await;
    cluster.all_show("select count(*) from cancelled", &["0"]).await;
    let [first, other] = [1, 3].map(|number| cluster.node(number).url(HttpPort::Raft, ""));
    let rounds = move || {
        for round in 0..100 {
            let id = started(&first, "cancelled");
            std::thread::sleep(Duration::from_micros(500 * (round % 20)));
            ureq::delete(format!("{first}/replication/verify/{id}")).call().unwrap();
            ended(&first, &id);
            let next = ended(&other, &started(&other, "cancelled"));
            assert_eq!(next["verdict"], "equal", "round {round}: {next:#}");
        }
    };
    tokio::task::spawn_blocking(rounds).await.unwrap();
}
