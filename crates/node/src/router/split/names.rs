//! What is known of the functions and views of the databases, and of the texts that were judged by it. Each worker asks
//! for itself, the primary first; what has grown old is asked anew while it still serves.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use synapsedb_pg::sql::reads::{self, FUNCTIONS_SQL, VIEWS_SQL};
use tokio::sync::Mutex;

use super::kept::Kept;
use super::verdict::Judged;
use crate::router::account::Account;
use crate::router::login::Origin;
use crate::router::pool::NoServer;
use crate::router::server::{AskError, Server};
use crate::router::settings::Settings;
use crate::router::token::Reading;
use crate::router::worker::Worker;
use crate::router::{Endpoint, Shared};

/// Longer texts are judged each time, in bytes.
const TEXT_BYTES_MAX: usize = 4 * 1024;
/// Texts that turned out to write are remembered up to this number.
const WROTE_MAX: usize = 4_096;

/// All databases whose clients have come to the split endpoint.
#[derive(Default)]
pub(in crate::router) struct Names {
    databases: RefCell<HashMap<String, Rc<Database>>>,
    stamps: Cell<u64>,
}

impl Names {
    pub(super) fn of(&self, database: &str) -> Rc<Database> {
        let mut databases = self.databases.borrow_mut();
        if !databases.contains_key(database) {
            // Those of which no session is there are asked again when one comes.
            databases.retain(|_, known| Rc::strong_count(known) > 1);
        }
        Rc::clone(databases.entry(database.to_owned()).or_default())
    }

    fn stamp(&self) -> u64 {
        self.stamps.set(self.stamps.get() + 1);
        self.stamps.get()
    }
}

/// A database.
pub(super) struct Database {
    known: RefCell<Option<Rc<Known>>>,
    /// Who has it asks the server.
    turn: Mutex<()>,
    /// Texts that were taken for reads and wanted to write, by their hashes: to take another text for one of them costs
    /// no more than a read on the primary.
    wrote: RefCell<Kept<u64, ()>>,
    hashes: RandomState,
}

impl Default for Database {
    fn default() -> Self {
        Self {
            known: RefCell::default(),
            turn: Mutex::default(),
            wrote: RefCell::new(Kept::new(WROTE_MAX)),
            hashes: RandomState::new(),
        }
    }
}

/// A database's functions as they were at one moment, and the texts that were judged by them.
pub(super) struct Known {
    /// Another one whenever it is asked.
    pub(super) stamp: u64,
    names: reads::Names,
    texts: RefCell<Kept<Box<[u8]>, Rc<Judged>>>,
    /// The count of changes that had passed before the server was asked.
    definitions: u64,
    since: Instant,
}

/// Whether what is known can be used.
pub(super) enum Fresh {
    Yes(Rc<Known>),
    /// It can, and must be asked anew.
    Aging(Rc<Known>),
    /// Nothing is known, or it has changed.
    No,
}

impl Database {
    pub(super) fn fresh(&self, shared: &Shared) -> Fresh {
        let Some(known) = self.known.borrow().clone() else { return Fresh::No };
        if known.definitions != shared.definitions.load(Ordering::Acquire) {
            return Fresh::No;
        }
        let age_max = Duration::from_millis(shared.config().split_names_max_age_ms);
        if known.since.elapsed() < age_max { Fresh::Yes(known) } else { Fresh::Aging(known) }
    }

    /// What is known, as old as it may be.
    pub(super) fn known(&self) -> Option<Rc<Known>> {
        self.known.borrow().clone()
    }

    /// Judges a text, or remembers how it was judged.
    pub(super) fn judge(&self, known: &Known, text: &[u8]) -> Rc<Judged> {
        if let Some(judged) = known.texts.borrow_mut().get(text) {
            return judged;
        }
        let wrote = self.wrote.borrow_mut().get(&self.hashes.hash_one(text)).is_some();
        let judged = if wrote { Judged::wrote(text) } else { Judged::of(text, &known.names) };
        let judged = Rc::new(judged);
        if text.len() <= TEXT_BYTES_MAX {
            known.texts.borrow_mut().put(text.into(), Rc::clone(&judged));
        }
        judged
    }

    /// A text that was taken for a read has turned out to write.
    pub(super) fn wrote(&self, text: &[u8]) {
        self.wrote.borrow_mut().put(self.hashes.hash_one(text), ());
        if let Some(known) = &*self.known.borrow() {
            let judged = Rc::new(Judged::wrote(text));
            if text.len() <= TEXT_BYTES_MAX {
                known.texts.borrow_mut().put(text.into(), judged);
            }
        }
    }

    /// Asks a server, unless somebody has by the time that it is our turn.
    pub(super) async fn learn(self: Rc<Self>, worker: Rc<Worker>, of: Asker) {
        let turn = self.turn.lock().await;
        if matches!(self.fresh(&worker.shared), Fresh::Yes(_)) {
            return;
        }
        let definitions = worker.shared.definitions.load(Ordering::Acquire);
        let before = self.known();
        let names = match of.ask(&worker).await {
            Ok(names) => names,
            Err(why) => {
                // By what was known, or by words alone: the server refuses what is judged wrongly.
                let database = &of.account.database;
                tracing::debug!(database, "the functions of a database are not known: {why}");
                before.as_ref().map(|known| known.names.clone()).unwrap_or_default()
            }
        };
        if before.as_ref().is_some_and(|known| known.definitions != definitions) {
            self.wrote.borrow_mut().clear();
        }
        let known = Known {
            stamp: worker.names.stamp(),
            names,
            texts: RefCell::new(Kept::new(worker.shared.config().split_texts_max)),
            definitions,
            since: Instant::now(),
        };
        *self.known.borrow_mut() = Some(Rc::new(known));
        drop(turn);
    }

    /// Asks a server while what is known still serves.
    pub(super) fn learn_later(self: &Rc<Self>, worker: &Rc<Worker>, of: Asker) {
        if self.turn.try_lock().is_ok() {
            tokio::task::spawn_local(Rc::clone(self).learn(Rc::clone(worker), of));
        }
    }
}

/// On whose behalf a server is asked.
pub(super) struct Asker {
    pub(super) account: Rc<Account>,
    pub(super) origin: Rc<Origin>,
    pub(super) wanted: Rc<Settings>,
}

impl Asker {
    /// The primary knows first what is new; without it any reader says what it has.
    async fn ask(&self, worker: &Rc<Worker>) -> Result<reads::Names, String> {
        let mut why = String::new();
        for endpoint in [Endpoint::Write, Endpoint::Read] {
            match self.ask_at(worker, endpoint).await {
                Ok(names) => return Ok(names),
                Err(error) => why = error,
            }
        }
        Err(why)
    }

    async fn ask_at(
        &self,
        worker: &Rc<Worker>,
        endpoint: Endpoint,
    ) -> Result<reads::Names, String> {
        let picked = worker.pick(endpoint, &Reading::default());
        let address = picked.map_err(|why| why.to_string())?;
        let pool = self.account.pool(worker, &address);
        let patience = Duration::from_millis(worker.shared.config().connect_timeout_ms);
        let mut server = match pool.take(&self.wanted, false) {
            Some(server) => server,
            None => {
                let wanted = (&self.wanted, false);
                pool.wait(&self.origin, wanted, patience).await.map_err(|error| match error {
                    NoServer::Connect(error) => error.to_string(),
                    NoServer::Timeout { .. } => "all server connections are in use".to_owned(),
                })?
            }
        };
        let rows = match tokio::time::timeout(patience, rows(&mut server)).await {
            Ok(Err(AskError::Refused(why))) => {
                pool.give_back(server);
                return Err(why);
            }
            Ok(Ok(rows)) => {
                pool.give_back(server);
                rows
            }
            Ok(Err(AskError::Broken(error))) => {
                pool.end();
                return Err(error.to_string());
            }
            Err(_) => {
                pool.end();
                return Err(format!("no answer within {patience:?}"));
            }
        };
        // To look at a thousand views takes milliseconds, which the worker's clients need not wait for.
        let made = tokio::task::spawn_blocking(move || names(rows));
        made.await.map_err(|error| error.to_string())
    }
}

/// The functions, and the views.
type Rows = (Vec<Vec<Option<String>>>, Vec<Vec<Option<String>>>);

async fn rows(server: &mut Server) -> Result<Rows, AskError> {
    Ok((server.ask(FUNCTIONS_SQL).await?, server.ask(VIEWS_SQL).await?))
}

fn names((functions, views): Rows) -> reads::Names {
    let mut names = reads::Names::default();
    for row in functions {
        if let [Some(schema), Some(name), Some(is_volatile)] = &row[..] {
            names.add_function(schema, name, is_volatile == "t");
        }
    }
    let views = views.into_iter().filter_map(|row| match <[_; 2]>::try_from(row) {
        Ok([Some(name), Some(definition)]) => Some((name, definition)),
        Ok(_) | Err(_) => None,
    });
    names.add_views(views.collect());
    names
}
