//! Drivers as their users use them, through all endpoints: prepared statements, COPY, cancel, pipelining, errors,
//! settings, notifications and temporary tables. The scripts are in `drivers/`; each prints the names of its checks.

mod sqlx_driver;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _, TryStreamExt as _, stream};
use synapsedb_dev::client::Server;
use tokio_postgres::{AsyncMessage, NoTls};

use crate::routed::{Way, database, routed};
use crate::skip;

/// How long a script may take.
const LIMIT: Duration = Duration::from_secs(120);

/// Runs a driver's script at all endpoints; it has to print these checks.
async fn drive(name: &str, command: impl Fn() -> Command, checks: &[&str]) {
    let cluster = routed().await;
    for way in [Way::Read, Way::Write, Way::Split] {
        let database_name = format!("{name}_{way:?}").to_lowercase();
        let server = database(&cluster, &database_name, way).await;
        run(&server, command(), checks).await;
    }
}

async fn run(server: &Server, mut command: Command, checks: &[&str]) {
    command
        .env("PGHOST", "127.0.0.1")
        .env("PGPORT", server.port.to_string())
        .env("PGUSER", &server.user)
        .env("PGPASSWORD", &server.password)
        .env("PGDATABASE", &server.database)
        .stdin(Stdio::null());
    let mut command = tokio::process::Command::from(command);
    command.kill_on_drop(true);
    let name = format!("{command:?} at {}", server.name);
    let output = match tokio::time::timeout(LIMIT, command.output()).await {
        Ok(output) => output.unwrap(),
        Err(_) => panic!("{name}: not done after {LIMIT:?}"),
    };
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{name}: {}\n{printed}{said}", output.status);
    assert_eq!(printed.lines().collect::<Vec<_>>(), checks, "{name}: {said}");
}

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/drivers").join(name)
}

/// The interpreter for which distributions package their drivers, if it can load a module.
fn python(module: &str) -> Option<PathBuf> {
    let interpreters = ["/usr/bin/python3", "python3"].map(PathBuf::from);
    interpreters.into_iter().find(|interpreter| {
        let load = Command::new(interpreter).args(["-c", &format!("import {module}")]).output();
        load.is_ok_and(|load| load.status.success())
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn psql() {
    let command = || {
        let mut command = Command::new("sh");
        command.arg(script("psql.sh"));
        command
    };
    let checks = [
        "prepared",
        "copy",
        "cancel",
        "pipeline",
        "rollback",
        "password",
        "settings",
        "notify",
        "temporary",
    ];
    drive("psql", command, &checks).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn psycopg() {
    let Some(python) = python("psycopg") else { return skip("python3-psycopg is not installed") };
    let command = || {
        let mut command = Command::new(&python);
        command.arg(script("psycopg_driver.py"));
        command
    };
    let checks = [
        "prepared",
        "copy",
        "cancel",
        "pipeline",
        "rollback",
        "password",
        "settings",
        "notify",
        "temporary",
    ];
    drive("psycopg", command, &checks).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn asyncpg() {
    let Some(python) = python("asyncpg") else { return skip("python3-asyncpg is not installed") };
    let command = || {
        let mut command = Command::new(&python);
        command.arg(script("asyncpg_driver.py"));
        command
    };
    let checks =
        ["prepared", "copy", "cancel", "rollback", "password", "settings", "notify", "temporary"];
    drive("asyncpg", command, &checks).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn node_postgres() {
    // Where Debian puts its modules, after what the environment names.
    let modules = std::env::var("NODE_PATH").unwrap_or_default();
    let modules = format!("{modules}:/usr/share/nodejs");
    let mut load = Command::new("node");
    load.args(["-e", "require('pg')"]).env("NODE_PATH", &modules);
    if !load.output().is_ok_and(|load| load.status.success()) {
        return skip("node-pg is not installed");
    }
    let command = || {
        let mut command = Command::new("node");
        command.arg(script("node_pg.js")).env("NODE_PATH", &modules);
        command
    };
    let checks = ["prepared", "cancel", "rollback", "password", "settings", "notify", "temporary"];
    drive("node_pg", command, &checks).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn jdbc() {
    let driver = Path::new("/usr/share/java/postgresql.jar");
    let java = Command::new("javac").arg("-version").output();
    if !driver.is_file() || !java.is_ok_and(|java| java.status.success()) {
        return skip("libpostgresql-jdbc-java or a JDK is not installed");
    }
    let command = || {
        let mut command = Command::new("java");
        command.arg("-cp").arg(driver).arg(script("Jdbc.java"));
        command
    };
    let checks = [
        "prepared",
        "copy",
        "cancel",
        "pipeline",
        "rollback",
        "password",
        "settings",
        "notify",
        "temporary",
    ];
    drive("jdbc", command, &checks).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tokio_postgres() {
    let cluster = routed().await;
    for way in [Way::Read, Way::Write] {
        let name = format!("tokio_postgres_{way:?}").to_lowercase();
        let server = database(&cluster, &name, way).await;
        prepared_and_pipelined(&server).await;
        copied(&server).await;
        cancelled(&server).await;
        rolled_back(&server).await;
        kept(&server).await;
        notified(&server).await;
        refused(&server).await;
    }
}

async fn prepared_and_pipelined(server: &Server) {
    let mut session = server.session().await;
    let statement = session.prepare("select $1::int + 1 from items where id = $2").await.unwrap();
    for n in 0..20 {
        let row = session.query_one(&statement, &[&n, &1]).await.unwrap();
        assert_eq!(row.get::<_, i32>(0), n + 1);
    }
    let transaction = session.transaction().await.unwrap();
    assert_eq!(transaction.query_one(&statement, &[&7, &1]).await.unwrap().get::<_, i32>(0), 8);
    transaction.commit().await.unwrap();
    // All are sent before the first is answered.
    let numbers: Vec<i32> = (0..200).collect();
    let parameters: Vec<_> = numbers.iter().map(|n| (*n, 1)).collect();
    let asked = parameters.iter().map(async |(n, id)| {
        session.query_one(&statement, &[n, id]).await.unwrap().get::<_, i32>(0)
    });
    let answers = futures_util::future::join_all(asked).await;
    assert_eq!(answers, (1..=200).collect::<Vec<_>>());
}

async fn copied(server: &Server) {
    let session = server.session().await;
    session.batch_execute("create temp table copied (id int, v text)").await.unwrap();
    let sink = session.copy_in("copy copied from stdin").await.unwrap();
    let mut sink = std::pin::pin!(sink);
    let text: String = (0..10_000).map(|n| format!("{n}\trow {n}\n")).collect();
    let blocks: Vec<_> = text.as_bytes().chunks(1000).map(bytes::Bytes::copy_from_slice).collect();
    sink.send_all(&mut stream::iter(blocks.into_iter().map(Ok))).await.unwrap();
    assert_eq!(sink.finish().await.unwrap(), 10_000);
    let out = session.copy_out("copy copied to stdout").await.unwrap();
    let blocks: Vec<_> = out.try_collect().await.unwrap();
    assert_eq!(blocks.concat(), text.as_bytes());
}

async fn cancelled(server: &Server) {
    let session = server.session().await;
    let token = session.cancel_token();
    let cancel = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        token.cancel_query(NoTls).await.unwrap();
    };
    let (answer, ()) = tokio::join!(session.rows("select pg_sleep(30)"), cancel);
    assert_eq!(answer.unwrap_err().code().unwrap().code(), "57014");
    assert_eq!(session.rows("select 1").await.unwrap(), ["1"]);
}

async fn rolled_back(server: &Server) {
    let mut session = server.session().await;
    let transaction = session.transaction().await.unwrap();
    transaction.execute("insert into items values (100, 'lost')", &[]).await.unwrap();
    let error = transaction.query("select 1/0", &[]).await.unwrap_err();
    assert_eq!(error.code().unwrap().code(), "22012");
    transaction.rollback().await.unwrap();
    let count = session.rows("select count(*) from items where id = 100").await.unwrap();
    assert_eq!(count, ["0"]);
}

/// Settings and temporary tables.
async fn kept(server: &Server) {
    let session = server.session().await;
    let set = "set search_path = elsewhere, public; set timezone = 'Asia/Tokyo'; create temp table mine (v text)";
    session.batch_execute(set).await.unwrap();
    session.batch_execute("insert into mine values ('x')").await.unwrap();
    for _ in 0..10 {
        assert_eq!(session.rows("show search_path").await.unwrap(), ["elsewhere, public"]);
        assert_eq!(session.rows("show timezone").await.unwrap(), ["Asia/Tokyo"]);
        assert_eq!(session.rows("select v from mine").await.unwrap(), ["x"]);
    }
    assert_eq!(server.value("select to_regclass('mine') is null").await, "t");
}

async fn notified(server: &Server) {
    let (client, mut connection) = config(server).connect(NoTls).await.unwrap();
    let (sender, mut heard) = tokio::sync::mpsc::unbounded_channel();
    let listening = tokio::spawn(async move {
        let mut messages = stream::poll_fn(move |context| connection.poll_message(context));
        while let Some(Ok(message)) = messages.next().await {
            if let AsyncMessage::Notification(notification) = message {
                let words = format!("{} {}", notification.channel(), notification.payload());
                let _ = sender.send(words);
            }
        }
    });
    client.batch_execute("listen tokio").await.unwrap();
    server.sql("notify tokio, 'hello'").await;
    let message = tokio::time::timeout(Duration::from_secs(20), heard.recv()).await.unwrap();
    assert_eq!(message.unwrap(), "tokio hello");
    listening.abort();
}

async fn refused(server: &Server) {
    let refused = config(server).password("wrong").connect(NoTls).await;
    assert_eq!(refused.err().unwrap().code().unwrap().code(), "28P01");
}

fn config(server: &Server) -> tokio_postgres::Config {
    let mut config = tokio_postgres::Config::new();
    config
        .host("127.0.0.1")
        .port(server.port)
        .user(&server.user)
        .password(&server.password)
        .dbname(&server.database);
    config
}
