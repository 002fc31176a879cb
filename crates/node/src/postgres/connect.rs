//! One way to an SQL session with the server.

use std::fmt;
use std::ops::Deref;
use std::path::PathBuf;
use std::time::Duration;

use tokio_postgres::NoTls;

/// Where a server is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Host {
    /// A name or an address.
    Tcp(String),
    /// The directory of its unix socket.
    Unix(PathBuf),
}

/// How to reach a database.
#[derive(Clone)]
pub struct Target {
    /// Where the server is.
    pub host: Host,
    /// Its port; of a unix socket the number in its name.
    pub port: u16,
    /// The role.
    pub user: String,
    /// Its password.
    pub password: Option<String>,
    /// The database.
    pub database: String,
    /// What `pg_stat_activity` shows.
    pub application_name: String,
    /// How long connecting may take, in milliseconds.
    pub connect_timeout_ms: u64,
    /// Settings of the session, given with the startup.
    pub options: Vec<(String, String)>,
}

impl Target {
    /// `host:port`, or the socket's path.
    pub fn address(&self) -> String {
        match &self.host {
            Host::Tcp(host) => format!("{host}:{}", self.port),
            Host::Unix(dir) => dir.join(format!(".s.PGSQL.{}", self.port)).display().to_string(),
        }
    }

    /// The same as the protocol crate knows it.
    pub fn pg(&self) -> synapsedb_pg::Config {
        synapsedb_pg::Config {
            host: match &self.host {
                Host::Tcp(host) => synapsedb_pg::Host::Tcp(host.clone()),
                Host::Unix(dir) => synapsedb_pg::Host::Unix(dir.clone()),
            },
            port: self.port,
            user: self.user.clone(),
            password: self.password.clone(),
            database: self.database.clone(),
            application_name: self.application_name.clone(),
            connect_timeout_ms: self.connect_timeout_ms,
            options: self.options.clone(),
            tls: None,
        }
    }

    /// The same, for another database.
    pub(super) fn in_database(&self, database: &str) -> Self {
        Self { database: database.to_owned(), ..self.clone() }
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}/{}", self.user, self.address(), self.database)
    }
}

/// A session; dropping it says goodbye to the server and ends it.
pub struct Client(tokio_postgres::Client);

impl Deref for Client {
    type Target = tokio_postgres::Client;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

/// Why there is no session, or what the server said.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Nobody answered in time.
    #[error("no answer from {address} within {timeout_ms} ms")]
    Timeout {
        /// Who was asked.
        address: String,
        /// How long was waited.
        timeout_ms: u64,
    },
    /// The server, or the way to it, refused.
    #[error("{}", one_line(.0))]
    Refused(#[from] tokio_postgres::Error),
}

impl ConnectError {
    /// The server's code, if it was the server that refused.
    pub fn sqlstate(&self) -> Option<&str> {
        match self {
            Self::Refused(error) => error.code().map(tokio_postgres::error::SqlState::code),
            Self::Timeout { .. } => None,
        }
    }
}

/// Opens a session.
///
/// # Errors
/// When the server does not answer in time or refuses.
pub async fn connect(target: &Target) -> Result<Client, ConnectError> {
    let mut config = tokio_postgres::Config::new();
    config
        .user(&target.user)
        .dbname(&target.database)
        .port(target.port)
        .application_name(&target.application_name);
    match &target.host {
        Host::Tcp(host) => config.host(host),
        Host::Unix(dir) => config.host_path(dir),
    };
    if let Some(password) = &target.password {
        config.password(password);
    }
    if !target.options.is_empty() {
        let escape = |text: &str| text.replace('\\', "\\\\").replace(' ', "\\ ");
        let options: Vec<String> = target
            .options
            .iter()
            .map(|(name, value)| format!("-c {name}={}", escape(value)))
            .collect();
        config.options(options.join(" "));
    }
    let timeout = Duration::from_millis(target.connect_timeout_ms);
    let (client, connection) = tokio::time::timeout(timeout, config.connect(NoTls))
        .await
        .map_err(|_| ConnectError::Timeout {
            address: target.address(),
            timeout_ms: target.connect_timeout_ms,
        })??;
    tokio::spawn(async move {
        // Its end is seen by the client's next statement.
        let _ = connection.await;
    });
    Ok(Client(client))
}

/// An error with what the server said, in one line.
pub(super) fn one_line(error: &tokio_postgres::Error) -> String {
    if let Some(server) = error.as_db_error() {
        let detail = server.detail().map_or(String::new(), |detail| format!(" ({detail})"));
        return format!("{}{detail}", server.message()).replace('\n', " ");
    }
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text.replace('\n', " ")
}
