//! One pipelined session of the applier: many transactions in flight, answers read while more is sent.

use std::collections::VecDeque;

use anyhow::{Context as _, Result, anyhow};
use bytes::{Buf as _, Bytes, BytesMut};
use postgres_protocol::IsNull;
use postgres_protocol::message::frontend;
use synapsedb_core::lsn::Lsn;
use synapsedb_pg::conn::{Connection, Reader, Writer};
use synapsedb_pg::wire::backend::ServerError;

/// One parameter of a statement.
#[derive(Clone, Copy)]
pub(crate) enum Parameter<'a> {
    /// SQL NULL.
    Null,
    /// The type's text form.
    Text(&'a [u8]),
    /// The type's binary form.
    Binary(&'a [u8]),
}

impl<'a> Parameter<'a> {
    /// A text, or NULL.
    pub(crate) fn optional(text: Option<&'a str>) -> Self {
        text.map_or(Self::Null, |text| Self::Text(text.as_bytes()))
    }
}

/// What a statement is, for reading its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// The guard, settings: the answer does not matter.
    Other,
    /// A row that must exist: when none is affected, a newer local row won or it is gone.
    Row,
    /// A query whose rows are wanted.
    Lookup,
    /// The n-th DDL statement of its transaction.
    Ddl(usize),
    /// A procedure that applies many transactions and answers how many of their rows changed nothing.
    Call,
}

/// What became of a transaction.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// Which one; the last of a run.
    pub(crate) commit_lsn: Lsn,
    /// How many transactions it stands for: more than one only for a run.
    pub(crate) transactions: u64,
    /// Whether a procedure applied it.
    pub(crate) run: bool,
    /// Why it failed; the ones after it then fail by the chain guard.
    pub(crate) error: Option<ServerError>,
    /// The DDL statement at which it failed, if it was one.
    pub(crate) failed_ddl: Option<usize>,
    /// Its rows that changed nothing here.
    pub(crate) ineffective: u64,
}

enum Expected {
    /// A statement that is prepared, by its name.
    Prepared(String),
    Statement(Purpose),
    Sync(Option<Sent>),
}

struct Sent {
    commit_lsn: Lsn,
    transactions: u64,
    run: bool,
}

/// A connection that applies transactions.
pub(crate) struct Session {
    reader: Reader,
    writer: Writer,
    expected: VecDeque<Expected>,
    outcomes: VecDeque<Outcome>,
    error: Option<ServerError>,
    failed_ddl: Option<usize>,
    ineffective: u64,
    rows: Vec<Vec<Option<Bytes>>>,
    lookup_done: bool,
    affected: u64,
    in_flight: usize,
    /// Statements whose preparation was skipped, since the transaction had failed before.
    unprepared: Vec<String>,
    /// The server has refused a statement and answers nothing before the next Sync.
    skips: bool,
}

/// What a statement answered.
pub(crate) struct Answer {
    /// Its rows, in text form.
    pub(crate) rows: Vec<Vec<Option<Bytes>>>,
    /// The rows that it affected.
    pub(crate) affected: u64,
}

impl Session {
    pub(crate) fn new(connection: Connection) -> Self {
        let (reader, writer) = connection.split();
        Self {
            reader,
            writer,
            expected: VecDeque::new(),
            outcomes: VecDeque::new(),
            error: None,
            failed_ddl: None,
            ineffective: 0,
            rows: Vec::new(),
            lookup_done: false,
            affected: 0,
            in_flight: 0,
            unprepared: Vec::new(),
            skips: false,
        }
    }

    /// Whether [`Session::outcome`] will have an outcome: one that is here already, or of a transaction in flight.
    pub(crate) fn busy(&self) -> bool {
        self.in_flight > 0 || !self.outcomes.is_empty()
    }

    /// Transactions that were sent and not yet answered.
    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Bytes that wait to be sent.
    pub(crate) fn unsent_bytes(&mut self) -> usize {
        self.writer.buffer().len()
    }

    /// Prepares a statement; its failure is the failure of the transaction in which it is first used.
    pub(crate) fn prepare(&mut self, name: &str, sql: &str) -> Result<()> {
        frontend::parse(name, sql, [], self.writer.buffer())?;
        match self.skips {
            true => self.unprepared.push(name.to_owned()),
            false => self.expected.push_back(Expected::Prepared(name.to_owned())),
        }
        Ok(())
    }

    /// Executes a prepared statement.
    pub(crate) fn execute(
        &mut self,
        name: &str,
        parameters: &[Parameter<'_>],
        purpose: Purpose,
    ) -> Result<()> {
        let formats = parameters.iter().map(|parameter| match parameter {
            Parameter::Null | Parameter::Text(_) => 0,
            Parameter::Binary(_) => 1,
        });
        let put = |parameter: &Parameter<'_>, buffer: &mut BytesMut| {
            Ok(match parameter {
                Parameter::Null => IsNull::Yes,
                Parameter::Text(bytes) | Parameter::Binary(bytes) => {
                    buffer.extend_from_slice(bytes);
                    IsNull::No
                }
            })
        };
        let buffer = self.writer.buffer();
        frontend::bind("", name, formats, parameters, put, [0], buffer)
            .map_err(|_| anyhow!("a row has more columns or bytes than the protocol can carry"))?;
        frontend::execute("", 0, buffer)?;
        if !self.skips {
            self.expected.push_back(Expected::Statement(purpose));
        }
        Ok(())
    }

    /// Ends a transaction: the server commits it unless one of its statements failed.
    pub(crate) fn sync(&mut self, commit_lsn: Lsn) {
        self.sent(Sent { commit_lsn, transactions: 1, run: false });
    }

    /// Ends a call that applies a run of transactions.
    pub(crate) fn sync_run(&mut self, last: Lsn, transactions: u64) {
        self.sent(Sent { commit_lsn: last, transactions, run: true });
    }

    fn sent(&mut self, sent: Sent) {
        frontend::sync(self.writer.buffer());
        self.skips = false;
        self.expected.push_back(Expected::Sync(Some(sent)));
        self.in_flight += 1;
    }

    /// Runs one statement by itself and waits for it: inside of the transaction that BEGIN opened, or as its own.
    ///
    /// # Errors
    /// The connection is lost. What the server refuses is the inner error.
    pub(crate) async fn run(
        &mut self,
        sql: &str,
        parameters: &[Parameter<'_>],
    ) -> Result<Result<Answer, ServerError>> {
        self.prepare("", sql)?;
        self.execute("", parameters, Purpose::Lookup)?;
        self.end_batch().await?;
        Ok(match self.error.take() {
            Some(error) => Err(error),
            None => Ok(Answer { rows: std::mem::take(&mut self.rows), affected: self.affected }),
        })
    }

    /// Runs a statement with the next one of [`Session::run`], which fails if this one does.
    pub(crate) fn queue(&mut self, sql: &str, parameters: &[Parameter<'_>]) -> Result<()> {
        self.prepare("", sql)?;
        self.execute("", parameters, Purpose::Other)
    }

    /// Ends whatever was sent and is not ended, and waits until the server is ready.
    async fn end_batch(&mut self) -> Result<()> {
        self.rows.clear();
        self.affected = 0;
        frontend::sync(self.writer.buffer());
        self.skips = false;
        self.expected.push_back(Expected::Sync(None));
        while !self.expected.is_empty() {
            // While the server answers it may wait for us to read: both directions at once.
            self.exchange().await?;
        }
        Ok(())
    }

    /// Gives up what is in flight: waits until the server is ready, and answers the statements that must be prepared
    /// again. Transactions that were committed meanwhile are found by asking for the progress.
    ///
    /// # Errors
    /// The connection is lost.
    pub(crate) async fn reset(&mut self) -> Result<Vec<String>> {
        // What was sent of an open transaction must not be committed by the Sync: this fails it, unless it has failed.
        self.prepare("", "select synapsedb.unmet()")?;
        self.execute("", &[], Purpose::Other)?;
        self.end_batch().await?;
        self.outcomes.clear();
        self.error = None;
        self.failed_ddl = None;
        self.ineffective = 0;
        Ok(std::mem::take(&mut self.unprepared))
    }

    /// Runs statements outside of any applied transaction and waits for them.
    pub(crate) async fn query(&mut self, sql: &str) -> Result<Vec<Vec<Option<Bytes>>>> {
        frontend::query(sql, self.writer.buffer())?;
        self.expected.push_back(Expected::Sync(None));
        self.rows.clear();
        self.writer.flush().await?;
        while !self.expected.is_empty() {
            let (tag, body) = self.reader.next().await?;
            self.answer(tag, body)?;
        }
        match self.error.take() {
            Some(error) => Err(SqlFailure(error).into()),
            None => Ok(std::mem::take(&mut self.rows)),
        }
    }

    /// Runs a prepared query inside of the open transaction and waits for its rows; `None` if the transaction failed.
    pub(crate) async fn lookup(
        &mut self,
        name: &str,
        parameters: &[Parameter<'_>],
    ) -> Result<Option<Vec<Vec<Option<Bytes>>>>> {
        self.rows.clear();
        self.lookup_done = false;
        self.execute(name, parameters, Purpose::Lookup)?;
        frontend::flush(self.writer.buffer());
        loop {
            self.writer.flush().await?;
            let (tag, body) = self.reader.next().await?;
            self.answer(tag, body)?;
            if self.failing() {
                return Ok(None);
            }
            if self.lookup_done {
                return Ok(Some(std::mem::take(&mut self.rows)));
            }
        }
    }

    /// Sends and receives until less than `bytes` wait to be sent.
    pub(crate) async fn drain_to(&mut self, bytes: usize) -> Result<()> {
        while self.writer.buffer().len() > bytes {
            self.exchange().await?;
        }
        Ok(())
    }

    /// The next outcome, sending whatever waits. Cancel safe. Never ends while nothing is in flight.
    pub(crate) async fn outcome(&mut self) -> Result<Outcome> {
        loop {
            if let Some(outcome) = self.outcomes.pop_front() {
                return Ok(outcome);
            }
            self.exchange().await?;
        }
    }

    /// An outcome that is already known.
    pub(crate) fn known_outcome(&mut self) -> Option<Outcome> {
        self.outcomes.pop_front()
    }

    /// Whether a transaction has failed already: sending more would be in vain.
    pub(crate) fn failing(&self) -> bool {
        self.error.is_some() || self.outcomes.iter().any(|outcome| outcome.error.is_some())
    }

    /// The failure of the open transaction, whose end was not sent yet.
    pub(crate) fn take_open_failure(&mut self) -> Option<(ServerError, Option<usize>)> {
        Some((self.error.take()?, self.failed_ddl.take()))
    }

    async fn exchange(&mut self) -> Result<()> {
        let unsent = !self.writer.buffer().is_empty();
        tokio::select! {
            biased;
            message = self.reader.next() => {
                let (tag, body) = message?;
                self.answer(tag, body)?;
                while self.reader.buffered() {
                    let (tag, body) = self.reader.next().await?;
                    self.answer(tag, body)?;
                }
            }
            sent = self.writer.flush(), if unsent => sent?,
        }
        Ok(())
    }

    fn answer(&mut self, tag: u8, body: Bytes) -> Result<()> {
        match tag {
            b'1' => {
                if matches!(self.expected.front(), Some(Expected::Prepared(_))) {
                    self.expected.pop_front();
                }
            }
            b'C' | b'I' => {
                if let Some(Expected::Statement(purpose)) = self.expected.front() {
                    match purpose {
                        Purpose::Row if affected_none(&body) => self.ineffective += 1,
                        Purpose::Lookup => {
                            self.lookup_done = true;
                            self.affected =
                                synapsedb_pg::wire::backend::command_rows(&body).unwrap_or(0);
                        }
                        Purpose::Row | Purpose::Other | Purpose::Ddl(_) | Purpose::Call => {}
                    }
                    self.expected.pop_front();
                }
            }
            b'D' => match self.expected.front() {
                Some(Expected::Statement(Purpose::Lookup) | Expected::Sync(None)) => {
                    self.rows.push(data_row(body)?);
                }
                Some(Expected::Statement(Purpose::Call)) => {
                    self.ineffective += text(&data_row(body)?, 0)?.parse::<u64>()?;
                }
                Some(Expected::Statement(_) | Expected::Prepared(_) | Expected::Sync(Some(_)))
                | None => {}
            },
            b'E' => {
                let error = ServerError::parse(&body);
                if let Some(Expected::Statement(Purpose::Ddl(index))) = self.expected.front() {
                    self.failed_ddl = Some(*index);
                }
                // The server skips everything up to the next Sync.
                loop {
                    match self.expected.front() {
                        Some(Expected::Statement(_)) => {}
                        Some(Expected::Prepared(name)) => self.unprepared.push(name.clone()),
                        Some(Expected::Sync(_)) | None => break,
                    }
                    self.expected.pop_front();
                }
                // What is sent from now on is skipped too, if that Sync was not sent yet.
                self.skips = self.expected.is_empty();
                self.error.get_or_insert(error);
            }
            b'Z' => self.ready()?,
            _ => {}
        }
        Ok(())
    }

    fn ready(&mut self) -> Result<()> {
        match self.expected.pop_front() {
            Some(Expected::Sync(Some(Sent { commit_lsn, transactions, run }))) => {
                let error = self.error.take();
                let (failed_ddl, ineffective) =
                    (self.failed_ddl.take(), std::mem::take(&mut self.ineffective));
                self.outcomes.push_back(Outcome {
                    commit_lsn,
                    transactions,
                    run,
                    error,
                    failed_ddl,
                    ineffective,
                });
                self.in_flight -= 1;
                Ok(())
            }
            Some(Expected::Sync(None)) => Ok(()),
            Some(Expected::Statement(_) | Expected::Prepared(_)) | None => {
                Err(anyhow!("the server is ready where an answer was expected"))
            }
        }
    }
}

/// An SQL error of the server, as an error of ours.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct SqlFailure(pub(crate) ServerError);

fn affected_none(command_tag: &[u8]) -> bool {
    synapsedb_pg::wire::backend::command_rows(command_tag) == Some(0)
}

fn data_row(mut body: Bytes) -> Result<Vec<Option<Bytes>>> {
    let short = || anyhow!("a row of the server is cut short");
    if body.remaining() < 2 {
        return Err(short());
    }
    let columns = body.get_u16();
    let mut row = Vec::with_capacity(usize::from(columns).min(1664));
    for _ in 0..columns {
        if body.remaining() < 4 {
            return Err(short());
        }
        row.push(match usize::try_from(body.get_i32()) {
            Err(_) => None,
            Ok(length) if body.remaining() < length => return Err(short()),
            Ok(length) => Some(body.split_to(length)),
        });
    }
    Ok(row)
}

/// A column of a row as text.
pub(crate) fn text(row: &[Option<Bytes>], column: usize) -> Result<&str> {
    let bytes =
        row.get(column).and_then(Option::as_ref).context("a column of the server is missing")?;
    Ok(std::str::from_utf8(bytes)?)
}
