//! The two loops: registering this node, and, on the leader, appointing the primary.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use synapsedb_core::backoff::Backoff;
use synapsedb_core::failover::{Decision, Facts, decide};
use synapsedb_core::ids::NodeId;
use synapsedb_core::state::{Command, Outcome, Refusal};
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use super::facts::Observer;
use super::metrics::Metrics;
use super::{Config, World, api, registration};
use crate::layout::Identity;
use crate::tasks::Shutdown;

/// A committed registration becomes visible here within this time, or it is looked at again.
const VISIBLE_WITHIN: Duration = Duration::from_secs(1);

/// The running component.
pub struct Task {
    config: Config,
    identity: Identity,
    world: World,
    metrics: Metrics,
    status: watch::Sender<api::Status>,
}

impl Task {
    pub(super) fn new(
        config: Config,
        identity: Identity,
        world: World,
        metrics: Metrics,
        status: watch::Sender<api::Status>,
    ) -> Self {
        Self { config, identity, world, metrics, status }
    }

    /// Registers this node and watches over the primary, until `stop`.
    ///
    /// # Errors
    /// The cluster refuses this node: its data was wiped, is an old copy or belongs to another node, or it was
    /// removed. Nothing has changed then; the text says what to do.
    pub async fn run(self, stop: Shutdown) -> Result<()> {
        tokio::select! {
            () = stop.cancelled() => Ok(()),
            refused = self.register() => refused,
            () = self.watch_over() => Ok(()),
        }
    }

    /// Keeps the cluster told of this node; ends only when that is refused.
    async fn register(&self) -> Result<()> {
        let mut state = self.world.state.clone();
        let mut registration = self.world.registration.clone();
        let mut backoff = Backoff::new(self.config.backoff());
        loop {
            let state_now = state.borrow_and_update().clone();
            let due =
                registration::due(&state_now, &self.identity, &registration.borrow_and_update());
            self.told(|status| status.registered = due.is_none());
            let Some(command) = due else {
                tokio::select! {
                    () = changed(&mut state) => {}
                    () = changed(&mut registration) => {}
                }
                continue;
            };
            match self.propose(command).await {
                Ok(Outcome::Applied | Outcome::Unchanged) => {
                    backoff.succeeded();
                    self.told(|status| status.registration_error = None);
                    // The answer may be here before this node has applied the command itself.
                    let _ = timeout(VISIBLE_WITHIN, changed(&mut state)).await;
                }
                Ok(Outcome::Refused(refusal)) => return self.refused(&refusal),
                Err(error) => {
                    self.metrics.registration_failures.inc();
                    let wait_ms = backoff.failed(rand::random());
                    if backoff.failures().is_power_of_two() {
                        tracing::warn!("failover: this node is not registered yet: {error}");
                    }
                    self.told(|status| status.registration_error = Some(error));
                    sleep(Duration::from_millis(wait_ms)).await;
                }
            }
        }
    }

    fn refused(&self, refusal: &Refusal) -> Result<()> {
        let text = refusal.to_string();
        self.told(|status| status.registration_error = Some(text.clone()));
        bail!("failover: the cluster refuses to register node {}: {text}", self.identity.node)
    }

    /// Looks at the cluster round after round, and acts upon it while this node leads.
    async fn watch_over(&self) {
        let started = Instant::now();
        let mut observer = Observer::default();
        let mut rounds = interval(Duration::from_millis(self.config.round_ms.max(1)));
        rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            rounds.tick().await;
            let now_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
            self.round(&mut observer, now_ms).await;
        }
    }

    async fn round(&self, observer: &mut Observer, now_ms: u64) {
        let state = self.world.state.borrow().clone();
        let view = self.world.view.borrow().clone();
        // Also those who do not lead keep looking: whoever leads next knows since when things are as they are.
        let age = self.config.reachable_age_ms;
        let nodes = observer.look(&state, &view, self.identity.node, age, now_ms);
        self.show(state.primary, state.epoch.0);
        if !(self.world.is_leader)() {
            return self.decided(false, false);
        }
        if state.primary.is_some() && now_ms < self.config.settle_ms {
            return self.decided(true, false);
        }
        let facts =
            Facts { state: &state, nodes: &nodes, changed_ms: observer.changed_ms(), now_ms };
        match decide(&facts, &self.config.core()) {
            Decision::Keep => self.decided(true, false),
            Decision::NobodyEligible => self.decided(true, true),
            Decision::Appoint(node) => {
                self.decided(true, false);
                let before = state.primary;
                self.appoint(node, before, Command::SetPrimary { node, expected: state.epoch })
                    .await;
            }
        }
    }

    async fn appoint(&self, node: NodeId, before: Option<NodeId>, command: Command) {
        let failure = match self.propose(command).await {
            Ok(Outcome::Applied) => {
                tracing::info!(
                    primary = node.get(),
                    before = before.map(NodeId::get),
                    "failover: the primary changed"
                );
                self.metrics.appointments.inc();
                self.told(|status| {
                    status.appointments += 1;
                    status.appointment_error = None;
                });
                return;
            }
            Ok(Outcome::Unchanged) => return,
            Ok(Outcome::Refused(refusal)) => refusal.to_string(),
            Err(error) => error,
        };
        self.metrics.appointment_failures.inc();
        tracing::warn!(primary = node.get(), "failover: the primary was not changed: {failure}");
        self.told(|status| status.appointment_error = Some(failure));
    }

    async fn propose(&self, command: Command) -> Result<Outcome, String> {
        let patience = Duration::from_millis(self.config.propose_timeout_ms);
        match timeout(patience, (self.world.propose)(command)).await {
            Ok(outcome) => outcome,
            Err(_) => Err(format!("not committed within {patience:?}")),
        }
    }

    fn show(&self, primary: Option<NodeId>, epoch: u64) {
        self.metrics.primary.set(primary.map_or(0, |node| i64::from(node.get())));
        self.metrics.epoch.set(i64::try_from(epoch).unwrap_or(i64::MAX));
        self.told(|status| {
            status.primary = primary.map(NodeId::get);
            status.epoch = epoch;
        });
    }

    fn decided(&self, deciding: bool, nobody_eligible: bool) {
        if nobody_eligible && !self.status.borrow().nobody_eligible {
            tracing::warn!("failover: a primary is needed and no node is ready to be it");
        }
        self.metrics.nobody_eligible.set(i64::from(nobody_eligible));
        self.told(|status| {
            status.deciding = deciding;
            status.nobody_eligible = nobody_eligible;
        });
    }

    fn told(&self, change: impl FnOnce(&mut api::Status)) {
        self.status.send_modify(change);
    }
}

/// Waits for a change; forever, if its source has gone.
async fn changed<T>(receiver: &mut watch::Receiver<T>) {
    if receiver.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}
