//! How TLS is spoken with SQL clients: with the node's certificate, and with theirs if an authority for them is named.
//! The files may change: what they hold is loaded anew, and only what can be used takes the place of what was before.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, ensure};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use synapsedb_pg::scram::tls_server_end_point;
use tokio_rustls::TlsAcceptor;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::{ALPN, authorities, provider, read_certificates, read_file, read_key};

/// The files of what clients are shown, and of whom of them is believed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    /// The certificate, and what it was signed with (PEM).
    pub certificate: PathBuf,
    /// Its key (PEM).
    pub key: PathBuf,
    /// The authorities of clients' certificates (PEM); `None` if they are not asked for one.
    pub authority: Option<PathBuf>,
    /// The certificates that these authorities have revoked (PEM).
    pub revoked: Option<PathBuf>,
}

/// What the files hold.
pub struct Served {
    /// Does the handshakes.
    pub acceptor: TlsAcceptor,
    /// The hash of the certificate that clients are shown (RFC 5929): they may bind their password's proof to it.
    pub end_point: Option<Vec<u8>>,
    /// When the certificate expires.
    pub expires_at: SystemTime,
}

/// How a file was when it was looked at: when it was written, how long it is, and which it is.
pub type Stamp = Option<(SystemTime, u64, u64)>;

impl Files {
    /// Reads them all.
    ///
    /// # Errors
    /// One cannot be read or used, the certificate is out of its time, or the key is another's; names the file.
    pub fn load(&self) -> Result<Served> {
        let file = self.certificate.display();
        let chain = read_certificates(&self.certificate)?;
        let leaf = chain.first().with_context(|| format!("{file} holds no certificate"))?;
        let (_, parsed) =
            X509Certificate::from_der(leaf).with_context(|| format!("{file} is no certificate"))?;
        let valid = parsed.validity();
        ensure!(valid.is_valid(), "the certificate {file} is out of its time ({valid:?})");
        let seconds = u64::try_from(valid.not_after.timestamp()).unwrap_or(0);
        let expires_at = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let end_point = tls_server_end_point(leaf);
        let key = read_key(&self.key)?;
        let (authority, revoked) = (self.authority.as_deref(), self.revoked.as_deref());
        let acceptor = acceptor(chain, key, authority, revoked).with_context(|| {
            format!("the certificate {file} with the key {} cannot be used", self.key.display())
        })?;
        Ok(Served { acceptor, end_point, expires_at })
    }

    /// How the files are now.
    pub fn stamps(&self) -> Vec<Stamp> {
        use std::os::unix::fs::MetadataExt as _;
        let stamp = |file: &PathBuf| {
            let found = std::fs::metadata(file).ok()?;
            Some((found.modified().ok()?, found.len(), found.ino()))
        };
        let may_be = self.authority.iter().chain(&self.revoked);
        [&self.certificate, &self.key].into_iter().chain(may_be).map(stamp).collect()
    }
}

/// The lists of revoked certificates (PEM) in `file`.
fn revocations(file: &Path) -> Result<Vec<CertificateRevocationListDer<'static>>> {
    let lists: Vec<_> = CertificateRevocationListDer::pem_slice_iter(&read_file(file)?)
        .collect::<Result<_, _>>()
        .map_err(|error| anyhow::anyhow!("{} is not a PEM file: {error}", file.display()))?;
    ensure!(!lists.is_empty(), "{} holds no list of revoked certificates", file.display());
    Ok(lists)
}

/// TLS 1.2 or 1.3. With `authority`, a file of certificates (PEM), clients are asked for a certificate: one that is
/// shown must be signed by it and be valid now, else the handshake fails; none may be shown, too.
/// With `revoked`, a file of lists (PEM), none of its chain may be on the list of whoever signed it; one whose signer
/// has no list there is refused.
///
/// # Errors
/// The key is of another certificate, or the file of the authority cannot be used; names it.
pub fn acceptor(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    authority: Option<&Path>,
    revoked: Option<&Path>,
) -> Result<TlsAcceptor> {
    let builder = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?;
    let mut config = match authority {
        None => builder.with_no_client_auth().with_single_cert(chain, key)?,
        Some(file) => {
            let roots = authorities(file).context("router.tls_client_ca_file")?;
            let lists =
                revoked.map(revocations).transpose().context("router.tls_client_crl_file")?;
            let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider())
                .with_crls(lists.unwrap_or_default())
                .allow_unauthenticated()
                .build()
                .with_context(|| format!("{} cannot be used", file.display()))?;
            let mut config =
                builder.with_client_cert_verifier(verifier).with_single_cert(chain, key)?;
            // A resumed session would let a client's certificate outlive its expiry.
            config.session_storage = Arc::new(NoServerSessionStorage {});
            config.send_tls13_tickets = 0;
            config
        }
    };
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}
