//! How TLS is spoken with SQL clients: with the node's certificate, and with theirs if an authority for them is named.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use rustls::ServerConfig;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use tokio_rustls::TlsAcceptor;

use super::{ALPN, authorities, provider};

/// TLS 1.2 or 1.3. With `authority`, a file of certificates (PEM), clients are asked for a certificate: one that is
/// shown must be signed by it and be valid now, else the handshake fails; none may be shown, too.
///
/// # Errors
/// The key is of another certificate, or the file of the authority cannot be used; names it.
pub fn acceptor(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    authority: Option<&Path>,
) -> Result<TlsAcceptor> {
    let builder = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?;
    let mut config = match authority {
        None => builder.with_no_client_auth().with_single_cert(chain, key)?,
        Some(file) => {
            let roots = authorities(file).context("router.tls_client_ca_file")?;
            let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider())
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
