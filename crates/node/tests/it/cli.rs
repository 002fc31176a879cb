//! The command line: `up` makes and restarts a cluster, `status`, `down`, and what it says when it cannot.

use std::net::TcpListener;
use std::process::Output;

use synapsedb_dev::client::Server;
use synapsedb_dev::ports::PortBase;
use synapsedb_dev::reaper::Reaper;

use crate::binary;

/// A place for a cluster that `up` makes; whatever runs there is ended with it.
struct Place {
    folder: tempfile::TempDir,
    ports: PortBase,
    reaper: Reaper,
}

impl Place {
    fn new() -> Self {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().unwrap();
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let reaper = Reaper::start(folder.path()).unwrap();
        Self { folder, ports: PortBase::take(3).unwrap(), reaper }
    }

    fn data(&self) -> &str {
        self.folder.path().to_str().unwrap()
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let (command, rest) = arguments.split_first().unwrap();
        let all: Vec<_> =
            [*command, "--data", self.data()].into_iter().chain(rest.iter().copied()).collect();
        let output = binary().run(&all);
        let supervisor =
            std::fs::read_to_string(self.folder.path().join("supervisor.pid")).unwrap_or_default();
        if let Ok(pid) = supervisor.trim().parse() {
            self.reaper.started(pid);
        }
        output
    }

    fn up(&self) -> Output {
        let base = self.ports.get().to_string();
        self.run(&["up", "--detach", "--nodes", "3", "--port-base", &base])
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.run(&["down", "--destroy", "--yes"]);
        self.run(&["down"]);
    }
}

fn text(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

fn succeeded(output: &Output) -> String {
    let text = text(output);
    assert!(output.status.success(), "{}:\n{text}", output.status);
    text
}

#[tokio::test(flavor = "multi_thread")]
async fn up_makes_a_cluster_and_finds_it_again() {
    let place = Place::new();
    let split = place.ports.split();
    let base = place.ports.get().to_string();
    let made = succeeded(&place.run(&[
        "up",
        "--detach",
        "--port-base",
        &base,
        "--split-port",
        &split.to_string(),
    ]));
    assert!(made.contains("Cluster initialization successful!"), "{made}");
    assert!(made.contains("split (both)") && made.contains(&format!(":{split}/")), "{made}");
    Server::new("the split endpoint", split).value("select 1").await;
    let server = |node| Server::new(format!("node {node}"), place.ports.postgres(node));
    server(1).sql("insert into users (username, email) values ('cli', 'cli@example.com')").await;
    server(1).value("select count(*) from orders").await;
    synapsedb_dev::eventually("node 3 has the row", crate::NOTICED, async || {
        server(3).shows("select username from users", &["cli"]).await
    })
    .await;

    let again = succeeded(&place.up());
    assert!(again.contains("runs") || again.contains("running"), "{again}");
    let status = succeeded(&place.run(&["status"]));
    assert!(status.contains(&format!("split: {split}")), "{status}");
    let other = text(&place.run(&["up", "--detach", "--split-port", "5003"]));
    assert!(other.contains(&format!("made with --split-port {split}. Nothing was")), "{other}");

    succeeded(&place.run(&["down"]));
    assert!(server(1).try_rows("select 1").await.is_err(), "node 1 still runs after down");
    succeeded(&place.up());
    Server::new("the split endpoint", split).value("select 1").await;
    assert_eq!(server(2).value("select username from users").await, "cli");
}

#[test]
fn a_split_port_is_no_others() {
    let place = Place::new();
    let (base, taken) = (place.ports.get().to_string(), place.ports.postgres(2).to_string());
    let output = place.run(&["init", "--port-base", &base, "--split-port", &taken]);
    assert!(!output.status.success());
    assert!(text(&output).contains("PostgreSQL, of node 2; nothing was made"), "{}", text(&output));
    let output = place.run(&["init", "--port-base", &base, "--split-port", "80"]);
    assert!(!output.status.success() && text(&output).contains("1024"), "{}", text(&output));
    assert!(!place.folder.path().join("cluster.json").exists());
}

#[test]
fn a_taken_port_is_named_with_its_process() {
    let place = Place::new();
    let port = place.ports.postgres(2);
    let _taken = TcpListener::bind(("127.0.0.1", port)).unwrap();
    let output = place.up();
    let text = text(&output);
    assert!(!output.status.success(), "{text}");
    assert!(text.contains(&port.to_string()), "the port is not named:\n{text}");
    assert!(text.contains(&std::process::id().to_string()), "the process is not named:\n{text}");
}

#[test]
fn an_unknown_command_or_option_is_refused_with_a_hint() {
    for arguments in [&["upp"][..], &["up", "--node", "3"], &["agent"]] {
        let output = binary().run(arguments);
        assert_eq!(output.status.code(), Some(2), "{}", text(&output));
        assert!(
            text(&output).contains("Usage") || text(&output).contains("--help"),
            "{}",
            text(&output)
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_join_are_reseeded_and_part_beside_a_supervisor() {
    let place = Place::new();
    succeeded(&place.up());
    let node = |arguments: &[&str]| {
        let common = ["--timeout", "120", "--data", place.data()];
        binary().run(&[&["node"], arguments, &common].concat())
    };
    let joined = succeeded(&node(&["join"]));
    assert!(joined.contains("Node 4 takes part"), "{joined}");
    let refused = node(&["reseed", "2"]);
    assert!(text(&refused).contains("say --yes, nothing was changed"), "{}", text(&refused));
    let refused = node(&["join", "--token", "of another machine"]);
    assert!(text(&refused).contains("is not implemented"), "{}", text(&refused));
    let reseeded = succeeded(&node(&["reseed", "2", "--yes"]));
    assert!(reseeded.contains("Node 2 takes part"), "{reseeded}");
    let parted = succeeded(&node(&["part", "1"]));
    assert!(parted.contains("Node 1 is no member any more"), "{parted}");
    let server = |node| Server::new(format!("node {node}"), place.ports.postgres(node));
    for (writer, name) in [(4, "four"), (2, "two")] {
        let insert = "insert into users (username, email) values";
        server(writer).sql(&format!("{insert} ('{name}', '{name}@example.com')")).await;
    }
    let names = "select string_agg(username, ' ' order by username) from users";
    for reader in 2..=4 {
        synapsedb_dev::eventually("both rows", crate::NOTICED, async || {
            server(reader).shows(names, &["four two"]).await
        })
        .await;
    }
    synapsedb_dev::eventually("node 1 has stopped", crate::NOTICED, async || {
        match server(1).try_rows("select 1").await {
            Ok(_) => Err("its server answers".to_owned()),
            Err(_) => Ok(()),
        }
    })
    .await;
}
