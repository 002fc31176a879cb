//! What the processes on a row's way have spent: user and system time, from the kernel.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};

use super::system::System;
use crate::client::Server;

/// Clock ticks per second of `/proc/PID/stat`: the same on every Linux of the machines PostgreSQL runs on.
const TICKS_PER_SECOND: f64 = 100.0;

/// Seconds of processor time, by part of the way; several receivers are added up.
pub(super) struct Usage(BTreeMap<&'static str, f64>);

impl Usage {
    /// What has been spent so far.
    pub(super) async fn of(system: &System) -> Result<Self> {
        let mut usage = Self(BTreeMap::new());
        usage.server("1 walsender of the origin", system.origin(), WALSENDER).await?;
        let receivers = system.receivers();
        match system {
            System::Native(cluster) => {
                let agent = |number| cluster.node(number).agent_pid().context("the agent is gone");
                usage.add("2 agent of the origin", agent(1)?)?;
                for number in 2..=1 + u16::try_from(receivers.len())? {
                    usage.add("3 agent of the receiver", agent(number)?)?;
                }
                for receiver in receivers {
                    usage.server("4 apply session", receiver, APPLY_SESSION).await?;
                    usage.server("5 walsender of the receiver", receiver, WALSENDER).await?;
                }
            }
            System::Pglogical { .. } => {
                for receiver in receivers {
                    usage.server("4 apply session", receiver, APPLY_WORKER).await?;
                }
            }
        }
        Ok(usage)
    }

    /// Adds the processes of a server that a query finds.
    async fn server(&mut self, part: &'static str, server: &Server, pids: &str) -> Result<()> {
        for pid in server.try_rows(pids).await? {
            self.add(part, pid.parse()?)?;
        }
        Ok(())
    }

    fn add(&mut self, part: &'static str, pid: u32) -> Result<()> {
        *self.0.entry(part).or_default() += spent_s(pid)?;
        Ok(())
    }

    /// What has been spent since `before`, in the order of the way.
    pub(super) fn since(&self, before: &Self) -> Vec<(&'static str, f64)> {
        let spent = |(part, after): (&&'static str, &f64)| {
            (*part, after - before.0.get(part).copied().unwrap_or(0.0))
        };
        self.0.iter().map(spent).collect()
    }
}

const WALSENDER: &str = "select pid from pg_stat_replication";
const APPLY_SESSION: &str =
    "select pid from pg_stat_activity where application_name = 'synapsedb apply 1'";
const APPLY_WORKER: &str =
    "select pid from pg_stat_activity where backend_type like 'pglogical apply%'";

/// User and system time of a process with all its threads.
pub(super) fn spent_s(pid: u32) -> Result<f64> {
    let path = format!("/proc/{pid}/stat");
    let text = std::fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    // The name, in parentheses, may hold anything.
    let (_, fields) = text.rsplit_once(')').context("a process without a name")?;
    let ticks = fields.split_whitespace().skip(11).take(2).map(str::parse::<f64>);
    Ok(ticks.sum::<Result<f64, _>>()? / TICKS_PER_SECOND)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_what_this_process_spent() -> Result<()> {
        let before = spent_s(std::process::id())?;
        let end = std::time::Instant::now() + std::time::Duration::from_millis(100);
        let mut turns = 0u64;
        while std::time::Instant::now() < end {
            turns += 1;
        }
        let spent = spent_s(std::process::id())? - before;
        assert!(turns > 0 && (0.01..10.0).contains(&spent), "{spent} s");
        Ok(())
    }
}
