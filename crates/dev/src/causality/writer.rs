//! Writers on hot keys: each tells in every transaction what it had seen before it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rand::Rng as _;
use tokio::sync::watch;

use super::Workload;
use crate::client::{Server, Session, words};

/// How long a writer waits before it connects again.
const RECONNECT: Duration = Duration::from_millis(100);
/// How long a transaction may take before its outcome counts as unknown.
const TRANSACTION_TIMEOUT: Duration = Duration::from_secs(30);

/// What a writer knows of its transactions.
#[derive(Clone, Debug, Default)]
pub(super) struct Account {
    pub acknowledged: BTreeSet<i64>,
    pub ambiguous: BTreeSet<i64>,
    pub refused: u64,
}

/// One writer on one server.
pub(super) struct Writer {
    pub number: i32,
    pub server: Server,
    pub workload: Workload,
    pub stopped: watch::Receiver<bool>,
    pub total: Arc<AtomicU64>,
}

enum Outcome {
    Acknowledged,
    Nothing,
    Ambiguous,
    Refused,
}

impl Writer {
    pub(super) async fn run(self) -> (i32, Account) {
        let mut account = Account::default();
        let mut session: Option<Session> = None;
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
                    account.acknowledged.insert(number);
                    self.total.fetch_add(1, Ordering::Relaxed);
                }
                Outcome::Nothing => {}
                Outcome::Refused => account.refused += 1,
                Outcome::Ambiguous => {
                    account.ambiguous.insert(number);
                    session = None;
                }
            }
            tokio::time::sleep(self.workload.pause).await;
        }
        (self.number, account)
    }

    fn statement(&self, number: i64) -> String {
        let Workload { keys, values, .. } = self.workload;
        let mut rng = rand::rng();
        let kinds = self.workload.kinds();
        let kind = kinds[rng.random_range(0..kinds.len())];
        let mut any = |limit: i32| rng.random_range(1..=limit);
        let (key, other, code, tag) = (any(keys), any(keys), any(values), any(values));
        let who = self.number;
        format!("select hot_step({who}, {number}, '{kind}', {key}, {other}, {code}, {tag})")
    }

    async fn transaction(&self, session: &Session, number: i64) -> Outcome {
        let sql = self.statement(number);
        match tokio::time::timeout(TRANSACTION_TIMEOUT, session.rows(&sql)).await {
            Ok(Ok(rows)) if rows == ["t"] => Outcome::Acknowledged,
            Ok(Ok(_)) => Outcome::Nothing,
            Ok(Err(error)) => match error.as_db_error() {
                // FATAL ends a session, perhaps between the commit and its answer.
                Some(said) if said.severity() == "ERROR" => {
                    tracing::debug!("{}: {sql}: {}", self.server.name, words(&error));
                    Outcome::Refused
                }
                Some(_) | None => Outcome::Ambiguous,
            },
            Err(_) => Outcome::Ambiguous,
        }
    }
}
