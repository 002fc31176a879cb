//! The loop: keeps the managed server running, and tells how the server is.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use tokio::sync::watch;

use super::probe::{Facts, Probe, probe};
use super::server::Server;
use super::{Config, Health, Metrics, Mode, OsUser, State, Target, attached, bootstrap, data_dir};
use crate::tasks::Shutdown;

/// How often a server that is starting is asked.
const STARTING_POLL: Duration = Duration::from_millis(100);
/// A server that was ready for this long has not failed to start.
const STABLE: Duration = Duration::from_secs(30);

/// Runs the component.
pub struct Task {
    config: Config,
    target: Arc<Target>,
    health: watch::Sender<Health>,
    metrics: Metrics,
}

/// What a life of the server came to.
enum End {
    /// Shutdown was asked for, and the server is stopped.
    Asked,
    /// It ended, or could not be started.
    Failed {
        reason: String,
        /// How long it was ready.
        ready: Duration,
    },
}

impl Task {
    pub(super) fn new(
        config: Config,
        target: Arc<Target>,
        health: watch::Sender<Health>,
        metrics: Metrics,
    ) -> Self {
        Self { config, target, health, metrics }
    }

    /// Keeps the server running (managed) or watches it (attached) until `stop` is cancelled; then a managed server
    /// is stopped.
    ///
    /// # Errors
    /// Never by itself: what fails is told in the health and tried again.
    pub async fn run(self, stop: Shutdown) -> Result<()> {
        match self.config.mode {
            Mode::Managed => self.manage(&stop).await,
            Mode::Attached => self.watch_attached(&stop).await,
        }
        Ok(())
    }

    async fn manage(&self, stop: &Shutdown) {
        let mut failures: u32 = 0;
        while !stop.is_cancelled() {
            match self.one_life(stop).await {
                End::Asked => return,
                End::Failed { reason, ready } => {
                    tracing::error!("the server is down: {reason}");
                    self.down(reason);
                    failures = if ready > STABLE { 0 } else { failures.saturating_add(1) };
                }
            }
            let doubled =
                self.config.retry_min_ms.saturating_mul(1 << failures.saturating_sub(1).min(20));
            let wait = Duration::from_millis(doubled.min(self.config.retry_max_ms));
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// Makes, adopts or starts the server, and stays with it until it ends.
    async fn one_life(&self, stop: &Shutdown) -> End {
        let mut server = match self.start().await {
            Ok(server) => server,
            Err(error) => {
                return End::Failed { reason: format!("{error:#}"), ready: Duration::ZERO };
            }
        };
        let born = Instant::now();
        let mut ready_since: Option<Instant> = None;
        let mut failures = 0;
        let mut wait = Duration::ZERO;
        loop {
            let outcome = tokio::select! {
                () = stop.cancelled() => {
                    self.change(|health| health.state = State::Down { reason: "the agent stops".to_owned() });
                    server.stop(Duration::from_millis(self.config.stop_timeout_ms)).await;
                    return End::Asked;
                }
                reason = server.exited(&self.config.log_file) => {
                    self.metrics.exits.inc();
                    let ready = ready_since.map_or(Duration::ZERO, |since| since.elapsed());
                    return End::Failed { reason, ready };
                }
                outcome = self.ask(wait, ready_since.is_some()) => outcome,
            };
            match outcome {
                Probe::Alive(facts) => {
                    failures = 0;
                    ready_since.get_or_insert_with(Instant::now);
                    self.ready(facts);
                }
                Probe::Busy => failures = 0,
                Probe::Starting(_) if ready_since.is_none() => self.still_starting(born),
                Probe::Starting(why) | Probe::Failed(why) => {
                    failures += 1;
                    if ready_since.is_some() {
                        self.failed_probe(failures, why);
                    } else {
                        self.still_starting(born);
                        tracing::debug!("not ready yet: {why}");
                    }
                }
            }
            wait = match ready_since {
                Some(_) => Duration::from_millis(self.config.probe_interval_ms),
                None => STARTING_POLL,
            };
        }
    }

    async fn start(&self) -> Result<Server> {
        let user = OsUser::for_server(&self.config.os_user)?;
        let (config, owner, password) =
            (self.config.clone(), user.clone(), self.target.password.clone());
        // initdb takes seconds.
        let prepare = move || data_dir::prepare(&config, owner.as_ref(), password.as_deref());
        let binaries = tokio::task::spawn_blocking(prepare)
            .await
            .map_err(|error| anyhow!("making the server was interrupted: {error}"))??;
        let server = Server::adopt_or_start(&self.config, user.as_ref(), &binaries).await?;
        if !server.is_adopted() {
            self.metrics.starts.inc();
        }
        Ok(server)
    }

    /// Waits, then probes; the first time the role and the database are made before the server counts as alive.
    async fn ask(&self, wait: Duration, made: bool) -> Probe {
        tokio::time::sleep(wait).await;
        if !made {
            let maintenance = self.target.in_database("postgres");
            match probe(&maintenance, self.config.probe_timeout_ms).await {
                Probe::Alive(_) => {}
                other => return other,
            }
            if let Err(error) = bootstrap::ensure(&self.config, &self.target).await {
                tracing::warn!("cannot make the role and the database: {error:#}");
                return Probe::Failed(format!("cannot make the role and the database: {error:#}"));
            }
        }
        probe(&self.target, self.config.probe_timeout_ms).await
    }

    async fn watch_attached(&self, stop: &Shutdown) {
        let mut checked: Option<String> = None;
        let mut failures = 0;
        let mut wait = Duration::ZERO;
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(wait) => {}
            }
            wait = Duration::from_millis(self.config.probe_interval_ms);
            if checked.is_none() {
                match attached::check(&self.config, &self.target).await {
                    Ok(facts) => {
                        failures = 0;
                        checked = Some(facts.postmaster_started.clone());
                        self.ready(facts);
                    }
                    Err(problems) => {
                        self.metrics.probe_failures.inc();
                        self.down(problems.join("; "));
                    }
                }
                continue;
            }
            match probe(&self.target, self.config.probe_timeout_ms).await {
                Probe::Alive(facts) if checked.as_ref() == Some(&facts.postmaster_started) => {
                    failures = 0;
                    self.ready(facts);
                }
                // Started anew: its settings may be others.
                Probe::Alive(_) => {
                    checked = None;
                    wait = Duration::ZERO;
                }
                Probe::Busy => failures = 0,
                Probe::Starting(why) | Probe::Failed(why) => {
                    failures += 1;
                    self.failed_probe(failures, why);
                }
            }
        }
    }

    fn failed_probe(&self, failures: u32, why: String) {
        self.metrics.probe_failures.inc();
        if failures >= self.config.probe_failures_max {
            self.down(why);
        }
    }

    fn still_starting(&self, born: Instant) {
        let timeout = Duration::from_millis(self.config.start_timeout_ms);
        if born.elapsed() > timeout {
            self.down(format!(
                "the server is not ready after {timeout:?}; see {}",
                self.config.log_file.display()
            ));
        } else {
            self.change(|health| health.state = State::Starting);
        }
    }

    fn ready(&self, facts: Facts) {
        let known = self.health.borrow().is_ready();
        if !known {
            tracing::info!(version = facts.version, "the server is ready");
        }
        self.metrics.ready.set(1);
        self.change(|health| {
            health.state = State::Ready;
            health.version = facts.version;
            health.postmaster_started = Some(facts.postmaster_started);
            health.system_identifier = facts.system_identifier;
        });
    }

    fn down(&self, reason: String) {
        if self.health.borrow().is_ready() {
            tracing::warn!("the server does not take sessions: {reason}");
        }
        self.metrics.ready.set(0);
        self.change(|health| health.state = State::Down { reason });
    }

    /// Watchers are told only of real changes.
    fn change(&self, change: impl FnOnce(&mut Health)) {
        self.health.send_if_modified(|health| {
            let before = health.clone();
            change(health);
            *health != before
        });
    }
}
