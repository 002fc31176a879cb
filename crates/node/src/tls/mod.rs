//! Who is who: the cluster's certificates for every byte between agents, and the key of its datagrams.
//!
//! **Runs on:** every node. **Invariant:** a TLS handshake through [`Handle::acceptor`] or [`Handle::connector`]
//! succeeds only between two agents whose certificates this cluster's own authority has signed, and each side learns
//! from the certificate, not from what the other says, which node it talks to.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, bail, ensure};
use rustls::client::danger::ServerCertVerifier as _;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use synapsedb_core::ids::NodeId;
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};
use uuid::Uuid;

use crate::layout::Identity;

pub mod authority;
mod cipher;
pub mod clients;
mod refusal;
#[cfg(test)]
mod tests;

pub use cipher::{DatagramError, GossipCipher, NONCE_LEN, OVERHEAD_BYTES, Opened};
pub use refusal::Refusal;

/// A certificate that expires sooner than this is complained about when it is loaded.
const EXPIRY_WARNING: Duration = Duration::from_secs(14 * 24 * 60 * 60);

/// PostgreSQL's protocol, as both sides of TLS name it to each other (ALPN).
pub const ALPN: &[u8] = b"postgresql";

/// Where the certificate, the keys and the authority's certificate are.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The certificate of the cluster's authority (PEM).
    pub ca: PathBuf,
    /// This node's certificate (PEM).
    pub certificate: PathBuf,
    /// The private key of the certificate (PEM, PKCS #8).
    pub key: PathBuf,
    /// The key of the gossip datagrams, the same on every node (64 hexadecimal digits).
    pub gossip_key: PathBuf,
}

impl Default for Config {
    fn default() -> Self {
        Self::in_directory(Path::new("tls"))
    }
}

impl Config {
    /// The file names that [`authority::issue`] writes, in `directory`.
    pub fn in_directory(directory: &Path) -> Self {
        Self {
            ca: directory.join(authority::CA_CERTIFICATE),
            certificate: directory.join(authority::NODE_CERTIFICATE),
            key: directory.join(authority::NODE_KEY),
            gossip_key: directory.join(authority::GOSSIP_KEY),
        }
    }
}

/// The loaded and checked certificates of this node, ready for use.
#[derive(Clone)]
pub struct Handle {
    cluster_id: Uuid,
    acceptor: TlsAcceptor,
    connector: TlsConnector,
    /// The certificate and its key.
    files: (PathBuf, PathBuf),
    authorities: Arc<RootCertStore>,
    cipher: GossipCipher,
    expires_at: SystemTime,
}

impl std::fmt::Debug for Handle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("tls::Handle").field("cluster_id", &self.cluster_id).finish_non_exhaustive()
    }
}

/// Reads and checks the certificate, the keys and the authority of `config` for the node `identity`.
///
/// # Errors
/// A file that cannot be read or understood; a certificate of another node, of another cluster, of another authority,
/// expired, not yet valid, or without its key. The text names the file and says what to do.
pub fn load(config: &Config, identity: &Identity) -> Result<Handle> {
    let chain = read_certificates(&config.certificate)?;
    let key = read_key(&config.key)?;
    let cipher = GossipCipher::new(identity.cluster_id, &read_gossip_key(&config.gossip_key)?);
    let roots = authorities(&config.ca)?;
    let expires_at = check_own_certificate(config, identity, &chain, &roots)?;

    let key_error = || {
        format!(
            "the key {} does not belong to the certificate {}; issue both anew",
            config.key.display(),
            config.certificate.display()
        )
    };
    let only_members =
        WebPkiClientVerifier::builder_with_provider(roots.clone(), provider()).build()?;
    let mut mutual = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(only_members)
        .with_single_cert(chain.clone(), key.clone_key())
        .with_context(key_error)?;
    // A resumed session would let a certificate outlive its expiry; connections live long, so nothing is lost.
    mutual.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    mutual.send_tls13_tickets = 0;
    let mut outgoing = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots.clone())
        .with_client_auth_cert(chain, key)
        .with_context(key_error)?;
    outgoing.resumption = rustls::client::Resumption::disabled();
    Ok(Handle {
        cluster_id: identity.cluster_id,
        acceptor: TlsAcceptor::from(Arc::new(mutual)),
        connector: TlsConnector::from(Arc::new(outgoing)),
        files: (config.certificate.clone(), config.key.clone()),
        authorities: roots,
        cipher,
        expires_at,
    })
}

impl Handle {
    /// For connections from other agents: TLS 1.3, both sides show a certificate of this cluster's authority.
    pub fn acceptor(&self) -> TlsAcceptor {
        self.acceptor.clone()
    }

    /// For connections to other agents: TLS 1.3, both sides show a certificate of this cluster's authority.
    pub fn connector(&self) -> TlsConnector {
        self.connector.clone()
    }

    /// What SQL clients are shown, and whom of them is believed.
    pub fn client_files(&self, authority: Option<&Path>, revoked: Option<&Path>) -> clients::Files {
        let (certificate, key) = self.files.clone();
        let (authority, revoked) = (authority.map(Path::to_owned), revoked.map(Path::to_owned));
        clients::Files { certificate, key, authority, revoked }
    }

    /// The cluster's own authority.
    pub fn authorities(&self) -> Arc<RootCertStore> {
        Arc::clone(&self.authorities)
    }

    /// The name that the certificate of `node` must carry: what a dialler expects to find.
    pub fn server_name(&self, node: NodeId) -> ServerName<'static> {
        let name = certificate_name(self.cluster_id, node);
        // The name is made of digits, hyphens and letters below 64 characters per label: always a DNS name.
        ServerName::try_from(name).expect("a DNS name")
    }

    /// Which node is at the other end, by its certificate.
    ///
    /// # Errors
    /// No certificate, one that names no node, or one of another cluster.
    pub fn peer_node(&self, stream: &TlsStream<TcpStream>) -> Result<NodeId, Refusal> {
        let (_, session) = stream.get_ref();
        let leaf = session.peer_certificates().and_then(<[_]>::first);
        let named = name_in_certificate(leaf.ok_or(Refusal::NoCertificate)?)
            .map_err(|_| Refusal::BadCertificate)?;
        if named.cluster_id != self.cluster_id {
            return Err(Refusal::OtherCluster);
        }
        Ok(named.node)
    }

    /// When this node's certificate expires.
    pub fn expires_at(&self) -> SystemTime {
        self.expires_at
    }

    /// Seals and opens this cluster's datagrams.
    pub fn gossip_cipher(&self) -> GossipCipher {
        self.cipher.clone()
    }
}

/// The DNS name by which a certificate says which node of which cluster it belongs to.
pub fn certificate_name(cluster_id: Uuid, node: NodeId) -> String {
    format!("node-{node}.{cluster_id}.synapsedb")
}

/// What a certificate says of its holder.
struct CertificateIdentity {
    cluster_id: Uuid,
    node: NodeId,
    not_after_unix_s: i64,
}

/// Reads the node and the cluster out of a certificate's alternative names.
fn name_in_certificate(certificate: &CertificateDer<'_>) -> Result<CertificateIdentity> {
    use x509_parser::extensions::GeneralName;
    use x509_parser::prelude::{FromDer as _, X509Certificate};
    let (_, parsed) =
        X509Certificate::from_der(certificate).context("it is no X.509 certificate")?;
    let names = parsed.subject_alternative_name().context("its alternative names are malformed")?;
    let names = names.map(|extension| extension.value.general_names.as_slice()).unwrap_or_default();
    let mut found = names.iter().filter_map(|name| match name {
        GeneralName::DNSName(name) => parse_certificate_name(name),
        _ => None,
    });
    let (node, cluster_id) =
        found.next().context("it names no node (node-<number>.<cluster id>.synapsedb)")?;
    ensure!(found.next().is_none(), "it names more than one node");
    let not_after_unix_s = parsed.validity().not_after.timestamp();
    Ok(CertificateIdentity { cluster_id, node, not_after_unix_s })
}

fn parse_certificate_name(name: &str) -> Option<(NodeId, Uuid)> {
    let (node, rest) = name.strip_prefix("node-")?.split_once('.')?;
    Some((node.parse().ok()?, rest.strip_suffix(".synapsedb")?.parse().ok()?))
}

fn check_own_certificate(
    config: &Config,
    identity: &Identity,
    chain: &[CertificateDer<'static>],
    roots: &Arc<RootCertStore>,
) -> Result<SystemTime> {
    let file = config.certificate.display();
    let leaf = chain.first().with_context(|| format!("{file} holds no certificate"))?;
    let named = name_in_certificate(leaf)
        .with_context(|| format!("the certificate {file} is not usable for an agent"))?;
    ensure!(
        named.cluster_id == identity.cluster_id,
        "the certificate {file} belongs to cluster {}, this node to cluster {}; issue one with this cluster's \
         authority",
        named.cluster_id,
        identity.cluster_id
    );
    ensure!(
        named.node == identity.node,
        "the certificate {file} belongs to node {}, this is node {}; each node needs its own",
        named.node,
        identity.node
    );
    let verifier =
        rustls::client::WebPkiServerVerifier::builder_with_provider(roots.clone(), provider())
            .build()?;
    let name = ServerName::try_from(certificate_name(identity.cluster_id, identity.node))?;
    let verified = verifier.verify_server_cert(leaf, &chain[1..], &name, &[], UnixTime::now());
    if let Err(error) = verified {
        match Refusal::of_tls(&error) {
            Refusal::Expired => bail!(
                "the certificate {file} has expired: every other agent would refuse this one; issue a new one \
                 ({error})"
            ),
            Refusal::NotYetValid => bail!(
                "the certificate {file} is not valid yet; check this machine's clock, or issue a new one ({error})"
            ),
            Refusal::UnknownCa => bail!(
                "the certificate {file} was not signed by the authority {}; use the files that were issued \
                 together ({error})",
                config.ca.display()
            ),
            _ => bail!("the certificate {file} is not usable for an agent: {error}"),
        }
    }
    let seconds = u64::try_from(named.not_after_unix_s).unwrap_or(0);
    let expires_at = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
    let left = expires_at.duration_since(SystemTime::now()).unwrap_or_default();
    if left < EXPIRY_WARNING {
        let days = left.as_secs() / (24 * 60 * 60);
        tracing::warn!("the certificate {file} expires in {days} days; issue a new one");
    }
    Ok(expires_at)
}

/// The authorities whose certificates (PEM) are in `file`.
///
/// # Errors
/// The file cannot be read, or holds no certificate of an authority; names it.
pub fn authorities(file: &Path) -> Result<Arc<RootCertStore>> {
    trust(file, read_certificates(file)?)
}

fn trust(file: &Path, authority: Vec<CertificateDer<'static>>) -> Result<Arc<RootCertStore>> {
    let mut roots = RootCertStore::empty();
    for certificate in authority {
        roots
            .add(certificate)
            .with_context(|| format!("{} is no certificate of an authority", file.display()))?;
    }
    ensure!(!roots.is_empty(), "{} holds no certificate", file.display());
    Ok(Arc::new(roots))
}

fn read_file(file: &Path) -> Result<Vec<u8>> {
    std::fs::read(file).with_context(|| {
        format!("cannot read {}; `tls` in the configuration names the files to use", file.display())
    })
}

fn read_certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let text = read_file(file)?;
    CertificateDer::pem_slice_iter(&text)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| anyhow::anyhow!("{} is not a PEM file: {error}", file.display()))
}

fn read_key(file: &Path) -> Result<PrivateKeyDer<'static>> {
    PrivateKeyDer::from_pem_slice(&read_file(file)?).map_err(|error| {
        anyhow::anyhow!("{} holds no private key in PEM form: {error}", file.display())
    })
}

fn read_gossip_key(file: &Path) -> Result<[u8; cipher::KEY_BYTES]> {
    let text = read_file(file)?;
    cipher::parse_key(&text)
        .with_context(|| format!("{} is not a gossip key (64 hexadecimal digits)", file.display()))
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}
