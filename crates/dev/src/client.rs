//! SQL sessions of the tests: as an application would open them, with its role and its password.

use std::ops::{Deref, DerefMut};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use tokio::task::JoinHandle;
use tokio_postgres::{Client, NoTls, SimpleQueryMessage};

/// How long a connection attempt may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long one statement of a test may take.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(300);

/// A place that takes SQL: a node's server or an endpoint of the router, with the role of the application.
#[derive(Clone, Debug)]
pub struct Server {
    /// What it is called in failures.
    pub name: String,
    /// Its port on 127.0.0.1.
    pub port: u16,
    /// The role.
    pub user: String,
    /// Its password.
    pub password: String,
    /// The database.
    pub database: String,
}

/// An open session; it is closed when dropped.
pub struct Session {
    client: Client,
    connection: JoinHandle<()>,
}

impl Deref for Session {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

impl DerefMut for Session {
    fn deref_mut(&mut self) -> &mut Client {
        &mut self.client
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl Session {
    /// Runs statements and returns the rows of all of them, as `psql -At` prints them: columns joined by `|`, NULL
    /// as nothing.
    ///
    /// # Errors
    /// The server's error.
    pub async fn rows(&self, sql: &str) -> Result<Vec<String>, tokio_postgres::Error> {
        let messages = self.client.simple_query(sql).await?;
        Ok(messages
            .iter()
            .filter_map(|message| match message {
                SimpleQueryMessage::Row(row) => {
                    let columns = (0..row.len()).map(|column| row.get(column).unwrap_or(""));
                    Some(columns.collect::<Vec<_>>().join("|"))
                }
                _ => None,
            })
            .collect())
    }
}

impl Server {
    /// The place on `port` with the development role, database and password.
    pub fn new(name: impl Into<String>, port: u16) -> Self {
        let word = || "synapsedb".to_owned();
        Self { name: name.into(), port, user: word(), password: word(), database: word() }
    }

    /// The line with which `psql` reaches it.
    pub fn url(&self) -> String {
        let Self { port, user, password, database, .. } = self;
        format!("postgresql://{user}:{password}@127.0.0.1:{port}/{database}")
    }

    /// Opens a session.
    ///
    /// # Errors
    /// When the server refuses it or does not answer.
    pub async fn try_session(&self) -> Result<Session> {
        let mut config = tokio_postgres::Config::new();
        config
            .host("127.0.0.1")
            .port(self.port)
            .user(&self.user)
            .password(&self.password)
            .dbname(&self.database)
            .application_name("synapsedb-dev")
            .connect_timeout(CONNECT_TIMEOUT);
        let connecting = tokio::time::timeout(CONNECT_TIMEOUT, config.connect(NoTls));
        let (client, connection) = connecting
            .await
            .with_context(|| format!("{} did not answer within {CONNECT_TIMEOUT:?}", self.name))?
            .with_context(|| format!("connect to {} (port {})", self.name, self.port))?;
        // The end of the connection shows in the next statement.
        let connection = tokio::spawn(async move {
            let _ = connection.await;
        });
        Ok(Session { client, connection })
    }

    /// Opens a session.
    ///
    /// # Panics
    /// When the server refuses it or does not answer.
    pub async fn session(&self) -> Session {
        match self.try_session().await {
            Ok(session) => session,
            Err(error) => panic!("{error:#}"),
        }
    }

    /// Runs statements in a session of their own and returns their rows as `psql -At` prints them.
    ///
    /// # Errors
    /// The server's error, with where and what was tried.
    pub async fn try_rows(&self, sql: &str) -> Result<Vec<String>> {
        let session = self.try_session().await?;
        match tokio::time::timeout(STATEMENT_TIMEOUT, session.rows(sql)).await {
            Ok(Ok(rows)) => Ok(rows),
            Ok(Err(error)) => bail!("{}: {}\n  {sql}", self.name, words(&error)),
            Err(_) => bail!("{}: no answer within {STATEMENT_TIMEOUT:?}\n  {sql}", self.name),
        }
    }

    /// Runs statements and returns their rows as `psql -At` prints them.
    ///
    /// # Panics
    /// With the server's error.
    pub async fn rows(&self, sql: &str) -> Vec<String> {
        match self.try_rows(sql).await {
            Ok(rows) => rows,
            Err(error) => panic!("{error:#}"),
        }
    }

    /// Runs statements.
    ///
    /// # Panics
    /// With the server's error.
    pub async fn sql(&self, sql: &str) {
        self.rows(sql).await;
    }

    /// The one value of a query.
    ///
    /// # Panics
    /// With the server's error, or when the answer is not exactly one row.
    pub async fn value(&self, sql: &str) -> String {
        let mut rows = self.rows(sql).await;
        assert_eq!(rows.len(), 1, "{}: exactly one row was expected of\n  {sql}", self.name);
        rows.remove(0)
    }

    /// Runs statements that must fail and returns the SQLSTATE.
    ///
    /// # Panics
    /// When they succeed, or fail without an error of the server.
    pub async fn sqlstate(&self, sql: &str) -> String {
        let session = self.session().await;
        let answer = session.rows(sql).await;
        let code = answer.as_ref().err().and_then(|error| error.code()).map(|code| code.code());
        match code {
            Some(code) => code.to_owned(),
            None => panic!("{}: an error was expected, not {answer:?}\n  {sql}", self.name),
        }
    }

    /// Whether a query answers exactly `expected` rows, as a look for [`crate::eventually`].
    ///
    /// # Errors
    /// What it answers instead.
    pub async fn shows(&self, sql: &str, expected: &[&str]) -> Result<(), String> {
        match self.try_rows(sql).await {
            Ok(rows) if rows == expected => Ok(()),
            Ok(rows) => Err(format!("{} shows {rows:?} instead of {expected:?}", self.name)),
            Err(error) => Err(format!("{error:#}")),
        }
    }
}

/// What the server said, in one line: the message of a tokio-postgres error alone is "db error".
pub fn words(error: &tokio_postgres::Error) -> String {
    let Some(error) = error.as_db_error() else {
        return match std::error::Error::source(error) {
            Some(source) => format!("{error}: {source}"),
            None => error.to_string(),
        };
    };
    let detail = error.detail().map(|detail| format!(" ({detail})")).unwrap_or_default();
    format!("{} {}: {}{detail}", error.severity(), error.code().code(), error.message())
}
