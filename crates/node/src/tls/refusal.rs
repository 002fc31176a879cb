//! Why a connection was refused, as one word that is counted and logged.

use std::fmt;
use std::io;

use rustls::CertificateError;

/// Why a connection between agents was refused; its text is the label of the metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Refusal {
    /// The certificate was signed by another authority.
    UnknownCa,
    /// The certificate has expired.
    Expired,
    /// The certificate is not valid yet.
    NotYetValid,
    /// No certificate was shown.
    NoCertificate,
    /// A certificate that names no node or that is malformed.
    BadCertificate,
    /// The certificate or the greeting is of another cluster.
    OtherCluster,
    /// The certificate is not of the node that was expected or that is claimed.
    WrongNode,
    /// A node that is not in this agent's list of members.
    UnknownNode,
    /// The greeting is malformed or too long.
    BadHello,
    /// Another version of the protocol.
    OtherProtocol,
    /// A service that this agent does not serve.
    UnknownService,
    /// The handshake or the greeting took too long.
    Timeout,
    /// Too many connections or handshakes at once.
    TooMany,
    /// The bytes are not TLS, or not the TLS that agents speak.
    NotTls,
    /// The other side refused or closed the connection during the handshake.
    ByPeer,
}

impl Refusal {
    /// The label of the metric.
    pub fn label(self) -> &'static str {
        match self {
            Self::UnknownCa => "unknown_ca",
            Self::Expired => "expired",
            Self::NotYetValid => "not_yet_valid",
            Self::NoCertificate => "no_certificate",
            Self::BadCertificate => "bad_certificate",
            Self::OtherCluster => "other_cluster",
            Self::WrongNode => "wrong_node",
            Self::UnknownNode => "unknown_node",
            Self::BadHello => "bad_hello",
            Self::OtherProtocol => "other_protocol",
            Self::UnknownService => "unknown_service",
            Self::Timeout => "timeout",
            Self::TooMany => "too_many",
            Self::NotTls => "not_tls",
            Self::ByPeer => "by_peer",
        }
    }

    /// What kind of refusal a TLS error is.
    pub fn of_tls(error: &rustls::Error) -> Self {
        match error {
            rustls::Error::InvalidCertificate(certificate) => match certificate {
                CertificateError::UnknownIssuer | CertificateError::BadSignature => Self::UnknownCa,
                CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                    Self::Expired
                }
                CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                    Self::NotYetValid
                }
                CertificateError::NotValidForName => Self::WrongNode,
                CertificateError::NotValidForNameContext { expected, presented } => {
                    Self::of_name(&expected.to_str(), presented)
                }
                _ => Self::BadCertificate,
            },
            rustls::Error::NoCertificatesPresented => Self::NoCertificate,
            rustls::Error::AlertReceived(_) => Self::ByPeer,
            _ => Self::NotTls,
        }
    }

    /// What kind of refusal an error of a TLS stream is.
    pub fn of_io(error: &io::Error) -> Self {
        let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
        match (inner, error.kind()) {
            (Some(tls), _) => Self::of_tls(tls),
            (None, io::ErrorKind::TimedOut) => Self::Timeout,
            (None, _) => Self::ByPeer,
        }
    }

    /// A certificate that is good but not for the expected name: of another node, or of another cluster.
    fn of_name(expected: &str, presented: &[String]) -> Self {
        let cluster = expected.split_once('.').map(|(_, cluster)| cluster).unwrap_or(expected);
        let same = presented.iter().any(|name| name.contains(cluster));
        if same { Self::WrongNode } else { Self::OtherCluster }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label())
    }
}
