//! Clients that write rows with keys of their own in every way there is, and what each of them was told.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::BytesMut;
use postgres_protocol::IsNull;
use postgres_protocol::message::frontend;
use synapsedb_dev::client::{Server, words};
use tokio::task::JoinHandle;

use crate::router_transparency::wire::Wire;

/// Keys of one writer.
const KEYS_OF_ONE: i64 = 10_000_000;

/// How a client writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Way {
    /// BEGIN, the write by the extended protocol, COMMIT as a Query.
    Block,
    /// BEGIN and COMMIT by the extended protocol, the messages of each statement sent together.
    Batch,
    /// The write alone, by the extended protocol.
    Single,
    /// The write alone, as a Query.
    Query,
}

/// What a client was told of one write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Told {
    Committed,
    /// 40001, be it in answer to the COMMIT or ahead of it.
    NotApplied,
    /// 08007, and that it took effect.
    TookEffect,
    /// 08007, and no more.
    Unknown,
    /// The connection was lost.
    Lost,
}

impl Told {
    fn of(error: &str) -> Self {
        match error {
            error if error.contains("08007") && error.contains("took effect,") => Self::TookEffect,
            error if error.contains("08007") => Self::Unknown,
            _ => Self::NotApplied,
        }
    }
}

/// Writers at work.
pub struct Load {
    stop: Arc<AtomicBool>,
    writers: Vec<JoinHandle<(Way, BTreeMap<i64, Told>)>>,
}

impl Load {
    /// One writer for each way, each with keys of its own.
    pub fn start(endpoint: &Server, table: &str, ways: &[Way]) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let writer = |(number, way): (i64, &Way)| {
            let (endpoint, table, way) = (endpoint.clone(), table.to_owned(), *way);
            tokio::spawn(write(endpoint, table, way, number * KEYS_OF_ONE, stop.clone()))
        };
        let writers = (1..).zip(ways).map(writer).collect();
        Self { stop, writers }
    }

    /// Lets each end its write.
    pub async fn finish(self) -> Record {
        self.stop.store(true, Ordering::Relaxed);
        let mut record = Record::default();
        for writer in self.writers {
            let (way, told) = writer.await.unwrap();
            record.0.extend(told.into_iter().map(|(key, told)| (key, (way, told))));
        }
        record
    }
}

/// What was told of every key.
#[derive(Default)]
pub struct Record(BTreeMap<i64, (Way, Told)>);

/// How often what was told, by way.
pub struct Counts(BTreeMap<(Way, Told), usize>);

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for ((way, told), count) in &self.0 {
            write!(f, "{way:?} {told:?} {count}; ")?;
        }
        Ok(())
    }
}

impl Record {
    /// Compares it with the keys that are in the table.
    ///
    /// # Panics
    /// When a client was told what is not true.
    pub fn compare(&self, rows: &[String]) -> Counts {
        let rows: BTreeSet<i64> = rows.iter().map(|row| row.parse().unwrap()).collect();
        let mut counts = BTreeMap::new();
        for (key, (way, told)) in &self.0 {
            let there = rows.contains(key);
            let is_true = match told {
                Told::Committed | Told::TookEffect => there,
                Told::NotApplied => !there,
                Told::Unknown | Told::Lost => true,
            };
            assert!(is_true, "{way:?} was told {told:?} of {key}, which is there: {there}");
            *counts.entry((*way, *told)).or_default() += 1;
        }
        let unheard: Vec<_> = rows.iter().filter(|key| !self.0.contains_key(key)).collect();
        assert!(unheard.is_empty(), "rows that nobody wrote: {unheard:?}");
        Counts(counts)
    }

    pub fn count(&self, of: impl Fn(Way, Told) -> bool) -> usize {
        self.0.values().filter(|(way, told)| of(*way, *told)).count()
    }
}

/// Writes until it is stopped.
async fn write(
    endpoint: Server,
    table: String,
    way: Way,
    first: i64,
    stop: Arc<AtomicBool>,
) -> (Way, BTreeMap<i64, Told>) {
    let (mut told, mut key) = (BTreeMap::new(), first);
    while !stop.load(Ordering::Relaxed) {
        let ended = match way {
            Way::Batch => by_batches(&endpoint, &table, &mut key, &mut told, &stop).await,
            Way::Block | Way::Single | Way::Query => {
                by_driver(&endpoint, &table, way, &mut key, &mut told, &stop).await
            }
        };
        if ended.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    (way, told)
}

async fn by_driver(
    endpoint: &Server,
    table: &str,
    way: Way,
    key: &mut i64,
    told: &mut BTreeMap<i64, Told>,
    stop: &AtomicBool,
) -> Result<(), ()> {
    let session = endpoint.try_session().await.map_err(drop)?;
    let insert = format!("insert into {table} values ($1)");
    let statement = session.prepare(&insert).await.map_err(drop)?;
    while !stop.load(Ordering::Relaxed) {
        *key += 1;
        let written = async {
            match way {
                Way::Single => {
                    session.execute(&statement, &[&*key]).await.map(|rows| assert_eq!(rows, 1))
                }
                Way::Query => session.batch_execute(&insert.replace("$1", &key.to_string())).await,
                Way::Block | Way::Batch => {
                    session.batch_execute("begin").await?;
                    let written = session.execute(&statement, &[&*key]).await;
                    let ended = session
                        .batch_execute(if written.is_ok() { "commit" } else { "rollback" })
                        .await;
                    written.and(ended)
                }
            }
        };
        let outcome = match written.await {
            Ok(()) => Told::Committed,
            Err(error) if error.code().is_none() => {
                told.insert(*key, Told::Lost);
                return Err(());
            }
            Err(error) => Told::of(&words(&error)),
        };
        told.insert(*key, outcome);
    }
    Ok(())
}

/// The messages of one statement as JDBC sends them.
pub fn statement(sql: &str, value: Option<&str>, described: bool) -> BytesMut {
    let mut bytes = BytesMut::new();
    frontend::parse("", sql, [], &mut bytes).unwrap();
    let write = |value: &str, out: &mut BytesMut| {
        out.extend_from_slice(value.as_bytes());
        Ok(IsNull::No)
    };
    assert!(frontend::bind("", "", [], value, write, [0], &mut bytes).is_ok());
    if described {
        frontend::describe(b'P', "", &mut bytes).unwrap();
    }
    frontend::execute("", 0, &mut bytes).unwrap();
    bytes
}

async fn by_batches(
    endpoint: &Server,
    table: &str,
    key: &mut i64,
    told: &mut BTreeMap<i64, Told>,
    stop: &AtomicBool,
) -> Result<(), ()> {
    endpoint.try_session().await.map_err(drop)?;
    let (mut wire, _) = Wire::login(endpoint, &[]).await;
    while !stop.load(Ordering::Relaxed) {
        *key += 1;
        let mut insert = statement("begin", None, false);
        let sql = format!("insert into {table} values ($1::bigint)");
        insert.extend_from_slice(&statement(&sql, Some(&key.to_string()), true));
        frontend::sync(&mut insert);
        let mut commit = statement("commit", None, *key % 2 == 0);
        frontend::sync(&mut commit);
        wire.send(&insert).await;
        let mut said = wire.answer(1).await;
        if wire.status == b'T' {
            wire.send(&commit).await;
            said = wire.answer(1).await;
        } else if wire.status == b'E' {
            wire.query("rollback").await;
        }
        // A server that crashes says so to all its sessions.
        said.retain(|line| !line.starts_with("N "));
        let error = said.iter().find(|line| line.starts_with("E "));
        let outcome = match error {
            _ if wire.status == 0 => Told::Lost,
            Some(error) => Told::of(error),
            None => {
                let described = *key % 2 == 0;
                let expected = ["1", "2", "n", "C COMMIT", "Z I"];
                let expected = expected.into_iter().filter(|line| described || *line != "n");
                assert!(said.iter().map(String::as_str).eq(expected), "{said:?}");
                Told::Committed
            }
        };
        told.insert(*key, outcome);
        if outcome == Told::Lost {
            return Err(());
        }
    }
    Ok(())
}
