//! What the server says of a role that wants to log in: its password's verifier, and whether it may.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use synapsedb_pg::client::{self, Client};

/// More roles than this are not remembered for the time when the server is down.
const REMEMBERED_MAX: usize = 10_000;

/// A role, as far as its login goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Role {
    /// `pg_authid.rolpassword`, unless it has expired.
    pub(super) verifier: Option<String>,
    /// It may log in.
    pub(super) may_login: bool,
    /// `rolconnlimit`; negative for none.
    pub(super) connections_max: i32,
    /// The database exists and the role may connect to it.
    pub(super) may_connect: bool,
    /// Which role it is, and the settings that its sessions in the database begin with; only ever compared.
    pub(super) defaults: String,
    /// `rolsuper`.
    pub(super) is_superuser: bool,
    /// A member of `pg_monitor`.
    pub(super) may_monitor: bool,
    /// `datconnlimit` of the database; negative for none.
    pub(super) database_connections_max: i32,
}

/// Looks roles up, on the server beside this agent.
pub(super) struct Roles {
    control: Option<synapsedb_pg::Config>,
    client: RefCell<Option<Rc<Client>>>,
    /// As they were last seen, by role and database.
    remembered: RefCell<HashMap<(String, String), Option<Role>>>,
}

impl Roles {
    /// `control` is how the agent's superuser reaches the server.
    pub(super) fn new(control: Option<synapsedb_pg::Config>) -> Self {
        // No setting of a client reaches this session, and no name resolves but by its schema.
        let control = control.map(|control| synapsedb_pg::Config {
            database: "postgres".to_owned(),
            application_name: "synapsedb router".to_owned(),
            ..control
        });
        Self { control, client: RefCell::default(), remembered: RefCell::default() }
    }

    /// The role as the server has it now, or, while the server does not answer, as it was last seen; `None` if there
    /// is none.
    ///
    /// # Errors
    /// The server does not answer and the role was never seen: why.
    pub(super) async fn look_up(&self, user: &str, database: &str) -> Result<Option<Role>, String> {
        let key = (user.to_owned(), database.to_owned());
        let mut outcome = self.ask(user, database).await;
        if outcome.is_err() {
            // The session may have ended with a restart of the server.
            *self.client.borrow_mut() = None;
            outcome = self.ask(user, database).await;
        }
        match outcome {
            Ok(role) => {
                let mut remembered = self.remembered.borrow_mut();
                if remembered.len() < REMEMBERED_MAX || remembered.contains_key(&key) {
                    remembered.insert(key, role.clone());
                }
                Ok(role)
            }
            Err(error) => self.remembered.borrow().get(&key).cloned().ok_or(error),
        }
    }

    async fn ask(&self, user: &str, database: &str) -> Result<Option<Role>, String> {
        let text = |error: synapsedb_pg::Error| error.to_string();
        let client = self.client().await.map_err(text)?;
        let row = client
            .query_opt(include_str!("roles.sql"), &[&user, &database])
            .await
            .map_err(|error| text(error.into()))?;
        Ok(row.map(|row| Role {
            verifier: row.get(0),
            may_login: row.get(1),
            connections_max: row.get(2),
            may_connect: row.get(3),
            defaults: row.get(4),
            is_superuser: row.get(5),
            may_monitor: row.get(6),
            database_connections_max: row.get(7),
        }))
    }

    async fn client(&self) -> Result<Rc<Client>, synapsedb_pg::Error> {
        if let Some(client) = self.client.borrow().clone().filter(|client| !client.is_closed()) {
            return Ok(client);
        }
        let Some(control) = &self.control else {
            let text = "this agent knows no server to ask for roles";
            return Err(synapsedb_pg::Error::new(synapsedb_pg::ErrorKind::Unreachable, text));
        };
        let client = Rc::new(client::connect(control).await?);
        *self.client.borrow_mut() = Some(Rc::clone(&client));
        Ok(client)
    }
}
