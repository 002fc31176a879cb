//! The API over real sockets.
#![allow(clippy::unwrap_used)]

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::routing::get;
use serde_json::Value;
use synapsedb_core::ids::{Incarnation, NodeId};
use tokio_util::sync::CancellationToken;

use super::*;

struct Running {
    handle: Handle,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<anyhow::Result<()>>,
    ready: Arc<AtomicBool>,
}

fn config() -> Config {
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    Config { raft: any, gossip: any, deadlock: any, backup: any, stats: any, ..Config::default() }
}

fn start(config: Config) -> Running {
    let ready = Arc::new(AtomicBool::new(false));
    let postgres = Arc::clone(&ready);
    let parts = Parts {
        identity: Identity {
            cluster_id: uuid::Uuid::from_u128(7),
            node: NodeId::new(2).unwrap(),
            uuid: uuid::Uuid::from_u128(8),
            incarnation: Incarnation::FIRST,
        },
        routes: vec![
            (Port::Raft, axum::Router::new().route("/raft/status", get(|| async { "{}" }))),
            (
                Port::Gossip,
                axum::Router::new()
                    .route("/gossip/members", get(|| async { "{}" }))
                    .route("/gossip/panic", get(panics))
                    .route("/gossip/slow", get(sleeps))
                    .route("/gossip/echo", axum::routing::post(|body: String| async { body })),
            ),
        ],
        documents: vec![],
        registry: Arc::new(crate::metrics::registry()),
        ready: Arc::new(move || {
            if postgres.load(Ordering::Relaxed) {
                vec![ReadyCheck::ready("postgres")]
            } else {
                vec![ReadyCheck::unready("postgres", "it is starting")]
            }
        }),
        status: vec![("router", Arc::new(|| serde_json::json!({"clients": 3})))],
    };
    let (handle, task) = new(config, parts).unwrap();
    let stop = CancellationToken::new();
    let task = tokio::spawn(task.run(stop.clone()));
    Running { handle, stop, task, ready }
}

async fn panics() -> &'static str {
    panic!("a defect, made on purpose")
}

async fn sleeps() -> &'static str {
    tokio::time::sleep(std::time::Duration::from_secs(3600)).await;
    "late"
}

impl Running {
    /// Sends a request as it is: the status, the head and the body of the answer.
    async fn raw(&self, port: Port, request: String) -> (u16, String, String) {
        let address = self.handle.address(port);
        tokio::task::spawn_blocking(move || {
            let mut stream = TcpStream::connect(address).unwrap();
            // The answer may come, and the connection close, before all is sent.
            let _ = stream.write_all(request.as_bytes());
            let mut answer = Vec::new();
            let _ = stream.read_to_end(&mut answer);
            let answer = String::from_utf8(answer).unwrap();
            let (head, body) = answer.split_once("\r\n\r\n").unwrap();
            let status = head.split(' ').nth(1).unwrap().parse().unwrap();
            (status, head.to_ascii_lowercase(), body.to_owned())
        })
        .await
        .unwrap()
    }

    async fn ask(&self, port: Port, method: &str, path: &str) -> (u16, String, String) {
        let request =
            format!("{method} {path} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n");
        self.raw(port, request).await
    }

    async fn error(&self, port: Port, method: &str, path: &str) -> (u16, String, String) {
        let (status, head, body) = self.ask(port, method, path).await;
        assert!(head.contains("content-type: application/json"), "{head}");
        let body: Value = serde_json::from_str(&body).unwrap();
        let text = |key: &str| body[key].as_str().unwrap().to_owned();
        (status, text("code"), text("message"))
    }

    async fn end(self) {
        self.stop.cancel();
        self.task.await.unwrap().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_port_has_the_common_routes() {
    let running = start(config());
    for port in Port::ALL {
        let (status, _, body) = running.ask(port, "GET", "/health").await;
        let health: Value = serde_json::from_str(&body).unwrap();
        assert_eq!((status, &health["status"], &health["node"]), (200, &"ok".into(), &2.into()));

        let (status, head, body) = running.ask(port, "GET", "/metrics").await;
        assert_eq!(status, 200);
        assert!(head.contains("content-type: application/openmetrics-text; version=1.0.0"));
        assert!(body.contains("synapsedb_build_info") && body.ends_with("# EOF\n"));

        let (status, _, body) = running.ask(port, "GET", "/status").await;
        let told: Value = serde_json::from_str(&body).unwrap();
        assert_eq!(status, 200);
        assert_eq!(told["components"]["router"]["status"]["clients"], 3);
        assert!(told["components"]["router"]["taken_at"].as_str().unwrap().ends_with('Z'));
        assert_eq!(told["cluster_id"], "00000000-0000-0000-0000-000000000007");

        let (status, _, body) = running.ask(port, "GET", "/openapi.json").await;
        assert_eq!(status, 200);
        serde_json::from_str::<Value>(&body).unwrap();
    }
    running.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn readiness_has_its_reasons() {
    let running = start(config());
    let (status, _, body) = running.ask(Port::Raft, "GET", "/ready").await;
    let ready: Value = serde_json::from_str(&body).unwrap();
    assert_eq!((status, &ready["ready"]), (503, &false.into()));
    assert_eq!(ready["checks"][0]["name"], "postgres");
    assert_eq!(ready["checks"][0]["reason"], "it is starting");
    running.ready.store(true, Ordering::Relaxed);
    let (status, _, body) = running.ask(Port::Backup, "GET", "/ready").await;
    let ready: Value = serde_json::from_str(&body).unwrap();
    assert_eq!((status, &ready["ready"]), (200, &true.into()));
    assert_eq!(ready["checks"][0]["reason"], Value::Null);
    running.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_route_on_the_wrong_port_names_the_right_one() {
    let running = start(config());
    assert_eq!(running.ask(Port::Raft, "GET", "/raft/status").await.0, 200);
    assert_eq!(running.ask(Port::Gossip, "GET", "/gossip/members").await.0, 200);
    for (asked, path, right) in [
        (Port::Raft, "/gossip/members", Port::Gossip),
        (Port::Gossip, "/raft/status", Port::Raft),
        (Port::Backup, "/deadlock/graph", Port::Deadlock),
        (Port::Deadlock, "/backup/list", Port::Backup),
    ] {
        let (status, code, message) = running.error(asked, "GET", path).await;
        assert_eq!((status, code.as_str()), (404, "wrong_port"));
        let address = running.handle.address(right).to_string();
        assert!(message.contains(&address), "{message}");
    }
    running.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_still_to_come_says_so() {
    let running = start(config());
    for (port, method, path) in [
        (Port::Deadlock, "GET", "/deadlock/graph"),
        (Port::Deadlock, "GET", "/deadlock/stats"),
        (Port::Backup, "GET", "/backup/status"),
        (Port::Backup, "GET", "/backup/list"),
        (Port::Backup, "POST", "/backup/create"),
        (Port::Backup, "POST", "/backup/restore/2025"),
    ] {
        let (status, code, message) = running.error(port, method, path).await;
        assert_eq!((status, code.as_str()), (501, "not_implemented"), "{path}: {message}");
    }
    running.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_refusal_has_one_shape() {
    let mut config = config();
    (config.request_timeout_ms, config.body_bytes_max, config.header_bytes_max) = (300, 100, 1000);
    let running = start(config);
    for (port, method, path, status, code) in [
        (Port::Raft, "GET", "/nothing", 404, "not_found"),
        (Port::Raft, "GET", "/raft/nothing", 404, "not_found"),
        (Port::Raft, "POST", "/health", 405, "method_not_allowed"),
        (Port::Raft, "POST", "/raft/status", 405, "method_not_allowed"),
        (Port::Backup, "GET", "/backup/create", 405, "method_not_allowed"),
        (Port::Gossip, "GET", "/gossip/panic", 500, "internal"),
        (Port::Gossip, "GET", "/gossip/slow", 503, "timeout"),
    ] {
        let (got, got_code, message) = running.error(port, method, path).await;
        assert_eq!((got, got_code.as_str()), (status, code), "{method} {path}: {message}");
    }
    let long = format!("/{}", "x".repeat(2_000));
    assert_eq!(running.error(Port::Raft, "GET", &long).await.0, 431);
    let post = |length: usize| {
        format!(
            "POST /gossip/echo HTTP/1.1\r\nHost: node\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{}",
            "x".repeat(length)
        )
    };
    assert_eq!(running.raw(Port::Gossip, post(100)).await.0, 200);
    let (status, head, body) = running.raw(Port::Gossip, post(101)).await;
    assert_eq!(status, 413);
    assert!(head.contains("application/json") && body.contains("payload_too_large"), "{body}");
    running.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_asks_nothing_is_closed() {
    let mut config = config();
    (config.idle_timeout_ms, config.connections_max) = (200, 1);
    let running = start(config);
    let address = running.handle.address(Port::Raft);
    let mut idle = tokio::task::spawn_blocking(move || {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(b"GET /health HTTP/1.1\r\nHost").unwrap();
        stream
    })
    .await
    .unwrap();
    // There is one place only: this waits until the idle connection has lost it.
    assert_eq!(running.ask(Port::Raft, "GET", "/health").await.0, 200);
    let mut rest = Vec::new();
    let _ = idle.read_to_end(&mut rest);
    assert!(!String::from_utf8_lossy(&rest).contains("200 OK"));
    running.end().await;
}

#[tokio::test]
async fn a_taken_port_is_named() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let error = listen::bind(Port::Gossip, address).unwrap_err();
    let text = format!("{error:#}");
    assert!(text.contains("gossip port") && text.contains(&address.to_string()), "{text}");
}

#[test]
fn the_document_names_each_path_and_where_it_is() {
    let addresses = Port::ALL.into_iter().map(|port| (port, Config::default().address(port)));
    let document = openapi::document(vec![], &addresses.collect());
    let json: Value = serde_json::from_str(&document.to_json().unwrap()).unwrap();
    assert!(json["openapi"].as_str().unwrap().starts_with("3.1"));
    for path in [
        "/health",
        "/ready",
        "/status",
        "/metrics",
        "/openapi.json",
        "/raft/status",
        "/gossip/members",
        "/deadlock/graph",
        "/deadlock/stats",
        "/backup/status",
        "/backup/list",
        "/backup/create",
        "/backup/restore/{id}",
    ] {
        assert!(json["paths"][path].is_object(), "{path}");
    }
    assert_eq!(Port::of_path("/stats;csv"), Some(Port::Stats));
    let server = &json["paths"]["/backup/list"]["servers"][0]["url"];
    assert_eq!(server, "http://127.0.0.1:8083");
    // Every reference leads somewhere.
    let text = json.to_string();
    for reference in text.split("\"#/").skip(1) {
        let pointer = format!("/{}", reference.split('"').next().unwrap());
        assert!(json.pointer(&pointer).is_some(), "{pointer}");
    }
}

#[test]
fn instants_are_rfc3339() {
    assert_eq!(api::rfc3339(SystemTime::UNIX_EPOCH), "1970-01-01T00:00:00.000Z");
}
