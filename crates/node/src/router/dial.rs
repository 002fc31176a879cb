//! The way to a node's PostgreSQL server: its unix socket beside this agent, or TCP, by TLS or in clear.

use std::io;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use serde::{Deserialize, Serialize};
use synapsedb_pg::scram::tls_server_end_point;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::server::Address;
use super::socket::Socket;
use super::unix::UnixSocket;
use super::{Config, listen};
use crate::tls;

/// The request for TLS: its length and its code.
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];

/// Whether server connections by TCP are encrypted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ServerTls {
    /// Never.
    Off,
    /// If the server offers it; its certificate is not looked at, but SCRAM is bound to it.
    #[default]
    Prefer,
    /// Always; its certificate is not looked at, but SCRAM is bound to it.
    Require,
    /// Always, and its certificate must be of a trusted authority and name the host of the server's address.
    VerifyFull,
}

impl ServerTls {
    /// As it stands in the configuration.
    fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Prefer => "prefer",
            Self::Require => "require",
            Self::VerifyFull => "verify-full",
        }
    }
}

/// Opens connections to servers.
pub(super) struct Dialer {
    mode: ServerTls,
    connector: TlsConnector,
    keepalive_ms: u64,
}

impl Dialer {
    /// `roots` are the authorities that are trusted when the configuration names none.
    ///
    /// # Errors
    /// The file of the authorities cannot be used; names it.
    pub(super) fn new(config: &Config, roots: Arc<RootCertStore>) -> Result<Self> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?;
        let file = &config.server_tls_ca_file;
        let mut tls = match config.server_tls {
            ServerTls::VerifyFull if file.as_os_str().is_empty() => {
                builder.with_root_certificates(roots).with_no_client_auth()
            }
            ServerTls::VerifyFull => {
                let roots = tls::authorities(file).context("router.server_tls_ca_file")?;
                builder.with_root_certificates(roots).with_no_client_auth()
            }
            ServerTls::Off | ServerTls::Prefer | ServerTls::Require => builder
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
                .with_no_client_auth(),
        };
        tls.resumption = Resumption::disabled();
        tls.alpn_protocols = vec![tls::ALPN.to_vec()];
        Ok(Self {
            mode: config.server_tls,
            connector: TlsConnector::from(Arc::new(tls)),
            keepalive_ms: config.keepalive_ms,
        })
    }

    /// Connects, and does the handshake of TLS if there is to be one.
    ///
    /// # Errors
    /// The server cannot be reached, or not as the configuration demands; the text says what is wrong and what to do.
    pub(super) async fn connect(&self, address: &Address) -> io::Result<Socket> {
        if let Some(path) = &address.unix {
            return UnixSocket::connect(path).await.map(Socket::Unix);
        }
        let mut stream = TcpStream::connect(&address.tcp).await?;
        listen::tune(&stream, self.keepalive_ms)?;
        if self.mode == ServerTls::Off {
            return Ok(Socket::Tcp(stream));
        }
        stream.write_all(&SSL_REQUEST).await?;
        // Exactly one byte is read before the handshake: nothing that somebody slipped in front of it is ever used.
        match stream.read_u8().await? {
            b'S' => self.encrypt(&address.tcp, stream).await,
            b'N' if self.mode == ServerTls::Prefer => Ok(Socket::Tcp(stream)),
            b'N' => Err(io::Error::other(format!(
                "the server offers no TLS, and router.server_tls is \"{}\": switch `ssl` on in that server, or set \
                 the key to \"prefer\"",
                self.mode.name()
            ))),
            other => {
                let other = char::from(other).escape_default();
                let text = format!("it answers a request for TLS with '{other}', not with S or N");
                Err(io::Error::new(io::ErrorKind::InvalidData, text))
            }
        }
    }

    async fn encrypt(&self, address: &str, stream: TcpStream) -> io::Result<Socket> {
        let host = host_of(address);
        let name = ServerName::try_from(host.to_owned()).map_err(|_| {
            io::Error::other(format!("\"{host}\" can be in no certificate, as TLS with it needs"))
        })?;
        match self.connector.connect(name, stream).await {
            Ok(stream) => Ok(Socket::Tls(Box::new(stream.into()))),
            Err(error) => Err(io::Error::new(error.kind(), self.failed(&error))),
        }
    }

    fn failed(&self, error: &io::Error) -> String {
        let inner = error.get_ref().and_then(|error| error.downcast_ref::<rustls::Error>());
        match inner {
            Some(rustls::Error::InvalidCertificate(why)) => format!(
                "its certificate is not accepted: {why}; router.server_tls is \"{}\": the certificate must be of an \
                 authority in router.server_tls_ca_file (the cluster's own if that is empty), valid now, and have the \
                 host of the server's address among its alternative names",
                self.mode.name()
            ),
            _ => format!("the TLS handshake failed: {error}"),
        }
    }
}

/// The host of `host:port`.
fn host_of(address: &str) -> &str {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
}

impl Socket {
    /// The hash of the server's certificate (RFC 5929), if this is a connection to a server by TLS and it has one.
    pub(super) fn end_point_of_server(&self) -> Option<Vec<u8>> {
        match self {
            Self::Tcp(_) | Self::Unix(_) => None,
            Self::Tls(stream) => {
                let certificates = stream.get_ref().1.peer_certificates();
                certificates.and_then(<[_]>::first).and_then(|leaf| tls_server_end_point(leaf))
            }
        }
    }
}

/// Takes any certificate, as libpq does below `verify-ca`; whoever shows it must have its key.
#[derive(Debug)]
pub(super) struct AnyCertificate(pub(super) Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_told_from_ports() {
        for (address, host) in [
            ("10.0.0.1:5432", "10.0.0.1"),
            ("db.example:5432", "db.example"),
            ("[::1]:5432", "::1"),
            ("localhost", "localhost"),
        ] {
            assert_eq!(host_of(address), host);
        }
    }
}
