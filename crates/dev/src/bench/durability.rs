//! How long a commit takes in each durability class: one session alone, and several at once.

use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::binary::Binary;
use crate::client::Server;

/// The classes that are compared.
const CLASSES: [&str; 3] = ["local", "quorum", "applied"];
/// How often the classes take turns, so that what else the machine does meets all of them.
const ROUNDS: usize = 3;
/// How long a class is used before it is measured: the agents notice that somebody waits.
const WARM_UP: Duration = Duration::from_millis(1500);
/// How long each is measured.
const MEASURED: Duration = Duration::from_secs(5);
/// Sessions at once.
const SESSIONS: [usize; 2] = [1, 8];

/// Measures and prints.
///
/// # Errors
/// When the cluster cannot be set up, or a commit fails.
pub(super) async fn run(binary: &Binary, nodes: u16) -> Result<()> {
    let cluster = binary.cluster(nodes).await;
    cluster.node(1).sql("create table commits (id uuid primary key, v text)").await;
    cluster.all_show("select count(*) from commits", &["0"]).await;
    println!(
        "| class | sessions | commits/s | p50 ms | p90 ms | p99 ms |\n|---|---|---|---|---|---|"
    );
    for sessions in SESSIONS {
        let mut measured = CLASSES.map(|class| (class, Vec::new()));
        for _ in 0..ROUNDS {
            for (class, times) in &mut measured {
                commits(cluster.node(1).server(), class, sessions, WARM_UP).await?;
                times.extend(commits(cluster.node(1).server(), class, sessions, MEASURED).await?);
            }
        }
        for (class, mut times) in measured {
            times.sort_unstable();
            let rate = times.len() as f64 / (MEASURED.as_secs_f64() * ROUNDS as f64);
            let at = |share: f64| {
                let index = (share * times.len().saturating_sub(1) as f64).round() as usize;
                times.get(index).map_or(f64::NAN, |time| time.as_secs_f64() * 1000.0)
            };
            println!(
                "| {class} | {sessions} | {rate:.0} | {:.2} | {:.2} | {:.2} |",
                at(0.5),
                at(0.9),
                at(0.99)
            );
        }
    }
    Ok(())
}

/// How long each single-row transaction took that was made within `length`.
async fn commits(
    server: &Server,
    class: &str,
    sessions: usize,
    length: Duration,
) -> Result<Vec<Duration>> {
    let mut running = JoinSet::new();
    for _ in 0..sessions {
        let (server, class) = (server.clone(), class.to_owned());
        running.spawn(async move {
            let session = server.try_session().await?;
            session.rows(&format!("select synapsedb.set_durability('{class}')")).await?;
            let insert =
                session.prepare("insert into commits values (gen_random_uuid(), 'x')").await?;
            let (end, mut times) = (Instant::now() + length, Vec::new());
            while Instant::now() < end {
                let begin = Instant::now();
                session.execute(&insert, &[]).await?;
                times.push(begin.elapsed());
            }
            anyhow::Ok(times)
        });
    }
    let mut times = Vec::new();
    while let Some(ended) = running.join_next().await {
        times.extend(ended.context("a session panicked")??);
    }
    Ok(times)
}
