//! Broken configuration is refused before anything is touched, with the line, the key and what is allowed.

use std::fs;

use crate::{NOTICED, binary};

/// What is done to `agent.toml` and what the refusal has to name.
const BROKEN: &[(&str, &str, &[&str])] = &[
    ("[node]", "[node]\nidd = 1", &["agent.toml:", "idd"]),
    ("[peers]", "[peers]\nlisten_on = \"x\"", &["agent.toml:", "listen_on", "listen"]),
    ("[raft]", "[raft]\nheartbeat_ms = \"soon\"", &["agent.toml:", "heartbeat_ms"]),
    ("mode = \"managed\"", "mode = \"borrowed\"", &["agent.toml:", "mode", "managed", "attached"]),
    ("id = 1\n", "id = 17\n", &["agent.toml:", "id", "16"]),
    ("[router]", "[rooter]", &["agent.toml:", "rooter"]),
    ("[node]", "[node", &["agent.toml:"]),
];

#[test]
fn a_broken_configuration_names_line_key_and_what_is_allowed() {
    let cluster = binary().lay_out(1);
    let path = cluster.node(1).folder().join("agent.toml");
    let whole = fs::read_to_string(&path).unwrap();
    for (from, to, names) in BROKEN {
        assert!(whole.contains(from), "agent.toml has no {from}");
        fs::write(&path, whole.replacen(from, to, 1)).unwrap();
        let log = cluster.node(1).refuses_to_start(NOTICED);
        for name in *names {
            assert!(log.contains(name), "{to}: the refusal does not name {name}:\n{log}");
        }
        assert!(
            !cluster.node(1).pgdata().exists(),
            "{to}: something was made although it was refused"
        );
    }
}

#[test]
fn a_missing_file_is_named() {
    let output = binary().run(&["agent", "--config", "/nonexistent/agent.toml"]);
    assert!(!output.status.success());
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.contains("/nonexistent/agent.toml"), "{text}");
}

#[test]
fn a_public_address_with_the_default_password_is_refused() {
    let cluster = binary().lay_out(1);
    let port = cluster.ports().read();
    cluster.node(1).configure("router.read_listen", format!("0.0.0.0:{port}"));
    let log = cluster.node(1).refuses_to_start(NOTICED);
    assert!(log.contains("read_listen") && log.contains("POSTGRES_PASSWORD"), "{log}");
}

#[test]
fn a_second_agent_of_the_same_node_is_refused() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let cluster = binary().cluster(1).await;
        let config = cluster.node(1).folder().join("agent.toml");
        let output = binary().run(&["agent", "--config", config.to_str().unwrap()]);
        assert!(!output.status.success());
        cluster.node(1).sql("select 1").await;
        assert!(cluster.node(1).ready().await.is_ok());
    });
}
