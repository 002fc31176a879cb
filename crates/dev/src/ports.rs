//! Ports that are free now and that no other test of this machine takes.

use std::fs::{self, File};
use std::io;
use std::net::{TcpListener, UdpSocket};

use anyhow::{Context as _, Result, bail};

/// The first base: below the range from which Linux gives ports to outgoing connections (32768 and up).
const FIRST: u16 = 20_000;
/// The distance between two bases: more than the ports of a cluster of 16 nodes.
const STEP: u16 = 150;
/// How many bases there are.
const COUNT: u16 = 80;

/// A port base of our own: the ports of one cluster follow from it, as in `synapsedb up --port-base`.
#[derive(Debug)]
pub struct PortBase {
    base: u16,
    // Holds the lock until the base is dropped or the process ends.
    _lock: File,
}

impl PortBase {
    /// Takes a base whose ports for `nodes` nodes are all free on 127.0.0.1.
    ///
    /// # Errors
    /// When there is none, or when the folder of the lock files cannot be made.
    pub fn take(nodes: u16) -> Result<Self> {
        // Users have folders of their own: one could not open the other's locks. Between users, the look at the
        // ports themselves decides.
        let user = rustix::process::getuid().as_raw();
        let folder = std::env::temp_dir().join(format!("synapsedb-ports-{user}"));
        fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
        let start = (std::process::id() % u32::from(COUNT)) as u16;
        for number in 0..COUNT {
            let base = FIRST + (start + number) % COUNT * STEP;
            let path = folder.join(format!("{base}.lock"));
            let lock = File::create(&path).with_context(|| format!("make {}", path.display()))?;
            if lock.try_lock().is_ok() && all_free(base, nodes) {
                return Ok(Self { base, _lock: lock });
            }
        }
        bail!("no port base from {FIRST} on has all its ports free");
    }

    /// The number itself.
    pub fn get(&self) -> u16 {
        self.base
    }

    /// The read endpoint's port.
    pub fn read(&self) -> u16 {
        self.base + 1
    }

    /// The write endpoint's port.
    pub fn write(&self) -> u16 {
        self.base + 2
    }

    /// The port of the router's statistics.
    pub fn stats(&self) -> u16 {
        self.base + 3
    }

    /// A port for the split endpoint, which a test switches on by `router.split_listen`.
    pub fn split(&self) -> u16 {
        self.base + 4
    }

    /// The port on which the agents of the other nodes reach `node` (TCP and UDP).
    pub fn peers(&self, node: u16) -> u16 {
        self.base + 10 + (node - 1)
    }

    /// The port of the PostgreSQL server of `node`.
    pub fn postgres(&self, node: u16) -> u16 {
        self.base + 32 + (node - 1)
    }

    /// The first of the four HTTP ports of `node`.
    pub fn http(&self, node: u16) -> u16 {
        self.base + 80 + 4 * (node - 1)
    }
}

fn all_free(base: u16, nodes: u16) -> bool {
    let tcp = |port: u16| TcpListener::bind(("127.0.0.1", port)).map(drop);
    let udp = |port: u16| UdpSocket::bind(("127.0.0.1", port)).map(drop);
    let probe = || -> io::Result<()> {
        tcp(base + 1)?;
        tcp(base + 2)?;
        tcp(base + 4)?;
        for node in 0..nodes {
            tcp(base + 10 + node)?;
            udp(base + 10 + node)?;
            tcp(base + 32 + node)?;
            for http in 0..4 {
                tcp(base + 80 + 4 * node + http)?;
            }
        }
        Ok(())
    };
    probe().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_held_base_is_not_given_again() -> Result<()> {
        let one = PortBase::take(3)?;
        let two = PortBase::take(3)?;
        assert!(one.get().abs_diff(two.get()) >= STEP);
        Ok(())
    }

    #[test]
    fn a_taken_port_is_seen() -> Result<()> {
        let base = PortBase::take(3)?;
        let _taken = TcpListener::bind(("127.0.0.1", base.postgres(2)))?;
        assert!(!all_free(base.get(), 3));
        Ok(())
    }
}
