//! The beginning of a session: start-up message, authentication, the server's settings.

use std::collections::BTreeMap;

use bytes::{Buf, Bytes};
use postgres_protocol::authentication::md5_hash;
use postgres_protocol::authentication::sasl::{ChannelBinding, SCRAM_SHA_256, ScramSha256};
use postgres_protocol::message::frontend as reference;

use super::{CancelToken, Connection, Reader, Writer};
use crate::config::Config;
use crate::error::{Error, ErrorKind, Result};
use crate::wire::backend::{self, ServerError};
use crate::wire::frontend;

/// The oldest major version of PostgreSQL that is served.
pub const SERVER_VERSION_MIN: u32 = 15;

/// Where an authentication stands. A server that claims success in the middle of SCRAM has not proved itself.
enum Exchange {
    None,
    Scram(Box<ScramSha256>),
    ScramProved,
}

/// Sends the start-up message and answers until the server is ready for a query.
pub(super) async fn start(
    config: &Config,
    replication: bool,
    mut reader: Reader,
    mut writer: Writer,
) -> Result<Connection> {
    let fixed = [
        ("user", config.user.as_str()),
        ("database", config.database.as_str()),
        ("application_name", config.application_name.as_str()),
        ("client_encoding", "UTF8"),
    ];
    let replication = replication.then_some(("replication", "database"));
    let options = config.options.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    let parameters = fixed.into_iter().chain(replication).chain(options);
    frontend::startup(writer.buffer(), parameters)?;
    writer.flush().await?;
    authenticate(config, &mut reader, &mut writer).await?;
    let (parameters, pid, key) = settle(config, &mut reader).await?;
    let server_version =
        check_version(config, parameters.get("server_version").map(String::as_str))?;
    let cancel = CancelToken { config: config.clone(), pid, key };
    Ok(Connection { reader, writer, parameters, server_version, cancel })
}

/// Proves the password in the way the server asks for.
async fn authenticate(config: &Config, reader: &mut Reader, writer: &mut Writer) -> Result<()> {
    let failed = |what: String| {
        let (user, database, address) = (&config.user, &config.database, config.address());
        let text =
            format!("login of role \"{user}\" to \"{database}\" at PostgreSQL {address}: {what}");
        Error::new(ErrorKind::Authentication, text)
    };
    let password = || {
        let password = config.password.as_deref().map(str::as_bytes);
        password.ok_or_else(|| failed("the server asks for a password and none is set".into()))
    };
    let scram = |error: std::io::Error| failed(format!("SCRAM failed: {error}"));
    let mut exchange = Exchange::None;
    loop {
        let (tag, mut body) = reader.next().await.map_err(|error| unserved(config, error))?;
        match tag {
            backend::AUTHENTICATION => {}
            backend::ERROR_RESPONSE => {
                return Err(Error::startup(config, ServerError::parse(&body)));
            }
            backend::NOTICE_RESPONSE | backend::NEGOTIATE_PROTOCOL_VERSION => continue,
            _ => return Err(unserved(config, Error::protocol("it speaks another protocol"))),
        }
        let request = body.try_get_u32().map_err(|_| Error::protocol("empty authentication"))?;
        match (request, &mut exchange) {
            (0, Exchange::None | Exchange::ScramProved) => return Ok(()),
            (3, Exchange::None) => put(writer, password()?)?,
            (5, Exchange::None) if body.len() == 4 => {
                let salt = [body[0], body[1], body[2], body[3]];
                put(writer, md5_hash(config.user.as_bytes(), password()?, salt).as_bytes())?;
            }
            (10, Exchange::None) => {
                let mut offered = body.split(|byte| *byte == 0);
                if !offered.any(|name| name == SCRAM_SHA_256.as_bytes()) {
                    return Err(failed("the server offers no SCRAM-SHA-256".into()));
                }
                let state = ScramSha256::new(password()?, ChannelBinding::unsupported());
                let first = state.message();
                reference::sasl_initial_response(SCRAM_SHA_256, first, writer.buffer())
                    .map_err(scram)?;
                exchange = Exchange::Scram(Box::new(state));
            }
            (11, Exchange::Scram(state)) => {
                state.update(&body).map_err(scram)?;
                reference::sasl_response(state.message(), writer.buffer()).map_err(scram)?;
            }
            (12, Exchange::Scram(state)) => {
                state.finish(&body).map_err(scram)?;
                exchange = Exchange::ScramProved;
            }
            (0, Exchange::Scram(_)) => {
                return Err(failed("the server did not prove that it knows the password".into()));
            }
            (method, _) => {
                return Err(failed(format!(
                    "the server asks for method {method}, not served here"
                )));
            }
        }
        writer.flush().await?;
    }
}

fn put(writer: &mut Writer, password: &[u8]) -> Result<()> {
    reference::password_message(password, writer.buffer()).map_err(|_| {
        Error::new(ErrorKind::Encode, "a password with a NUL byte cannot be sent to PostgreSQL")
    })
}

/// Takes the settings and the cancel key until the server is ready.
async fn settle(
    config: &Config,
    reader: &mut Reader,
) -> Result<(BTreeMap<String, String>, u32, Bytes)> {
    let mut parameters = BTreeMap::new();
    let (mut pid, mut key) = (0, Bytes::new());
    loop {
        let (tag, mut body) = reader.next().await.map_err(|error| unserved(config, error))?;
        match tag {
            backend::PARAMETER_STATUS => {
                let (name, value) = backend::parameter_status(&body)?;
                parameters.insert(name.to_owned(), value.to_owned());
            }
            backend::BACKEND_KEY_DATA => {
                pid = body.try_get_u32().map_err(|_| Error::protocol("malformed cancel key"))?;
                key = Bytes::copy_from_slice(&body);
            }
            backend::READY_FOR_QUERY => return Ok((parameters, pid, key)),
            backend::ERROR_RESPONSE => {
                return Err(Error::startup(config, ServerError::parse(&body)));
            }
            _ => {}
        }
    }
}

/// The server's major version, refused when too old.
pub(crate) fn check_version(config: &Config, text: Option<&str>) -> Result<Option<u32>> {
    let digits = |text: &str| {
        let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        text[..end].parse::<u32>().ok()
    };
    let version = text.and_then(digits);
    match version {
        Some(major) if major < SERVER_VERSION_MIN => Err(Error::new(
            ErrorKind::TooOld,
            format!(
                "PostgreSQL at {} is version {}; version {SERVER_VERSION_MIN} or newer is needed",
                config.address(),
                text.unwrap_or_default()
            ),
        )),
        version => Ok(version),
    }
}

/// A session that broke off before it began.
fn unserved(config: &Config, error: Error) -> Error {
    let (user, database) = (&config.user, &config.database);
    let address = config.address();
    error.while_doing(&format!(
        "PostgreSQL at {address} began no session of role \"{user}\" in \"{database}\""
    ))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn versions() {
        let config = Config::default();
        for (text, major) in [("15.13 (Debian 15.13-0)", 15), ("18beta1", 18), ("16", 16)] {
            assert_eq!(check_version(&config, Some(text)).unwrap(), Some(major));
        }
        assert_eq!(check_version(&config, None).unwrap(), None);
        let error = check_version(&config, Some("9.6.24")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TooOld);
        let text = "PostgreSQL at 127.0.0.1:5432 is version 9.6.24; version 15 or newer is needed";
        assert_eq!(error.to_string(), text);
    }
}
