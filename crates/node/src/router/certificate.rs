//! TLS with clients: asked for in PostgreSQL's protocol or begun at once, and what a client's certificate must say.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::net::TcpStream;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::metrics::Refused;
use super::socket::Socket;
use super::startup::Failure;
use super::worker::Worker;
use super::{Config, Endpoint};
use crate::tls::{self, clients::Served};

/// The first byte of a TLS handshake; the first of a startup packet's length is zero.
const HANDSHAKE: u8 = 0x16;

/// Whether clients must show a certificate, beside proving their password.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ClientCertificates {
    /// They are not asked for one.
    #[default]
    Off,
    /// They may; one that is shown must be trusted and name the role.
    Allow,
    /// They must, as by `clientcert=verify-full` in `pg_hba.conf`.
    Require,
}

/// A role that the holder of a certificate may be, though the certificate names another.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CertificateRole {
    /// The common name (CN) in the certificate.
    pub certificate: String,
    /// The role.
    pub role: String,
}

impl Config {
    /// The file of the authority of the clients' certificates, if they are asked for one.
    pub fn client_authority(&self) -> Option<&std::path::Path> {
        match self.client_certificates {
            ClientCertificates::Off => None,
            ClientCertificates::Allow | ClientCertificates::Require => {
                Some(&self.tls_client_ca_file)
            }
        }
    }

    /// The file of the clients' certificates that are revoked, if there is one.
    pub fn client_revocations(&self) -> Option<&std::path::Path> {
        let file = self.tls_client_crl_file.as_path();
        (!file.as_os_str().is_empty()).then_some(file)
    }
}

/// A connection of a client, and the certificate that it was shown.
pub(super) type Begun = (Socket, Option<Arc<Served>>);

/// A new connection, in TLS if the client begins with that instead of asking for it (`sslnegotiation=direct`); `None`
/// if it is refused, which it is not told, as PostgreSQL does not.
pub(super) async fn begin(worker: &Worker, endpoint: Endpoint, stream: TcpStream) -> Option<Begun> {
    let mut first = [0];
    if stream.peek(&mut first).await.ok()? == 0 || first[0] != HANDSHAKE {
        return Some((Socket::Tcp(stream), None));
    }
    let (socket, shown) = encrypt(worker, endpoint, stream).await?;
    // Else what is meant for another protocol could be sent here.
    let Socket::Tls(stream) = &socket else { return None };
    if stream.get_ref().1.alpn_protocol() == Some(tls::ALPN) {
        return Some((socket, shown));
    }
    worker.shared.metrics.refused(endpoint, Refused::Tls);
    tracing::debug!("a client began TLS at once without naming the protocol \"postgresql\" (ALPN)");
    socket.part(b"", worker.farewell()).await;
    None
}

/// Does the handshake of TLS; `None` if that fails.
pub(super) async fn encrypt(
    worker: &Worker,
    endpoint: Endpoint,
    stream: TcpStream,
) -> Option<Begun> {
    let why = match &worker.shared.tls {
        None => "there is no TLS here".to_owned(),
        Some(tls) => {
            let shown = tls.now();
            match shown.acceptor.accept(stream).await {
                Ok(stream) => return Some((Socket::Tls(Box::new(stream.into())), Some(shown))),
                Err(error) => error.to_string(),
            }
        }
    };
    worker.shared.metrics.refused(endpoint, Refused::Tls);
    tracing::debug!("a client's TLS handshake failed: {why}");
    None
}

/// Whether the client has shown the certificate that it needs to be this role, in PostgreSQL's words if not.
///
/// # Errors
/// It has not.
pub(super) fn check(config: &Config, client: &Socket, role: &str) -> Result<(), Failure> {
    let refused = |message: String, hint: &str| {
        Err(Failure { sqlstate: "28000", message, hint: hint.to_owned() })
    };
    match (config.client_certificates, client.certificate()) {
        (ClientCertificates::Off, _) | (ClientCertificates::Allow, None) => Ok(()),
        (ClientCertificates::Require, None) => refused(
            "connection requires a valid client certificate".to_owned(),
            "Connect by TLS and show one of the authority that router.tls_client_ca_file names.",
        ),
        (ClientCertificates::Allow | ClientCertificates::Require, Some(certificate)) => {
            let name = common_name(certificate);
            if name.as_deref().is_some_and(|name| is_for(name, role, &config.certificate_roles)) {
                return Ok(());
            }
            let named = name.map_or("has not exactly one common name".to_owned(), |name| {
                format!("names \"{name}\"")
            });
            refused(
                format!("certificate authentication failed for user \"{role}\""),
                &format!(
                    "The certificate {named}: it must be the role's, or router.certificate_roles must pair the two."
                ),
            )
        }
    }
}

/// Whether the holder of a certificate for `name` may be `role`.
fn is_for(name: &str, role: &str, pairs: &[CertificateRole]) -> bool {
    name == role || pairs.iter().any(|pair| pair.certificate == name && pair.role == role)
}

/// The common name of a certificate's subject, if it has exactly one and that is a text.
fn common_name(certificate: &[u8]) -> Option<String> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    let mut names = parsed.subject().iter_common_name();
    let name = names.next()?.as_str().ok()?.to_owned();
    (names.next().is_none() && !name.is_empty() && !name.contains('\0')).then_some(name)
}

impl Socket {
    /// The certificate that the client has shown, which was checked in the handshake.
    fn certificate(&self) -> Option<&[u8]> {
        match self {
            Self::Tcp(_) | Self::Unix(_) => None,
            Self::Tls(stream) => {
                let shown = stream.get_ref().1.peer_certificates()?;
                shown.first().map(|leaf| leaf.as_ref())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};

    use super::*;

    fn certificate(names: &[&str]) -> Vec<u8> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        for name in names {
            params.distinguished_name.push(DnType::CommonName, *name);
        }
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().to_vec()
    }

    #[test]
    fn a_certificate_names_one_role() {
        assert_eq!(common_name(&certificate(&["ada"])).as_deref(), Some("ada"));
        assert_eq!(common_name(&certificate(&["Ada Ö"])).as_deref(), Some("Ada Ö"));
        for nobody in [&[][..], &[""], &["ada\0.evil"]] {
            assert_eq!(common_name(&certificate(nobody)), None, "{nobody:?}");
        }
        assert_eq!(common_name(b"garbage"), None);
    }

    #[test]
    fn a_certificate_is_for_its_own_role_and_those_it_is_paired_with() {
        let pair = |certificate: &str, role: &str| CertificateRole {
            certificate: certificate.to_owned(),
            role: role.to_owned(),
        };
        let pairs = [pair("ada", "reports"), pair("*", "eve"), pair("bob", "")];
        for (name, role, may) in [
            ("ada", "ada", true),
            ("ada", "reports", true),
            ("reports", "ada", false),
            ("bob", "reports", false),
            ("ada", "eve", false),
            ("ada", "ADA", false),
            ("ada", "", false),
        ] {
            assert_eq!(is_for(name, role, &pairs), may, "{name} as {role}");
        }
    }
}
