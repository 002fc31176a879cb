//! Writers in the manner of pgbench, each with keys of its own, and an exact account of what was acknowledged.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rand::Rng as _;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::client::{Server, Session, words};
use crate::cluster::{self, Cluster};

/// The tables of the load.
const TABLES: &str = include_str!("load_tables.sql");
/// Per writer, how many rows it has, their sum, and the balance of its account.
const ACCOUNTS: &str = include_str!("load_accounts.sql");
/// How long a writer waits before it connects again.
const RECONNECT: Duration = Duration::from_millis(100);
/// How long a transaction may take before its outcome counts as unknown.
const TRANSACTION_TIMEOUT: Duration = Duration::from_secs(30);
/// How many unexpected rows are named.
const NAMED: usize = 10;

/// The load.
#[derive(Clone, Debug)]
pub struct Config {
    /// Writers on every node.
    pub writers: u16,
    /// Transactions per second of one writer at most; `None` is as fast as the server answers.
    pub rate_per_s: Option<f64>,
}

/// The rate where lanes have workers for all that is small too: each transaction takes round trips there, and nobody
/// would ever catch up with writers who are as fast as their server.
const RATE_WITH_WORKERS: f64 = 20.0;

impl Default for Config {
    fn default() -> Self {
        let rate_per_s = std::env::var_os(cluster::WORKERS).map(|_| RATE_WITH_WORKERS);
        Self { writers: 2, rate_per_s }
    }
}

/// Who writes: the node it writes on and its number there.
pub type Writer = (u16, u16);

/// What a writer knows of its transactions. Transaction `n` inserts the row `n` and moves the balance by its delta.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Account {
    /// Acknowledged: it must be there, once.
    pub acknowledged: Vec<i64>,
    /// The connection was lost before the answer: it may be there, once.
    pub ambiguous: Vec<i64>,
    /// The server said no: it must not be there.
    pub refused: Vec<i64>,
}

/// Running writers.
pub struct Load {
    stop: watch::Sender<bool>,
    writers: JoinSet<(Writer, Account)>,
    acknowledged: Arc<AtomicU64>,
}

/// Makes the tables of the load on node 1 and waits until every node has them with the accounts.
///
/// # Panics
/// When they do not arrive.
pub async fn prepare(cluster: &Cluster, config: &Config) {
    cluster.node(1).sql(TABLES).await;
    let nodes = cluster.nodes().len();
    let accounts = format!(
        "insert into load_account select node, writer, 0
         from generate_series(1, {nodes}) node, generate_series(1, {}) writer",
        config.writers
    );
    cluster.node(1).sql(&accounts).await;
    let count = (nodes * usize::from(config.writers)).to_string();
    cluster.all_show("select count(*) from load_account", &[&count]).await;
}

impl Load {
    /// Starts the writers on all nodes, directly on their servers.
    pub fn start(cluster: &Cluster, config: &Config) -> Self {
        let (stop, stopped) = watch::channel(false);
        let acknowledged = Arc::new(AtomicU64::new(0));
        let mut writers = JoinSet::new();
        for node in cluster.nodes() {
            for writer in 1..=config.writers {
                let who = (node.number(), writer);
                let task = Task {
                    who,
                    server: node.server().clone(),
                    pause: config.rate_per_s.map(|rate| Duration::from_secs_f64(1.0 / rate)),
                    stopped: stopped.clone(),
                    total: acknowledged.clone(),
                };
                writers.spawn(async move { (who, task.run().await) });
            }
        }
        Self { stop, writers, acknowledged }
    }

    /// How many transactions have been acknowledged so far.
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Relaxed)
    }

    /// Stops the writers and returns their accounts.
    pub async fn finish(mut self) -> BTreeMap<Writer, Account> {
        self.stop.send_replace(true);
        let mut accounts = BTreeMap::new();
        while let Some(ended) = self.writers.join_next().await {
            match ended {
                Ok((who, account)) => _ = accounts.insert(who, account),
                Err(error) => std::panic::resume_unwind(error.into_panic()),
            }
        }
        accounts
    }
}

struct Task {
    who: Writer,
    server: Server,
    pause: Option<Duration>,
    stopped: watch::Receiver<bool>,
    total: Arc<AtomicU64>,
}

enum Outcome {
    Acknowledged,
    Ambiguous,
    Refused,
}

impl Task {
    async fn run(self) -> Account {
        let mut account = Account::default();
        let mut session: Option<Session> = None;
        let mut due = Instant::now();
        let mut number = 0;
        while !*self.stopped.borrow() {
            let Some(open) = &session else {
                session = self.server.try_session().await.ok();
                if session.is_none() {
                    tokio::time::sleep(RECONNECT).await;
                }
                continue;
            };
            number += 1;
            match self.transaction(open, number).await {
                Outcome::Acknowledged => {
                    account.acknowledged.push(number);
                    self.total.fetch_add(1, Ordering::Relaxed);
                }
                Outcome::Ambiguous => {
                    account.ambiguous.push(number);
                    session = None;
                }
                Outcome::Refused => {
                    account.refused.push(number);
                    session = None;
                    tokio::time::sleep(RECONNECT).await;
                }
            }
            if let Some(pause) = self.pause {
                due = (due + pause).max(Instant::now() - pause * 10);
                tokio::time::sleep_until(due).await;
            }
        }
        account
    }

    async fn transaction(&self, session: &Session, number: i64) -> Outcome {
        let (node, writer) = self.who;
        let delta = rand::rng().random_range(-5000..=5000);
        let sql = format!(
            "begin;
             insert into load_history values ({node}, {writer}, {number}, {delta});
             update load_account set balance = balance + {delta}
             where node = {node} and writer = {writer};
             commit"
        );
        match tokio::time::timeout(TRANSACTION_TIMEOUT, session.batch_execute(&sql)).await {
            Ok(Ok(())) => Outcome::Acknowledged,
            Ok(Err(error)) => match error.as_db_error() {
                // FATAL ends a session, perhaps between the commit and its answer.
                Some(said) if said.severity() == "ERROR" => {
                    tracing::debug!("node {node} refused {number}: {}", words(&error));
                    Outcome::Refused
                }
                Some(_) | None => Outcome::Ambiguous,
            },
            Err(_) => Outcome::Ambiguous,
        }
    }
}

/// Compares what node `number` holds with the accounts of the writers: every acknowledged row once, none that was
/// refused, and balances that are the sums of the rows (each transaction is there whole).
///
/// # Errors
/// Which rows are missing or too many, or which balance is wrong.
pub async fn verify(
    cluster: &Cluster,
    number: u16,
    accounts: &BTreeMap<Writer, Account>,
) -> Result<(), String> {
    let node = cluster.node(number);
    let try_rows =
        async |sql: &str| node.server().try_rows(sql).await.map_err(|error| format!("{error:#}"));
    let torn = try_rows(ACCOUNTS).await?;
    if !torn.is_empty() {
        return Err(format!("node {number}: balance and rows differ (torn or lost): {torn:?}"));
    }
    for ((on, writer), account) in accounts {
        let sql = format!("select n from load_history where node = {on} and writer = {writer}");
        let mut held = BTreeMap::<i64, usize>::new();
        for row in try_rows(&sql).await? {
            *held.entry(row.parse().map_err(|_| format!("{row} is no number"))?).or_default() += 1;
        }
        if let Some(found) = faults(account, held).first() {
            return Err(format!("node {number}, writer {writer} of node {on}: {found}"));
        }
    }
    Ok(())
}

fn faults(account: &Account, mut held: BTreeMap<i64, usize>) -> Vec<String> {
    let mut faults = Vec::new();
    let (mut lost, mut twice) = (Vec::new(), Vec::new());
    for number in &account.acknowledged {
        match held.remove(number) {
            Some(1) => {}
            Some(_) => twice.push(*number),
            None => lost.push(*number),
        }
    }
    for number in &account.ambiguous {
        if held.remove(number).is_some_and(|times| times > 1) {
            twice.push(*number);
        }
    }
    let surplus: Vec<_> = held.into_keys().collect();
    for (what, rows) in
        [("acknowledged and lost", lost), ("there twice", twice), ("never written", surplus)]
    {
        if !rows.is_empty() {
            faults.push(format!(
                "{} rows {what}: {:?} …",
                rows.len(),
                &rows[..rows.len().min(NAMED)]
            ));
        }
    }
    faults
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ambiguous_row_may_be_there_or_not() {
        let account = Account { acknowledged: vec![1, 2], ambiguous: vec![3, 4], refused: vec![5] };
        assert!(faults(&account, BTreeMap::from([(1, 1), (2, 1), (3, 1)])).is_empty());
    }

    #[test]
    fn lost_doubled_and_surplus_rows_are_found() {
        let account = Account { acknowledged: vec![1, 2], ambiguous: vec![3], refused: vec![5] };
        let found = faults(&account, BTreeMap::from([(2, 2), (3, 2), (5, 1)]));
        assert_eq!(
            found,
            [
                "1 rows acknowledged and lost: [1] …",
                "2 rows there twice: [2, 3] …",
                "1 rows never written: [5] …"
            ]
        );
    }
}
