//! The wiring of the agent: every component, in order, on one page. A component holds no handle of a later one.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use prometheus_client::registry::Registry;
use synapsedb_core::ids::NodeId;
use synapsedb_core::state::{Addresses, Member, MemberStatus};
use tokio::sync::watch;

use crate::config::AgentConfig;
use crate::failover::Registration;
use crate::http::{self, Parts, Port, StatusSource};
use crate::layout::Identity;
use crate::tasks::{Shutdown, Tasks};
use crate::{
    failover, gossip, members, metrics, peers, postgres, raft, replication, router, tls, twin,
};

/// Runs the agent of this configuration, which is in `file`, until `stop` is cancelled or a component fails.
///
/// # Errors
/// What kept a component from starting, or the error of the first one that failed. The data is untouched by either:
/// the next start is the recovery.
pub async fn run(config: AgentConfig, file: &Path, stop: Shutdown) -> Result<()> {
    let grace = Duration::from_millis(config.node.stop_timeout_ms);
    let mut registry = metrics::registry();
    let mut tasks = Tasks::new(stop);
    let ground = Ground::start(&config, &mut tasks, &mut registry).await?;
    let read_again = config.read_again(file.to_owned());
    start_services(config, read_again, ground, &mut tasks, registry)?;
    tasks.run(grace).await
}

/// What everything else stands on: the server, and what is known and decided with the others.
struct Ground {
    identity: Identity,
    postgres: postgres::Handle,
    agreement: Agreement,
}

impl Ground {
    async fn start(
        config: &AgentConfig,
        tasks: &mut Tasks,
        registry: &mut Registry,
    ) -> Result<Self> {
        let identity = config.identity()?;

        // The server beside this agent. It needs nobody, and starting it takes longest.
        let (postgres, task) = postgres::new(config.postgres.clone(), registry)?;
        tasks.spawn("postgres", |stop| task.run(stop));

        let agreement = Agreement::start(config, &identity, Heard::Always, tasks, registry).await?;
        Ok(Self { identity, postgres, agreement })
    }
}

/// Whether a node counts as alive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Heard {
    /// The others hear from it.
    Always,
    /// It votes and is silent otherwise, since it serves nobody.
    InRaft,
}

/// The node's part in what the cluster knows and decides, which needs no server.
pub(crate) struct Agreement {
    tls: tls::Handle,
    peers: peers::Handle,
    gossip: gossip::Handle,
    raft: raft::Handle,
}

impl Agreement {
    pub(crate) async fn start(
        config: &AgentConfig,
        identity: &Identity,
        heard: Heard,
        tasks: &mut Tasks,
        registry: &mut Registry,
    ) -> Result<Self> {
        let addresses = config.peer_addresses();

        // Who we are, and whom we believe.
        let tls = tls::load(&config.tls, identity)?;

        // The only way to other agents.
        let listen = config.peers.clone();
        let (peers, task) =
            peers::new(listen, identity.clone(), addresses.clone(), &tls, registry)?;
        tasks.spawn("peers", |stop| task.run(stop));
        let twin = twin::watch(&peers, identity.node).await?;
        tasks.spawn("twin", |stop| twin.run(stop));

        // Who is alive: evidence, never a decision.
        let limits = config.gossip.clone();
        let (gossip, task) =
            gossip::new(limits, identity.clone(), addresses.clone(), &tls, registry)?;
        match heard {
            Heard::Always => tasks.spawn("gossip", |stop| task.run(stop)),
            Heard::InRaft => drop(task),
        }

        // What the cluster intends: the only decisions.
        let limits = config.raft.clone();
        let (raft, task) =
            raft::new(limits, identity.clone(), addresses.clone(), peers.clone(), registry).await?;
        tasks.spawn("raft", |stop| task.run(stop));

        // Where the others are, as that changes.
        let members = members::Task {
            me: identity.node,
            seeds: addresses,
            state: raft.watch(),
            peers: peers.clone(),
            gossip: gossip.clone(),
        };
        tasks.spawn("members", |stop| members.run(stop));

        Ok(Self { tls, peers, gossip, raft })
    }
}

fn start_services(
    config: AgentConfig,
    read_again: router::ReadAgain,
    ground: Ground,
    tasks: &mut Tasks,
    mut registry: Registry,
) -> Result<()> {
    let own = config.own_member().cloned().context("node.id has no [[member]] table")?;
    let Ground { identity, postgres, agreement } = ground;
    let Agreement { tls, peers, gossip, raft } = agreement;
    let ways = (peers.clone(), router_local(&config.postgres, &postgres));

    // The rows.
    let (replication, task) = replication::new(
        config.replication,
        identity.clone(),
        peers,
        gossip.clone(),
        raft.clone(),
        postgres.clone(),
        &mut registry,
    )?;
    tasks.spawn("replication", |stop| task.run(stop));

    // This node's entry among the members, and which node takes the writes.
    let addresses = Addresses { peers: own.peers, postgres: own.postgres, http: own.http };
    let (registration, task) =
        registration(addresses, &postgres, &replication, &raft, identity.node);
    tasks.spawn("registration", |stop| task.run(stop));
    let (failover, task) = failover::new(
        config.failover,
        identity.clone(),
        &raft,
        &gossip,
        registration,
        &mut registry,
    );
    tasks.spawn("failover", |stop| task.run(stop));

    // Where applications connect.
    let (peers, local) = ways;
    let seen = (&gossip, &peers, &replication);
    let world =
        router::World::new(&config.router, &identity, &raft, seen, (local, read_again), &tls);
    let (router, task) = router::new(config.router, world, &mut registry)?;
    tasks.spawn("router", |stop| task.run(stop));

    // Where people and programs look.
    let shown = Shown { identity, postgres, gossip, raft, replication, failover, router };
    let (_http, task) = http::new(config.http, shown.parts(registry))?;
    tasks.spawn("http", |stop| task.run(stop));
    Ok(())
}

/// How the router reaches the server beside it. A managed one by its unix socket, and then the agent's superuser, who
/// is kept out by pg_hba.conf on every other way, must not come in.
fn router_local(config: &postgres::Config, handle: &postgres::Handle) -> router::Local {
    let control = handle.local();
    match config.mode {
        postgres::Mode::Managed => router::Local {
            socket: control.unix_socket(),
            reserved: Some(control.user.clone()),
            admin: Some(config.role.clone()),
            control,
        },
        postgres::Mode::Attached => router::Local {
            socket: None,
            reserved: None,
            admin: Some(config.role.clone()),
            control,
        },
    }
}

/// The components that `/status` and the other routes show.
struct Shown {
    identity: Identity,
    postgres: postgres::Handle,
    gossip: gossip::Handle,
    raft: raft::Handle,
    replication: replication::Handle,
    failover: failover::Handle,
    router: router::Handle,
}

impl Shown {
    fn parts(self, registry: Registry) -> Parts {
        let Self { identity, postgres, gossip, raft, replication, failover, router } = self;
        Parts {
            identity,
            routes: vec![
                (Port::Raft, raft::api::routes(raft.clone())),
                (Port::Raft, replication::api::routes(replication.clone())),
                (Port::Gossip, gossip::api::routes(gossip.clone())),
                (Port::Stats, router::stats::routes(router.clone())),
            ],
            documents: vec![
                raft::api::document(),
                replication::api::document(),
                gossip::api::document(),
                router::stats::document(),
            ],
            registry: Arc::new(registry),
            ready: readiness(&postgres, &raft, &replication),
            status: vec![
                ("postgres", source(move || postgres.status())),
                ("gossip", source(move || gossip.status())),
                ("raft", source(move || raft.status())),
                ("replication", source(move || replication.status())),
                ("failover", source(move || failover.status())),
                ("router", source(move || router.status())),
            ],
        }
    }
}

/// What must hold before this node counts as ready, in the order in which a person would look.
fn readiness(
    postgres: &postgres::Handle,
    raft: &raft::Handle,
    replication: &replication::Handle,
) -> http::Readiness {
    let (postgres, raft, replication) = (postgres.clone(), raft.clone(), replication.clone());
    Arc::new(move || {
        let server = match &postgres.health().borrow().state {
            postgres::State::Ready => None,
            postgres::State::Starting => Some("the server is starting".to_owned()),
            postgres::State::Down { reason } => Some(reason.clone()),
        };
        let leader = raft.leader().is_none().then(|| "no leader is known".to_owned());
        let primary =
            raft.state().primary.is_none().then(|| "no primary has been appointed".to_owned());
        [
            ("postgres", server),
            ("raft", leader),
            ("primary", primary),
            ("replication", replication.not_ready()),
        ]
        .map(|(name, reason)| http::ReadyCheck { name, ready: reason.is_none(), reason })
        .into()
    })
}

fn source<S: serde::Serialize>(status: impl Fn() -> S + Send + Sync + 'static) -> StatusSource {
    Arc::new(move || {
        serde_json::to_value(status())
            .unwrap_or_else(|error| serde_json::json!({ "error": error.to_string() }))
    })
}

/// Tells the members table of the server's version and identity as soon as they are known.
struct RegistrationTask {
    health: watch::Receiver<postgres::Health>,
    /// Whether the peers have said that this node's data is what they know.
    may_publish: watch::Receiver<bool>,
    replication: replication::Handle,
    raft: raft::Handle,
    me: NodeId,
    told: watch::Sender<Registration>,
}

fn registration(
    addresses: Addresses,
    postgres: &postgres::Handle,
    replication: &replication::Handle,
    raft: &raft::Handle,
    me: NodeId,
) -> (watch::Receiver<Registration>, RegistrationTask) {
    let known = Registration { held: true, addresses, ..Registration::default() };
    let (told, registration) = watch::channel(known);
    let (health, may_publish) = (postgres.health(), replication.may_publish());
    let (replication, raft) = (replication.clone(), raft.clone());
    (registration, RegistrationTask { health, may_publish, replication, raft, me, told })
}

/// How often a joining node looks whether it has caught up.
const BEHIND_POLL: Duration = Duration::from_millis(250);

impl RegistrationTask {
    /// Whether this node is joining and lacks rows of the others: it takes part when it has them. Before it follows a
    /// leader it does not know what it is.
    fn is_behind(&self) -> bool {
        let joining = |me: &Member| me.status == MemberStatus::Joining;
        let joining = self.raft.state().members.get(&self.me).is_some_and(joining);
        self.raft.leader().is_none() || (joining && self.replication.not_ready().is_some())
    }

    async fn run(mut self, stop: Shutdown) -> Result<()> {
        loop {
            let health = self.health.borrow_and_update().clone();
            let known = *self.may_publish.borrow_and_update();
            let held = !known || self.is_behind();
            self.told.send_if_modified(|told| {
                let freed = told.held && !held;
                told.held &= held;
                let news = health.version != 0
                    && (told.postgres_version, &told.system_identifier)
                        != (health.version, &health.system_identifier);
                if news {
                    told.postgres_version = health.version;
                    told.system_identifier = health.system_identifier;
                }
                news || freed
            });
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                () = tokio::time::sleep(BEHIND_POLL), if known && held => {}
                changed = self.health.changed() => changed.context("the server's health is gone")?,
                changed = self.may_publish.changed() => changed.context("replication is gone")?,
            }
        }
    }
}
