//! The HTTP ports: what every one of them answers, and what those of later components say.

use serde_json::Value;
use synapsedb_dev::HttpPort;

use crate::shared;

const PORTS: [HttpPort; 4] =
    [HttpPort::Raft, HttpPort::Gossip, HttpPort::Deadlock, HttpPort::Backup];

#[tokio::test(flavor = "multi_thread")]
async fn every_port_tells_health_readiness_status_and_metrics() {
    let cluster = shared().await;
    for node in cluster.nodes() {
        for port in PORTS {
            for path in ["/health", "/ready", "/status", "/openapi.json"] {
                let body = node.http(port, path).await;
                assert!(body.is_object(), "{port:?} {path}: {body}");
            }
            let (status, text) = node.try_http(port, "/metrics").await.unwrap();
            assert_eq!(status, 200);
            assert!(text.contains("synapsedb_") && text.trim_end().ends_with("# EOF"), "{text}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_description_names_every_route_that_answers() {
    let cluster = shared().await;
    let node = cluster.node(1);
    let document = node.http(HttpPort::Raft, "/openapi.json").await;
    let paths = document["paths"].as_object().unwrap();
    for path in ["/health", "/ready", "/status", "/raft/status", "/gossip/members"] {
        assert!(paths.contains_key(path), "{path} is not described: {:?}", paths.keys());
    }
    let (status, _) = node.try_http(HttpPort::Raft, "/raft/status").await.unwrap();
    assert_eq!(status, 200);
    let (status, _) = node.try_http(HttpPort::Gossip, "/gossip/members").await.unwrap();
    assert_eq!(status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_built_yet_says_so() {
    let cluster = shared().await;
    for (port, path) in [
        (HttpPort::Deadlock, "/deadlock/graph"),
        (HttpPort::Deadlock, "/deadlock/stats"),
        (HttpPort::Backup, "/backup/status"),
        (HttpPort::Backup, "/backup/list"),
    ] {
        let (status, text) = cluster.node(2).try_http(port, path).await.unwrap();
        let body: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(
            (status, body["code"].as_str()),
            (501, Some("not_implemented")),
            "{path}: {text}"
        );
        assert!(body["message"].is_string());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_path_is_a_json_error() {
    let cluster = shared().await;
    let (status, text) = cluster.node(1).try_http(HttpPort::Raft, "/no/such/path").await.unwrap();
    let body: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(status, 404);
    assert!(body["code"].is_string() && body["message"].is_string(), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_web_page_of_somebody_else_cannot_begin_a_repair() {
    let cluster = shared().await;
    for path in ["/replication/verify", "/replication/quarantine/1/skip"] {
        let url = cluster.node(1).url(HttpPort::Raft, path);
        let answer = tokio::task::spawn_blocking(move || {
            // What a form can send without being asked: no JSON by its type.
            let agent: ureq::Agent =
                ureq::Agent::config_builder().http_status_as_error(false).build().into();
            agent.post(url).content_type("text/plain").send("{}").unwrap().status().as_u16()
        });
        assert_eq!(answer.await.unwrap(), 415, "{path}");
    }
}
