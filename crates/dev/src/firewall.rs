//! Drops a node's traffic with its peers, really: nftables rules on the packets of its agent.
//!
//! All nodes of a test live on 127.0.0.1, so an address does not tell them apart. What others send to a node is
//! known by the node's port; what the node itself sends is known by the control group of its agent. The rules stand
//! in a table of our own, named after this process and the node, and go with it.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

/// Where version 2 of the control groups may be mounted, beside or below version 1.
const MOUNTS: [&str; 2] = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];

/// A control group of one agent, by which its packets are known.
#[derive(Debug)]
pub struct Group {
    folder: PathBuf,
}

impl Group {
    /// Makes the group `name`.
    ///
    /// # Errors
    /// Why this machine cannot cut off a node: no root, no nftables, no control groups.
    pub fn make(name: &str) -> Result<Self> {
        if !rustix::process::geteuid().is_root() {
            bail!("cutting off a node needs root");
        }
        let works = Command::new("nft")
            .args(["list", "tables"])
            .stdin(Stdio::null())
            .output()
            .is_ok_and(|output| output.status.success());
        if !works {
            bail!("cutting off a node needs nftables (the program nft)");
        }
        let mount = MOUNTS.iter().map(PathBuf::from);
        let Some(mount) = mount.into_iter().find(|path| path.join("cgroup.procs").is_file()) else {
            bail!("cutting off a node needs version 2 of the kernel's control groups");
        };
        let folder = mount.join(name);
        fs::create_dir_all(&folder)
            .with_context(|| format!("make the control group {}", folder.display()))?;
        Ok(Self { folder })
    }

    /// Where it is.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The file into which a process writes its number to join.
    pub fn members(&self) -> PathBuf {
        self.folder.join("cgroup.procs")
    }

    /// Its name as nft writes it: relative to /sys/fs/cgroup.
    fn name(&self) -> String {
        let relative = self.folder.strip_prefix(MOUNTS[0]).unwrap_or(&self.folder);
        relative.display().to_string()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Fails while a process is left in it; an empty group costs nothing.
        let _ = fs::remove_dir(&self.folder);
    }
}

/// A cut: it is repaired when dropped.
#[derive(Debug)]
pub struct Cut {
    table: String,
}

impl Cut {
    /// Drops everything between two agents, each with the port on which it listens, and nothing else.
    ///
    /// # Errors
    /// When nft refuses the rules.
    pub fn between(table: &str, one: (&Group, u16), other: (&Group, u16)) -> Result<Self> {
        let rule = |hook: &str, (from, _): (&Group, u16), (_, port): (&Group, u16)| {
            let side = if hook == "output" { "dport" } else { "sport" };
            let group = from.name();
            format!(
                "socket cgroupv2 level 1 \"{group}\" meta l4proto {{ tcp, udp }} th {side} {port} drop"
            )
        };
        let chain = |hook: &str| {
            format!(
                "chain {hook}_ {{ type filter hook {hook} priority 0; policy accept;\n{}\n{}\n}}",
                rule(hook, one, other),
                rule(hook, other, one)
            )
        };
        let rules = format!("table inet {table} {{\n{}\n{}\n}}", chain("output"), chain("input"));
        nft(&rules).with_context(|| format!("set up the nftables table {table}"))?;
        Ok(Self { table: table.to_owned() })
    }

    /// Drops what the agent of `group`, which listens on `own`, exchanges with its peers, which listen on `others`.
    ///
    /// # Errors
    /// When nft refuses the rules.
    pub fn make(table: &str, group: &Group, own: u16, others: &[u16]) -> Result<Self> {
        let ports = others.iter().map(u16::to_string).collect::<Vec<_>>().join(", ");
        let group = group.name();
        let rules = format!(
            "table inet {table} {{
                chain sent {{
                    type filter hook output priority 0; policy accept;
                    meta l4proto {{ tcp, udp }} th sport {own} drop
                    meta l4proto {{ tcp, udp }} th dport {own} drop
                    socket cgroupv2 level 1 \"{group}\" meta l4proto {{ tcp, udp }} th dport {{ {ports} }} drop
                }}
                chain received {{
                    type filter hook input priority 0; policy accept;
                    socket cgroupv2 level 1 \"{group}\" meta l4proto {{ tcp, udp }} th sport {{ {ports} }} drop
                }}
            }}"
        );
        nft(&rules).with_context(|| format!("set up the nftables table {table}"))?;
        Ok(Self { table: table.to_owned() })
    }
}

impl Drop for Cut {
    fn drop(&mut self) {
        if let Err(error) = nft(&format!("delete table inet {}", self.table)) {
            tracing::warn!("the nftables table {} is left behind: {error:#}", self.table);
        }
    }
}

fn nft(rules: &str) -> Result<()> {
    let mut child = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("run nft")?;
    child.stdin.take().context("the input of nft")?.write_all(rules.as_bytes())?;
    let output = child.wait_with_output()?;
    if !output.status.success() {
        bail!("nft: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_takes_the_rules() -> Result<()> {
        let name = format!("synapsedb_dev_{}_test", std::process::id());
        let group = match Group::make(&name) {
            Ok(group) => group,
            Err(error) => {
                eprintln!("skipped: {error:#}");
                return Ok(());
            }
        };
        // Ports below those of any cluster of a test.
        drop(Cut::make(&name, &group, 19_001, &[19_002, 19_003])?);
        assert!(Cut::make(&name, &group, 19_001, &[19_002]).is_ok(), "the table was not removed");
        Ok(())
    }
}
