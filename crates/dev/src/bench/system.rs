//! The two systems that are measured: a SynapseDB mesh, and two servers with one pglogical subscription.

use std::fmt;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use super::pglogical;
use crate::binary::Binary;
use crate::client::Server;
use crate::cluster::Cluster;
use crate::eventually::try_eventually;
use crate::postgres::Postgres;

/// The tables of the measurements.
const TABLES: &str = include_str!("tables.sql");
/// The settings that both systems share.
const SETTINGS: &str = include_str!("settings.sql");
/// How long a set-up may take.
const SETUP_TIMEOUT: Duration = Duration::from_secs(60);

/// A system under measurement.
pub(super) enum System {
    /// A mesh: rows are written on node 1 and looked for on node 2.
    Native(Box<Cluster>),
    /// A provider and a subscriber.
    Pglogical {
        /// Where rows are written.
        provider: Box<Postgres>,
        /// Where they are looked for.
        subscribers: Vec<Postgres>,
    },
}

/// What stands still while transactions accumulate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pause {
    /// The receiving side only.
    Receiver,
    /// The sending side too, so that it has read nothing of the WAL before.
    Both,
}

impl fmt::Display for Pause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Receiver => "receiver paused",
            Self::Both => "sender and receiver paused",
        })
    }
}

impl System {
    /// Starts a mesh with the tables of the measurements.
    pub(super) async fn native(binary: &Binary, nodes: u16) -> Result<Self> {
        let cluster = binary.cluster(nodes).await;
        Self::of(cluster).await
    }

    /// The same, with so many workers for every lane.
    pub(super) async fn with_workers(binary: &Binary, nodes: u16, workers: i64) -> Result<Self> {
        let cluster = binary.lay_out(nodes);
        for node in cluster.nodes() {
            node.configure("replication.apply_workers", workers);
        }
        cluster.start().await;
        Self::of(cluster).await
    }

    async fn of(cluster: Cluster) -> Result<Self> {
        cluster.node(1).server().try_rows(TABLES).await?;
        cluster.all_show("select n from bench_marker", &["0"]).await;
        Ok(Self::Native(Box::new(cluster)))
    }

    /// Starts a provider of PostgreSQL `major` with these settings, and so many subscribers.
    pub(super) async fn pglogical(major: u16, settings: &str, receivers: u16) -> Result<Self> {
        let programs = pglogical::programs(major)?;
        let provider = Box::new(pglogical::server("provider", &programs, settings).await?);
        prepare(&provider).await?;
        let publish = "select pglogical.replication_set_add_all_tables('default', array['public'])";
        provider.server().try_rows(publish).await?;
        let mut subscribers = Vec::new();
        for number in 1..=receivers {
            let name = format!("subscriber_{number}");
            let subscriber = pglogical::server(&name, &programs, settings).await?;
            prepare(&subscriber).await?;
            subscribe(&subscriber, &provider).await?;
            subscribers.push(subscriber);
        }
        Ok(Self::Pglogical { provider, subscribers })
    }

    /// Where rows are written.
    pub(super) fn origin(&self) -> &Server {
        match self {
            Self::Native(cluster) => cluster.node(1).server(),
            Self::Pglogical { provider, .. } => provider.server(),
        }
    }

    /// Where they are looked for.
    pub(super) fn receiver(&self) -> &Server {
        match self {
            Self::Native(cluster) => cluster.node(2).server(),
            Self::Pglogical { subscribers, .. } => subscribers[0].server(),
        }
    }

    /// All servers but the origin.
    pub(super) fn receivers(&self) -> Vec<&Server> {
        match self {
            Self::Native(cluster) => {
                cluster.nodes()[1..].iter().map(|node| node.server()).collect()
            }
            Self::Pglogical { subscribers, .. } => {
                subscribers.iter().map(|subscriber| subscriber.server()).collect()
            }
        }
    }

    /// The pauses that make a difference: pglogical's sender reads the WAL only for a connected receiver.
    pub(super) fn pauses(&self) -> &'static [Pause] {
        match self {
            Self::Native(_) => &[Pause::Receiver, Pause::Both],
            Self::Pglogical { .. } => &[Pause::Receiver],
        }
    }

    /// Lets the receiver, or both sides, stand still.
    pub(super) async fn pause(&self, pause: Pause) -> Result<()> {
        match self {
            Self::Native(cluster) => {
                cluster.node(2).pause_agent();
                if pause == Pause::Both {
                    cluster.node(1).pause_agent();
                }
            }
            Self::Pglogical { .. } => {
                let name = &self.receiver().name;
                let stop = format!("select pglogical.alter_subscription_disable('{name}', true)");
                self.receiver().try_rows(&stop).await?;
            }
        }
        Ok(())
    }

    /// Lets everything go on. Returns as soon as it has been told.
    pub(super) async fn resume(&self) -> Result<()> {
        match self {
            Self::Native(cluster) => {
                cluster.node(1).resume();
                cluster.node(2).resume();
            }
            Self::Pglogical { .. } => {
                let name = &self.receiver().name;
                let go = format!("select pglogical.alter_subscription_enable('{name}', true)");
                self.receiver().try_rows(&go).await?;
            }
        }
        Ok(())
    }

    /// The major version of the servers.
    pub(super) async fn major(&self) -> Result<u16> {
        let number = self.origin().try_rows("show server_version_num").await?.concat();
        Ok(number.parse::<u32>().context("the server's version")?.div_euclid(10_000) as u16)
    }

    /// The settings of the servers, as lines of a configuration.
    pub(super) async fn settings(&self) -> Result<String> {
        Ok(self.origin().try_rows(SETTINGS).await?.join("\n"))
    }

    /// The version of the extension, or nothing.
    pub(super) async fn version(&self) -> Result<String> {
        let version = "select extversion from pg_extension where extname = 'pglogical'";
        Ok(self.origin().try_rows(version).await?.concat())
    }
}

/// Makes the extension, its node and the tables.
async fn prepare(server: &Postgres) -> Result<()> {
    let side = server.server();
    side.try_rows("create extension pglogical").await?;
    let make = format!("select pglogical.create_node('{}', '{}')", side.name, pglogical::dsn(side));
    side.try_rows(&make).await?;
    side.try_rows(TABLES).await?;
    Ok(())
}

/// The subscription has the subscriber's name, which is part of its slot's: two of one name would be one.
async fn subscribe(subscriber: &Postgres, provider: &Postgres) -> Result<()> {
    let name = &subscriber.server().name;
    let subscribe = format!(
        "select pglogical.create_subscription('{name}', '{}', synchronize_structure := false,
         synchronize_data := false)",
        pglogical::dsn(provider.server())
    );
    subscriber.server().try_rows(&subscribe).await?;
    let status = format!("select status from pglogical.show_subscription_status('{name}')");
    let wait = try_eventually(SETUP_TIMEOUT, async || {
        subscriber.server().shows(&status, &["replicating"]).await
    });
    match wait.await {
        Ok(()) => Ok(()),
        Err(reason) => bail!("the subscription does not replicate: {reason}\n{}", subscriber.log()),
    }
}
