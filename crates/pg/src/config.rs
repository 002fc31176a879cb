//! Where a PostgreSQL server is and how to log in to it.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use crate::error::{Error, ErrorKind, Result};

/// The default of [`Config::connect_timeout_ms`].
const CONNECT_TIMEOUT_MS: u64 = 10_000;

/// The address of a server, without its port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Host {
    /// A host name or IP address.
    Tcp(String),
    /// The directory of the server's unix socket (`unix_socket_directories`).
    Unix(PathBuf),
}

/// How to reach and log in to one database of one server.
#[derive(Clone)]
pub struct Config {
    /// The server's address.
    pub host: Host,
    /// Its port; for a unix socket the number in the socket's file name.
    pub port: u16,
    /// The role to log in as.
    pub user: String,
    /// The role's password, if the server asks for one.
    pub password: Option<String>,
    /// The database.
    pub database: String,
    /// What `pg_stat_activity.application_name` shows.
    pub application_name: String,
    /// The limit for opening, TLS, authentication and start-up together, in milliseconds.
    pub connect_timeout_ms: u64,
    /// Server settings of the session, as start-up parameters (name, value).
    pub options: Vec<(String, String)>,
    /// TLS for TCP connections: when set, a server without TLS is refused. Unix sockets never use it.
    pub tls: Option<Arc<rustls::ClientConfig>>,
}

impl Default for Config {
    /// The role and database `postgres` on 127.0.0.1:5432, without a password.
    fn default() -> Self {
        Self {
            host: Host::Tcp("127.0.0.1".to_owned()),
            port: 5432,
            user: "postgres".to_owned(),
            password: None,
            database: "postgres".to_owned(),
            application_name: "synapsedb".to_owned(),
            connect_timeout_ms: CONNECT_TIMEOUT_MS,
            options: Vec::new(),
            tls: None,
        }
    }
}

impl Config {
    /// Reads `postgresql://user:password@host:port/database?application_name=…&connect_timeout=…&options=-c…`, or
    /// libpq's `key=value` form, for one host.
    ///
    /// Errors ([`ErrorKind::Config`]) when the text is no connection string, names no or several hosts, no user, or
    /// demands TLS (which is set by [`Config::tls`]). They never repeat the text, which may hold a password.
    pub fn from_url(url: &str) -> Result<Self> {
        let refused = |why: &str| Error::new(ErrorKind::Config, format!("connection URL: {why}"));
        let parsed: tokio_postgres::Config = url.parse().map_err(|error| {
            let text = "connection URL cannot be read; the form is \
                        postgresql://user:password@host:port/database";
            Error::with_source(ErrorKind::Config, text, Box::new(error))
        })?;
        let host = match parsed.get_hosts() {
            [tokio_postgres::config::Host::Tcp(name)] => Host::Tcp(name.clone()),
            [tokio_postgres::config::Host::Unix(dir)] => Host::Unix(dir.clone()),
            [] => return Err(refused("it names no host")),
            _ => return Err(refused("it names several hosts, one is needed")),
        };
        if parsed.get_ssl_mode() == tokio_postgres::config::SslMode::Require {
            return Err(refused("sslmode=require needs certificates, which are set elsewhere"));
        }
        let user = parsed.get_user().ok_or_else(|| refused("it names no user"))?.to_owned();
        let password = parsed.get_password().map(|bytes| String::from_utf8(bytes.to_vec()));
        let defaults = Self::default();
        Ok(Self {
            host,
            port: parsed.get_ports().first().copied().unwrap_or(defaults.port),
            password: password.transpose().map_err(|_| refused("its password is not UTF-8"))?,
            database: parsed.get_dbname().unwrap_or(&user).to_owned(),
            application_name: parsed
                .get_application_name()
                .unwrap_or(&defaults.application_name)
                .to_owned(),
            connect_timeout_ms: parsed
                .get_connect_timeout()
                .map_or(defaults.connect_timeout_ms, |limit| limit.as_millis() as u64),
            options: read_options(parsed.get_options().unwrap_or_default())
                .ok_or_else(|| refused("its options are not of the form -c name=value"))?,
            user,
            tls: None,
        })
    }

    /// The address as people write it: `127.0.0.1:5432`, or the socket's file.
    pub fn address(&self) -> String {
        match &self.host {
            Host::Tcp(host) if host.contains(':') => format!("[{host}]:{}", self.port),
            Host::Tcp(host) => format!("{host}:{}", self.port),
            Host::Unix(_) => self.socket_path().display().to_string(),
        }
    }

    /// The unix socket's file, when the host is one.
    pub fn unix_socket(&self) -> Option<PathBuf> {
        match &self.host {
            Host::Tcp(_) => None,
            Host::Unix(_) => Some(self.socket_path()),
        }
    }

    /// The unix socket's file: `DIR/.s.PGSQL.PORT`.
    pub(crate) fn socket_path(&self) -> PathBuf {
        let dir = match &self.host {
            Host::Tcp(_) => PathBuf::new(),
            Host::Unix(dir) => dir.clone(),
        };
        dir.join(format!(".s.PGSQL.{}", self.port))
    }

    /// The same login with another `application_name`.
    pub fn named(&self, application_name: impl Into<String>) -> Self {
        Self { application_name: application_name.into(), ..self.clone() }
    }

    /// The options in the `-c name=value` form of the start-up parameter `options`.
    pub(crate) fn options_text(&self) -> String {
        let mut text = String::new();
        for (name, value) in &self.options {
            text.push_str(if text.is_empty() { "-c " } else { " -c " });
            for character in name.chars().chain("=".chars()).chain(value.chars()) {
                if character == '\\' || character.is_ascii_whitespace() {
                    text.push('\\');
                }
                text.push(character);
            }
        }
        text
    }
}

impl fmt::Debug for Config {
    /// Everything but the password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("host", &self.host)
            .field("port", &self.port)
            .field("user", &self.user)
            .field("password", &self.password.as_ref().map(|_| "hidden"))
            .field("database", &self.database)
            .field("application_name", &self.application_name)
            .field("connect_timeout_ms", &self.connect_timeout_ms)
            .field("options", &self.options)
            .field("tls", &self.tls.is_some())
            .finish()
    }
}

/// Splits `-c name=value --name=value` as the server does: blanks separate, a backslash keeps the next character.
fn read_options(text: &str) -> Option<Vec<(String, String)>> {
    let mut words = vec![String::new()];
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        match character {
            '\\' => words.last_mut()?.extend(characters.next()),
            blank if blank.is_ascii_whitespace() => words.push(String::new()),
            other => words.last_mut()?.push(other),
        }
    }
    let mut words = words.into_iter().filter(|word| !word.is_empty());
    let mut options = Vec::new();
    while let Some(word) = words.next() {
        let setting = match word.as_str() {
            "-c" => words.next()?,
            _ => word.strip_prefix("--").or_else(|| word.strip_prefix("-c"))?.to_owned(),
        };
        let (name, value) = setting.split_once('=')?;
        options.push((name.to_owned(), value.to_owned()));
    }
    Some(options)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn reads_urls() {
        let url = "postgresql://me:p%40ss@db.example:6000/app?application_name=x&connect_timeout=3";
        let config = Config::from_url(url).unwrap();
        assert_eq!(config.host, Host::Tcp("db.example".into()));
        assert_eq!((config.port, config.user.as_str()), (6000, "me"));
        assert_eq!(config.password.as_deref(), Some("p@ss"));
        assert_eq!((config.database.as_str(), config.application_name.as_str()), ("app", "x"));
        assert_eq!(config.connect_timeout_ms, 3000);
        let config = Config::from_url("postgresql://me@/app?host=/run/postgresql").unwrap();
        assert_eq!(config.address(), "/run/postgresql/.s.PGSQL.5432");
    }

    #[test]
    fn refuses_what_it_cannot_mean() {
        for url in [
            "",
            "postgresql://me@a,b/app",
            "postgresql://host/app",
            "http://x",
            "postgresql://me@host/app?sslmode=require",
        ] {
            let error = Config::from_url(url).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Config, "{url}: {error}");
        }
    }

    #[test]
    fn never_shows_the_password() {
        let config = Config::from_url("postgresql://me:secret@host/app").unwrap();
        assert!(!format!("{config:?}").contains("secret"));
    }

    #[test]
    fn options_round_trip() {
        let options = vec![
            ("search_path".to_owned(), "a b, \"c\\d\"".to_owned()),
            ("work_mem".to_owned(), "4MB".to_owned()),
        ];
        let config = Config { options: options.clone(), ..Config::default() };
        assert_eq!(read_options(&config.options_text()), Some(options));
        assert_eq!(read_options("nonsense"), None);
    }
}
