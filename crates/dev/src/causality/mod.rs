//! Random writes on hot keys of several nodes while they are broken: no reader on any node may ever see an effect
//! before its cause, and in the end all nodes hold exactly the rows that follow from what was committed.
//!
//! Every transaction of a writer reads how far all writers are, writes a hot row, and notes both beside it, so an
//! observer can tell from one statement whether everything that a visible transaction had seen is visible too.

mod expected;
mod pglogical;
mod snapshot;
mod writer;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use rand::Rng as _;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::chaos;
use crate::client::Server;
use crate::cluster::{Cluster, EQUAL_TIMEOUT};
use expected::{Logged, Tables, tables};
pub use pglogical::run as run_pglogical;
use snapshot::Snapshot;
use writer::{Account, Writer};

/// The tables and the statement of the writers.
const TABLES: &str = include_str!("tables.sql");
/// The tables with policies of their own.
const POLICIES: &str = include_str!("policies.sql");
/// The transactions of the writers of one node.
const LOG: &str = include_str!("log.sql");
/// The rows with a large value that were changed, with the mark of the value.
const LARGE: &str =
    "select id, v, split_part(large, ' ', 1) from hot_large where v <> '-' order by id";
/// The time between two looks of an observer.
const LOOK: Duration = Duration::from_millis(3);
/// How many violations are told.
const TOLD: usize = 5;

/// What the writers do.
#[derive(Clone, Copy, Debug)]
pub struct Workload {
    /// Writers on every node, fewer than 100.
    pub writers: i32,
    /// How many primary keys there are.
    pub keys: i32,
    /// How many unique values there are.
    pub values: i32,
    /// The pause between two transactions of a writer.
    pub pause: Duration,
    /// Whether rows are deleted and get other keys.
    pub deletes: bool,
    /// Whether rows with unique values beside their key are written.
    pub uniques: bool,
    /// Whether rows of tables with policies of their own, and rows with large values, are updated.
    pub policies: bool,
    /// What one transaction does at most.
    pub steps: usize,
    /// Decides what the writers write.
    pub seed: u64,
}

impl Default for Workload {
    fn default() -> Self {
        Self {
            writers: 2,
            keys: 12,
            values: 12,
            pause: Duration::from_millis(15),
            deletes: true,
            uniques: true,
            policies: true,
            steps: writer::STEPS_MAX,
            seed: rand::rng().random(),
        }
    }
}

impl Workload {
    fn kinds(&self) -> Vec<&'static str> {
        let mut kinds = vec!["insert row", "update row", "update row"];
        if self.deletes {
            kinds.extend(["delete row", "move row"]);
        }
        if self.uniques {
            kinds.extend(["insert unique", "insert unique", "update unique"]);
        }
        if self.uniques && self.deletes {
            kinds.extend(["delete unique", "move unique"]);
        }
        if self.policies {
            kinds.extend(["text large", "value large", "add balance", "a merge", "b merge"]);
        }
        kinds
    }
}

/// What a run has shown.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Transactions that were acknowledged.
    pub acknowledged: u64,
    /// Transactions whose outcome the writer does not know.
    pub ambiguous: usize,
    /// Transactions that the server refused.
    pub refused: u64,
    /// Faults that were made.
    pub faults: usize,
    /// Looks of the observers.
    pub looks: u64,
    /// How often an effect was seen before its cause.
    pub violations: u64,
    /// The first of them.
    pub examples: Vec<String>,
    /// Rows in the hot tables in the end.
    pub rows: usize,
}

/// Running writers.
struct Writers {
    stop: watch::Sender<bool>,
    tasks: JoinSet<(i32, Account)>,
    acknowledged: Arc<AtomicU64>,
}

/// Running observers.
struct Observers {
    stop: watch::Sender<bool>,
    tasks: JoinSet<Observed>,
}

#[derive(Default)]
struct Observed {
    looks: u64,
    violations: u64,
    examples: Vec<String>,
}

/// Runs writers, observers and faults, and checks the outcome.
///
/// # Errors
/// An effect that was seen before its cause, what is lost, doubled or different, or that the cluster did not recover.
pub async fn run(cluster: &Cluster, workload: &Workload, faults: &chaos::Config) -> Result<Report> {
    cluster.node(1).sql(TABLES).await;
    let servers: Vec<_> = cluster.nodes().iter().map(|node| node.server().clone()).collect();
    cluster.node(1).sql(&progress_rows(servers.len(), workload)).await;
    let writers = (servers.len() as i32 * workload.writers).to_string();
    let there = "select count(*) from hot_progress where to_regproc('hot_steps') is not null";
    cluster.all_show(there, &[&writers]).await;
    if workload.policies {
        cluster.node(1).sql(&POLICIES.replace("$keys", &workload.keys.to_string())).await;
        let policies =
            "select count(*) from synapsedb.policies() where policy <> 'last_write_wins'";
        let rows = "select count(*) from hot_merge";
        cluster.all_show(policies, &["2"]).await;
        cluster.all_show(rows, &[&workload.keys.to_string()]).await;
    }
    let (writers, observers) = (Writers::start(&servers, workload), Observers::start(&servers));
    let mut report = Report::default();
    let end = Instant::now() + faults.duration;
    while Instant::now() + faults.between < end && !faults.faults.is_empty() {
        tokio::time::sleep(faults.between).await;
        chaos::befall(cluster, faults, report.faults).await;
        report.faults += 1;
    }
    tokio::time::sleep_until(end).await;
    let accounts = writers.finish(&mut report).await;
    cluster.wait_ready().await;
    // The observers go on until all is equal.
    let equal = cluster.equal_rows_within(EQUAL_TIMEOUT).await;
    observers.finish(&mut report).await;
    if let Err(reason) = equal {
        let rows = crate::digest::first_differences(cluster.nodes()).await;
        bail!("the nodes differ: {reason}\n{rows}\n{report:#?}");
    }
    verify(&servers, workload, &accounts, &mut report).await?;
    ensure!(report.violations == 0, "effects were seen before their causes: {report:#?}");
    ensure!(report.acknowledged > 0 && report.looks > 0, "nothing was shown: {report:#?}");
    Ok(report)
}

fn progress_rows(servers: usize, workload: &Workload) -> String {
    format!(
        "insert into hot_progress select 100 * node + writer, 0, '{{}}'
         from generate_series(1, {servers}) node, generate_series(1, {}) writer",
        workload.writers
    )
}

impl Writers {
    fn start(servers: &[Server], workload: &Workload) -> Self {
        let (stop, stopped) = watch::channel(false);
        let acknowledged = Arc::new(AtomicU64::new(0));
        let mut tasks = JoinSet::new();
        for (server, node) in servers.iter().zip(1..) {
            for writer in 1..=workload.writers {
                let writer = Writer {
                    number: 100 * node + writer,
                    server: server.clone(),
                    workload: *workload,
                    stopped: stopped.clone(),
                    total: acknowledged.clone(),
                };
                tasks.spawn(writer.run());
            }
        }
        Self { stop, tasks, acknowledged }
    }

    async fn finish(mut self, report: &mut Report) -> BTreeMap<i32, Account> {
        self.stop.send_replace(true);
        let mut accounts = BTreeMap::new();
        while let Some(ended) = self.tasks.join_next().await {
            match ended {
                Ok((writer, account)) => {
                    report.ambiguous += account.ambiguous.len();
                    report.refused += account.refused;
                    accounts.insert(writer, account);
                }
                Err(error) => std::panic::resume_unwind(error.into_panic()),
            }
        }
        report.acknowledged = self.acknowledged.load(Ordering::Relaxed);
        accounts
    }
}

impl Observers {
    fn start(servers: &[Server]) -> Self {
        let (stop, stopped) = watch::channel(false);
        let mut tasks = JoinSet::new();
        for server in servers {
            tasks.spawn(observe(server.clone(), stopped.clone()));
        }
        Self { stop, tasks }
    }

    async fn finish(mut self, report: &mut Report) {
        self.stop.send_replace(true);
        while let Some(ended) = self.tasks.join_next().await {
            match ended {
                Ok(observed) => {
                    report.looks += observed.looks;
                    report.violations += observed.violations;
                    report.examples.extend(observed.examples);
                }
                Err(error) => std::panic::resume_unwind(error.into_panic()),
            }
        }
        report.examples.truncate(TOLD);
    }
}

/// Looks at one server until it is stopped, whether that is up or not.
async fn observe(server: Server, stopped: watch::Receiver<bool>) -> Observed {
    let mut observed = Observed::default();
    let mut session = None;
    while !*stopped.borrow() {
        tokio::time::sleep(LOOK).await;
        let Some(open) = &session else {
            session = server.try_session().await.ok();
            continue;
        };
        let Ok(rows) = crate::client::Session::rows(open, snapshot::SQL).await else {
            session = None;
            continue;
        };
        let found = match Snapshot::read(&rows) {
            Ok(snapshot) => snapshot.violations(),
            Err(error) => vec![format!("{error:#}")],
        };
        observed.looks += 1;
        observed.violations += found.len() as u64;
        let told = found.into_iter().take(TOLD.saturating_sub(observed.examples.len()));
        observed.examples.extend(told.map(|text| format!("on {}: {text}", server.name)));
    }
    observed
}

/// Every acknowledged transaction is in the log once, none that was refused, and the hot tables of all nodes hold
/// exactly what follows from the log.
async fn verify(
    servers: &[Server],
    workload: &Workload,
    accounts: &BTreeMap<i32, Account>,
    report: &mut Report,
) -> Result<()> {
    let mut log = Vec::new();
    for (server, node) in servers.iter().zip(1..) {
        let (from, to) = (100 * node + 1, 100 * node + workload.writers);
        let sql = LOG.replace("$from", &from.to_string()).replace("$to", &to.to_string());
        for row in server.try_rows(&sql).await? {
            log.push(Logged::read(&row)?);
        }
    }
    for (writer, account) in accounts {
        let logged: Vec<i64> = log
            .iter()
            .filter(|logged| logged.writer == *writer)
            .map(|logged| logged.number)
            .collect();
        for number in &account.acknowledged {
            ensure!(logged.contains(number), "transaction {number} of writer {writer} is lost");
        }
        let known = |number: &i64| {
            account.acknowledged.contains(number) || account.ambiguous.contains(number)
        };
        let surplus = logged.iter().find(|number| !known(number));
        ensure!(surplus.is_none(), "transaction {surplus:?} of writer {writer} was refused");
    }
    let Tables { rows, uniques, large, balances, merged } = tables(&log);
    let mut expected = vec![
        ("hot_row", "select id, writer, seq from hot_row order by id", &rows),
        ("hot_unique", "select id, code, tag, writer, seq from hot_unique order by id", &uniques),
    ];
    if workload.policies {
        expected.extend([
            ("hot_large", LARGE, &large),
            ("hot_balance", "select * from hot_balance where balance <> 0 order by id", &balances),
            (
                "hot_merge",
                "select * from hot_merge where a <> '-' or b <> '-' order by id",
                &merged,
            ),
        ]);
    }
    for server in servers {
        for (table, sql, expected) in &expected {
            same(&server.name, table, &server.try_rows(sql).await?, expected)?;
        }
    }
    report.rows = expected.iter().map(|(_, _, rows)| rows.len()).sum();
    Ok(())
}

fn same(server: &str, table: &str, held: &[String], expected: &[String]) -> Result<()> {
    if held == expected {
        return Ok(());
    }
    let only = |these: &[String], those: &[String]| -> Vec<String> {
        these.iter().filter(|row| !those.contains(row)).cloned().collect()
    };
    let (held, missing) = (only(held, expected), only(expected, held));
    bail!("{table} on {server} holds {held:?} where {missing:?} should have won")
}
