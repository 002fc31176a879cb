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
    let made = succeeded(&place.up());
    assert!(made.contains("Cluster initialization successful!"), "{made}");
    let server = |node| Server::new(format!("node {node}"), place.ports.postgres(node));
    server(1).sql("insert into users (username, email) values ('cli', 'cli@example.com')").await;
    server(1).value("select count(*) from orders").await;
    synapsedb_dev::eventually("node 3 has the row", crate::NOTICED, async || {
        server(3).shows("select username from users", &["cli"]).await
    })
    .await;

    let again = succeeded(&place.up());
    assert!(again.contains("runs") || again.contains("running"), "{again}");
    assert!(succeeded(&place.run(&["status"])).contains('3'));

    succeeded(&place.run(&["down"]));
    assert!(server(1).try_rows("select 1").await.is_err(), "node 1 still runs after down");
    succeeded(&place.up());
    assert_eq!(server(2).value("select username from users").await, "cli");
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
