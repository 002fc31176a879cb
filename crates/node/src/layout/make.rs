//! Makes the directory of a cluster, or finishes one whose making was interrupted.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use rand::RngCore as _;
use synapsedb_core::ids::{Incarnation, NodeId};
use uuid::Uuid;

use super::files::{clear_partial, make_dir, publish_dir, write_atomic, write_json};
use super::{CLUSTER_FILE, Cluster, FORMAT, Identity, Node, Options, agent_toml, ports};
use crate::postgres::{self, OsUser};
use crate::tls::authority;

/// The longest path of a unix socket that the kernel takes, in bytes.
const SOCKET_PATH_MAX: usize = 107;

/// How long the certificates of a cluster on one machine hold.
const CERTIFICATE_DAYS: u32 = 3650;

/// Makes the cluster's directory, finishes one that was interrupted, or reads one that is complete; nothing is started.
///
/// # Errors
/// When options contradict what is there, a port is taken, the directory is somebody else's or cannot be reached by
/// the user that runs PostgreSQL, or the disk refuses. What was made so far is finished by the next call.
pub fn init(options: &Options) -> Result<Cluster> {
    if !options.data.is_absolute() {
        bail!("the data directory {} is not an absolute path", options.data.display());
    }
    let mut cluster = match super::find(&options.data)? {
        Some(found) => {
            agrees(&found, options)?;
            if found.complete {
                return super::load(&options.data);
            }
            found
        }
        None => begin(options)?,
    };
    make_authority(&cluster)?;
    for node in &cluster.nodes {
        make_node(&cluster, node).with_context(|| format!("cannot make node {}", node.id))?;
    }
    cluster.complete = true;
    write_json(&cluster.data.join(CLUSTER_FILE), &cluster, 0o600)?;
    Ok(cluster)
}

/// Checks that the options do not ask for something else than what is there.
fn agrees(found: &Cluster, options: &Options) -> Result<()> {
    let there = (found.nodes.len(), found.port_base);
    let asked = (usize::from(options.nodes), options.port_base);
    if there != asked {
        let base = |base: Option<u16>| {
            base.map_or("the default ports".to_owned(), |b| format!("port base {b}"))
        };
        bail!(
            "{} already holds a cluster of {} nodes on {}; asked for were {} nodes on {}. Nothing was changed: leave \
             the options away to use it, or choose another --data directory",
            found.data.display(),
            there.0,
            base(there.1),
            asked.0,
            base(asked.1)
        );
    }
    if options.split_port != found.split_port {
        bail!(
            "{} already holds a cluster that was made {}. Nothing was changed: the split endpoint of a cluster that is \
             there is router.split_listen in each node's agent.toml",
            found.data.display(),
            found.split_port.map_or("without --split-port".to_owned(), |port| {
                format!("with --split-port {port}")
            }),
        );
    }
    Ok(())
}

/// Decides everything about a new cluster and writes it down as the intent.
fn begin(options: &Options) -> Result<Cluster> {
    refuse_foreign(&options.data)?;
    let mut plan = ports::plan(options.nodes, options.port_base)?;
    plan.split = options.split_port;
    if let Some((port, purpose)) = plan.used_twice() {
        bail!("--split-port is {port}, which is {purpose}; nothing was made, choose another port");
    }
    let taken = plan.taken(&[]);
    if !taken.is_empty() {
        let list: Vec<String> = taken.iter().map(|taken| format!("  {taken}")).collect();
        bail!(
            "ports are taken, nothing was made:\n{}\nstop these processes, or choose other ports with --port-base",
            list.join("\n")
        );
    }
    let user = OsUser::for_server(postgres::Config::default().os_user.as_str())?;
    make_dir(&options.data, 0o755)?;
    reachable(&options.data, user.as_ref())?;
    let cluster_id = Uuid::new_v4();
    let password = options.password.as_deref().unwrap_or(postgres::DEFAULT_PASSWORD);
    let nodes = plan.nodes.iter().map(|(id, ports)| Node {
        id: *id,
        uuid: Uuid::new_v4(),
        ports: *ports,
        socket_dir: socket_dir(&options.data, cluster_id, *id, ports.postgres),
    });
    let cluster = Cluster {
        format: FORMAT,
        complete: false,
        cluster_id,
        name: "synapsedb".to_owned(),
        read_port: plan.read,
        write_port: plan.write,
        split_port: options.split_port,
        port_base: options.port_base,
        bin_dir: options.bin_dir.clone(),
        default_password: password == postgres::DEFAULT_PASSWORD,
        role_verifier: postgres::verifier(password),
        nodes: nodes.collect(),
        data: options.data.clone(),
    };
    write_json(&cluster.data.join(CLUSTER_FILE), &cluster, 0o600)?;
    Ok(cluster)
}

/// A directory with something in it that is no cluster is left alone.
fn refuse_foreign(data: &Path) -> Result<()> {
    let Ok(mut entries) = std::fs::read_dir(data) else { return Ok(()) };
    let known = |name: &str| {
        name.starts_with("supervisor.") || name == "cluster.partial" || name == "lost+found"
    };
    if let Some(entry) = entries
        .find_map(|entry| entry.ok().filter(|entry| !known(&entry.file_name().to_string_lossy())))
    {
        bail!(
            "{} has no {CLUSTER_FILE}, but it is not empty ({}); nothing was changed, choose an empty directory",
            data.display(),
            entry.file_name().to_string_lossy()
        );
    }
    Ok(())
}

/// The server's user must be able to pass through every directory above its own.
fn reachable(data: &Path, user: Option<&OsUser>) -> Result<()> {
    let Some(user) = user else { return Ok(()) };
    for dir in data.ancestors() {
        let metadata = dir.metadata().with_context(|| format!("cannot read {}", dir.display()))?;
        let pass = if metadata.uid() == user.uid {
            0o100
        } else if metadata.gid() == user.gid {
            0o010
        } else {
            0o001
        };
        if metadata.mode() & pass == 0 {
            bail!(
                "PostgreSQL runs as the user `{}`, who cannot enter {}; choose another --data directory, or allow it \
                 with chmod o+x",
                user.name,
                dir.display()
            );
        }
    }
    Ok(())
}

/// The node's own directory, or a short one under /tmp when the socket's path would be too long for the kernel.
pub(super) fn socket_dir(data: &Path, cluster_id: Uuid, node: NodeId, port: u16) -> PathBuf {
    let dir = data.join(format!("node-{node}/run"));
    let length = dir.join(format!(".s.PGSQL.{port}.lock")).as_os_str().len();
    if length <= SOCKET_PATH_MAX {
        return dir;
    }
    let short = &cluster_id.simple().to_string()[..12];
    PathBuf::from(format!("/tmp/synapsedb-{short}-{node}"))
}

fn make_authority(cluster: &Cluster) -> Result<()> {
    let (dir, partial) = (cluster.data.join("ca"), cluster.data.join("ca.partial"));
    if dir.is_dir() {
        return Ok(());
    }
    clear_partial(&partial)?;
    make_dir(&partial, 0o700)?;
    authority::create_ca(&partial, &cluster.name, cluster.cluster_id)?;
    publish_dir(&partial, &dir)
}

pub(super) fn make_node(cluster: &Cluster, node: &Node) -> Result<()> {
    let dir = cluster.node_dir(node.id);
    if dir.is_dir() {
        return Ok(());
    }
    let partial = cluster.data.join(format!("node-{}.partial", node.id));
    clear_partial(&partial)?;
    make_dir(&partial, 0o711)?;
    let identity = Identity {
        cluster_id: cluster.cluster_id,
        node: node.id,
        uuid: node.uuid,
        incarnation: Incarnation::FIRST,
    };
    write_json(&partial.join("identity.json"), &identity, 0o644)?;
    let (ca, tls) = (cluster.data.join("ca"), partial.join("tls"));
    make_dir(&tls, 0o700)?;
    authority::issue(&ca, &tls, cluster.cluster_id, node.id, &[], CERTIFICATE_DAYS)?;
    let secrets = partial.join("secrets");
    make_dir(&secrets, 0o700)?;
    let mut password = [0_u8; 24];
    rand::rng().fill_bytes(&mut password);
    write_atomic(&secrets.join("agent.password"), hex(&password).as_bytes(), 0o600)?;
    write_atomic(&secrets.join("role.verifier"), cluster.role_verifier.as_bytes(), 0o600)?;
    write_atomic(&partial.join("agent.toml"), agent_toml::text(cluster, node).as_bytes(), 0o644)?;
    publish_dir(&partial, &dir)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
