//! The cluster's own certificate authority: made once, it signs one certificate per node.

use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose,
};
use synapsedb_core::ids::NodeId;
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

/// The authority's certificate, in its own directory and in every node's.
pub const CA_CERTIFICATE: &str = "ca.crt";
/// The authority's private key; it stays in the authority's directory.
pub const CA_KEY: &str = "ca.key";
/// The key of the gossip datagrams, the same for every node.
pub const GOSSIP_KEY: &str = "gossip.key";
/// A node's certificate.
pub const NODE_CERTIFICATE: &str = "node.crt";
/// A node's private key.
pub const NODE_KEY: &str = "node.key";

/// How long the authority's certificate is valid.
const CA_VALID_DAYS: i64 = 3650;
/// Certificates are valid from this long before they are made, so that a clock that is a little behind takes them.
const BACKDATE: Duration = Duration::HOUR;

/// Makes the authority of a cluster in `directory`: its certificate, its key and the key of the gossip datagrams.
///
/// # Errors
/// The directory already holds an authority (nothing is changed), or a file cannot be written.
pub fn create_ca(directory: &Path, cluster_name: &str, cluster_id: Uuid) -> Result<()> {
    let key_file = directory.join(CA_KEY);
    ensure!(
        !key_file.exists(),
        "{} exists: the cluster has an authority, and a second one would lock out every node; nothing was changed",
        key_file.display()
    );
    make_directory(directory)?;
    let now = OffsetDateTime::now_utc();
    let mut params = CertificateParams::default();
    params.not_before = now - BACKDATE;
    params.not_after = now + Duration::days(CA_VALID_DAYS);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "SynapseDB");
    params
        .distinguished_name
        .push(DnType::CommonName, format!("SynapseDB {cluster_name} {cluster_id}"));
    let key = KeyPair::generate().context("cannot make the authority's key")?;
    let certificate =
        params.self_signed(&key).context("cannot make the authority's certificate")?;
    write(&directory.join(GOSSIP_KEY), super::cipher::generate_key()?.as_bytes(), PRIVATE)?;
    write(&directory.join(CA_CERTIFICATE), certificate.pem().as_bytes(), PUBLIC)?;
    // The key comes last: its presence says that the authority is complete.
    write(&key_file, key.serialize_pem().as_bytes(), PRIVATE)
}

/// Signs a certificate for `node` and writes it with its key, the authority's certificate and the gossip key into
/// `directory`; what was there is replaced. `hosts` are the further names and addresses by which SQL clients reach
/// the node; `localhost`, `127.0.0.1` and `::1` are always among them.
///
/// # Errors
/// The authority cannot be read, a host is neither a name nor an address, or a file cannot be written.
pub fn issue(
    ca_directory: &Path,
    directory: &Path,
    cluster_id: Uuid,
    node: NodeId,
    hosts: &[String],
    valid_days: u32,
) -> Result<()> {
    let now = OffsetDateTime::now_utc();
    let validity = Validity {
        not_before: now - BACKDATE,
        not_after: now + Duration::days(i64::from(valid_days)),
    };
    issue_for(ca_directory, directory, cluster_id, node, hosts, validity)
}

/// From when until when a certificate is valid.
#[derive(Clone, Copy, Debug)]
pub struct Validity {
    /// The first instant.
    pub not_before: OffsetDateTime,
    /// The last instant.
    pub not_after: OffsetDateTime,
}

/// [`issue`] with an exact validity.
///
/// # Errors
/// As [`issue`].
pub fn issue_for(
    ca_directory: &Path,
    directory: &Path,
    cluster_id: Uuid,
    node: NodeId,
    hosts: &[String],
    validity: Validity,
) -> Result<()> {
    let read = |name: &str| {
        let file = ca_directory.join(name);
        std::fs::read_to_string(&file)
            .with_context(|| format!("cannot read the authority's {}", file.display()))
    };
    let (ca_certificate, gossip_key) = (read(CA_CERTIFICATE)?, read(GOSSIP_KEY)?);
    let ca_key = KeyPair::from_pem(&read(CA_KEY)?)
        .with_context(|| format!("{} is no private key", ca_directory.join(CA_KEY).display()))?;
    let issuer = Issuer::from_ca_cert_pem(&ca_certificate, ca_key).with_context(|| {
        format!("{} is no certificate", ca_directory.join(CA_CERTIFICATE).display())
    })?;
    let mut names = vec![super::certificate_name(cluster_id, node)];
    for host in
        ["localhost", "127.0.0.1", "::1"].into_iter().chain(hosts.iter().map(String::as_str))
    {
        if !names.iter().any(|name| name == host) {
            names.push(host.to_owned());
        }
    }
    let mut params = CertificateParams::new(names)
        .with_context(|| format!("a host of node {node} is neither a name nor an address"))?;
    params.not_before = validity.not_before;
    params.not_after = validity.not_after;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, format!("node-{node}"));
    let key = KeyPair::generate().context("cannot make the node's key")?;
    let certificate =
        params.signed_by(&key, &issuer).context("cannot sign the node's certificate")?;
    make_directory(directory)?;
    write(&directory.join(CA_CERTIFICATE), ca_certificate.as_bytes(), PUBLIC)?;
    write(&directory.join(GOSSIP_KEY), gossip_key.as_bytes(), PRIVATE)?;
    write(&directory.join(NODE_KEY), key.serialize_pem().as_bytes(), PRIVATE)?;
    write(&directory.join(NODE_CERTIFICATE), certificate.pem().as_bytes(), PUBLIC)
}

/// The mode of a file that only the agent may read.
const PRIVATE: u32 = 0o600;
/// The mode of a file that everybody may read.
const PUBLIC: u32 = 0o644;

fn make_directory(directory: &Path) -> Result<()> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .with_context(|| format!("cannot make the directory {}", directory.display()))
}

/// Writes a file whole or not at all.
fn write(file: &Path, content: &[u8], mode: u32) -> Result<()> {
    let staging = file.with_extension("new");
    let attempt = || -> std::io::Result<()> {
        // A leftover of a crash could have other permissions: start from nothing.
        match std::fs::remove_file(&staging) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut open =
            std::fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&staging)?;
        open.write_all(content)?;
        open.sync_all()?;
        std::fs::rename(&staging, file)?;
        match file.parent() {
            Some(parent) => std::fs::File::open(parent)?.sync_all(),
            None => Ok(()),
        }
    };
    attempt().with_context(|| format!("cannot write {}; it was left as it was", file.display()))
}
