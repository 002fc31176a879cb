//! Control SQL: a `tokio_postgres` client over our own transport, its connection driven by a task.

use std::collections::HashMap;
use std::future::poll_fn;
use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, PoisonError};

use tokio_postgres::types::ToSql;
use tokio_postgres::{AsyncMessage, NoTls, Row, Statement};

use crate::config::Config;
use crate::conn::session::check_version;
use crate::error::{Error, Result};
use crate::transport::{self, Socket};
use crate::wire::backend::ServerError;

/// A session for control SQL. Dropped, it ends after what is in flight.
///
/// Its methods give `tokio_postgres::Error`; `?` into [`crate::Error`] makes the server's report part of the text.
#[derive(Debug)]
pub struct Client {
    inner: tokio_postgres::Client,
    config: Config,
    /// The statements of [`Client::query_again`].
    prepared: Mutex<HashMap<&'static str, Statement>>,
}

/// Opens a session.
///
/// Errors say address, role and database, never the password; see [`crate::ErrorKind`] for the cases.
pub async fn connect(config: &Config) -> Result<Client> {
    transport::in_time(config, async {
        let socket = transport::open(config).await?;
        let mut login = tokio_postgres::Config::new();
        login.user(&config.user).dbname(&config.database);
        login.application_name(&config.application_name).options(config.options_text());
        if let Some(password) = &config.password {
            login.password(password);
        }
        // TLS, if any, is already below the socket.
        login.ssl_mode(tokio_postgres::config::SslMode::Disable);
        let connected = login.connect_raw(socket, NoTls).await;
        let (inner, connection) = connected.map_err(|error| refused(config, error))?;
        check_version(config, connection.parameter("server_version"))?;
        tokio::spawn(drive(connection, config.address()));
        Ok(Client { inner, config: config.clone(), prepared: Mutex::default() })
    })
    .await
}

/// Moves the session's bytes until it ends.
async fn drive(
    mut connection: tokio_postgres::Connection<Socket, tokio_postgres::tls::NoTlsStream>,
    address: String,
) {
    while let Some(message) = poll_fn(|context| connection.poll_message(context)).await {
        match message {
            Ok(AsyncMessage::Notice(notice)) => tracing::debug!(%address, %notice, "notice"),
            Ok(_) => {}
            Err(error) => {
                // Whoever waits on the client gets the error; here it only explains the end.
                tracing::debug!(%address, error = %Error::from(error), "session ended");
                return;
            }
        }
    }
}

/// Tells a failed start-up in the words of [`crate::conn`].
fn refused(config: &Config, error: tokio_postgres::Error) -> Error {
    if let Some(server) = error.as_db_error() {
        return Error::startup(config, ServerError::from(server));
    }
    let doing = format!(
        "login of role \"{}\" to \"{}\" at PostgreSQL {}",
        config.user,
        config.database,
        config.address()
    );
    Error::from(error).while_doing(&doing)
}

impl Client {
    /// Asks the server to cancel the running statement of this session.
    pub async fn cancel(&self) -> Result<()> {
        transport::in_time(&self.config, async {
            let socket = transport::open(&self.config).await?;
            Ok(self.inner.cancel_token().cancel_query_raw(socket, NoTls).await?)
        })
        .await
    }

    /// Runs a query that this session runs again and again: it is parsed once, and then costs one round trip where
    /// `query` costs three. For a few fixed texts, since the session keeps all of them.
    ///
    /// # Errors
    /// As `query`; also where the columns of the answer have changed since the first time.
    pub async fn query_again(
        &self,
        sql: &'static str,
        parameters: &[&(dyn ToSql + Sync)],
    ) -> std::result::Result<Vec<Row>, tokio_postgres::Error> {
        let known = || self.prepared.lock().unwrap_or_else(PoisonError::into_inner);
        let statement = known().get(sql).cloned();
        let statement = match statement {
            Some(statement) => statement,
            None => {
                let statement = self.inner.prepare(sql).await?;
                known().insert(sql, statement.clone());
                statement
            }
        };
        self.inner.query(&statement, parameters).await
    }

    /// How this session logged in.
    pub fn config(&self) -> &Config {
        &self.config
    }
}

impl Deref for Client {
    type Target = tokio_postgres::Client;

    fn deref(&self) -> &Self::Target {
        &self.inner
    }
}

impl DerefMut for Client {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.inner
    }
}
