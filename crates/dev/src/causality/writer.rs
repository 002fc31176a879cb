//! Writers on hot keys: each tells in every transaction what it had seen before it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::sync::watch;

use super::Workload;
use crate::client::{Server, Session, words};

/// How long a writer waits before it connects again.
const RECONNECT: Duration = Duration::from_millis(100);
/// How long a transaction may take before its outcome counts as unknown.
const TRANSACTION_TIMEOUT: Duration = Duration::from_secs(30);

/// What one transaction does at most.
pub(super) const STEPS_MAX: usize = 4;

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
        let seed = self.workload.seed ^ (i64::from(self.number) << 32 | number).unsigned_abs();
        let mut rng = StdRng::seed_from_u64(seed);
        let kinds = self.workload.kinds();
        let steps = [1, 1, 1, 2, STEPS_MAX][rng.random_range(0..5)].min(self.workload.steps);
        let mut arrays: [Vec<String>; 5] = Default::default();
        for _ in 0..steps {
            let kind = format!("'{}'", kinds[rng.random_range(0..kinds.len())]);
            let mut any = |limit: i32| rng.random_range(1..=limit).to_string();
            let step = [kind, any(keys), any(keys), any(values), any(values)];
            arrays.iter_mut().zip(step).for_each(|(array, value)| array.push(value));
        }
        let arrays = arrays.map(|array| format!("array[{}]", array.join(", "))).join(", ");
        format!("select hot_steps({}, {number}, {arrays})", self.number)
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
