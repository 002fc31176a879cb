//! Runs of transactions of one shape, each run applied by one CALL of a procedure that commits per transaction.
//!
//! A *shape* is the sequence of a transaction's tables, operations and present columns. What an application commits is
//! mostly a few shapes over and over; a shape that came often gets a procedure. Inside the server a transaction costs
//! neither a round trip nor a message, and its plans are kept. An error ends the call with everything before it
//! committed and nothing after it begun, so the order needs no other guard.

use std::collections::HashMap;
use std::fmt::Write as _;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use synapsedb_core::change::Change;
use synapsedb_core::delivery::Delivery;
use synapsedb_core::history::Writer;
use synapsedb_core::lsn::Lsn;
use synapsedb_core::time::Timestamp;
use synapsedb_pg::pgoutput::{self, Message};
use synapsedb_pg::quote;

use super::array::TextArray;
use super::lane::{Lane, Step, bound, sql_time};
use super::plan::{Plan, Shape};
use super::session::{Parameter, Purpose};
use crate::replication::recent::{self, Side};
use crate::replication::spool::{Frame, Header};

/// How often a shape must have come before it gets a procedure.
const SEEN_MIN: u32 = 20;
/// Procedures of a lane; then all are dropped and made anew for the shapes that still come.
const PROCEDURES_MAX: usize = 64;
/// Statements of a transaction that a procedure repeats at most.
const STATEMENTS_MAX: usize = 8;
/// Transactions of a run: about two milliseconds of work.
const RUN_TRANSACTIONS_MAX: u64 = 128;
/// Bytes of values that a run holds at most.
const RUN_BYTES_MAX: usize = 128 << 10;
/// Calls in flight: one works, one waits, one is being filled.
const CALLS_IN_FLIGHT_MAX: usize = 3;

/// The statements of a transaction, by plan and shape.
type TransactionShape = Vec<(usize, Shape)>;

/// What is known of a shape.
enum Known {
    /// How often it came.
    Seen(u32),
    /// The prepared CALL of its procedure.
    Procedure(String),
}

/// The procedures of a lane, and the run that is being gathered.
#[derive(Default)]
pub(super) struct Calls {
    shapes: HashMap<TransactionShape, Known>,
    procedures: usize,
    run: Option<Run>,
}

struct Run {
    shape: TransactionShape,
    call: String,
    lsns: TextArray,
    times: TextArray,
    bounds: TextArray,
    values: Vec<TextArray>,
    last: Lsn,
    last_time: Timestamp,
    transactions: u64,
}

impl Run {
    fn new(shape: TransactionShape, call: String, values: usize) -> Self {
        Self {
            shape,
            call,
            lsns: TextArray::new(),
            times: TextArray::new(),
            bounds: TextArray::new(),
            values: (0..values).map(|_| TextArray::new()).collect(),
            last: Lsn::ZERO,
            last_time: Timestamp::default(),
            transactions: 0,
        }
    }

    fn push(&mut self, header: &Header, bound: &str, values: &[Option<Bytes>]) -> Result<()> {
        self.lsns.push(Some(header.commit_lsn.to_string().as_bytes()))?;
        self.times.push(Some(sql_time(header.commit_time).as_bytes()))?;
        self.bounds.push(Some(bound.as_bytes()))?;
        for (array, value) in self.values.iter_mut().zip(values) {
            array.push(value.as_deref())?;
        }
        (self.last, self.last_time) = (header.commit_lsn, header.commit_time);
        self.transactions += 1;
        Ok(())
    }

    fn is_full(&self) -> bool {
        let bytes: usize = self.values.iter().map(TextArray::len_bytes).sum();
        self.transactions >= RUN_TRANSACTIONS_MAX || bytes >= RUN_BYTES_MAX
    }
}

/// A transaction that a procedure could repeat.
struct Candidate {
    shape: TransactionShape,
    values: Vec<Option<Bytes>>,
}

impl Lane<'_> {
    /// Takes a whole small transaction into a run if its shape has a procedure and nothing keeps it from being applied
    /// now; answers whether it was taken.
    pub(super) async fn take_into_run(&mut self, frame: &Frame) -> Step<bool> {
        let whole = self.procedures && frame.is_first() && frame.is_last() && self.open.is_none();
        let Some(header) = frame.header().filter(|_| whole && self.begun_any) else {
            return Ok(false);
        };
        if !matches!(self.delivery(&header), Delivery::Deliver) {
            return Ok(false);
        }
        let Some(candidate) = self.candidate(frame, &header)? else {
            return Ok(false);
        };
        let Some(call) = self.procedure(&candidate).await? else {
            return Ok(false);
        };
        if self.calls.run.as_ref().is_some_and(|run| run.shape != candidate.shape) {
            self.send_run().await?;
        }
        let Candidate { shape, values } = candidate;
        let run = self.calls.run.get_or_insert_with(|| Run::new(shape, call, values.len()));
        let bound = {
            let mut history = self.shared.recent.lock();
            let bound = bound(&history, self.shared.identity.node, self.source.origin, &header);
            recent::note_commit(&mut history, self.source.origin, &header);
            bound
        };
        run.push(&header, &bound, &values)?;
        if run.is_full() {
            self.send_run().await?;
        }
        Ok(true)
    }

    /// Sends the run that is being gathered, if any.
    pub(super) async fn send_run(&mut self) -> Step<()> {
        let Some(run) = self.calls.run.take() else {
            return Ok(());
        };
        while self.session.in_flight() >= CALLS_IN_FLIGHT_MAX {
            let outcome = self.session.outcome().await?;
            self.settle(outcome)?;
        }
        let previous = self.sent.to_string();
        let arrays: Vec<Vec<u8>> = [run.lsns, run.times, run.bounds]
            .into_iter()
            .chain(run.values)
            .map(TextArray::finish)
            .collect();
        let mut parameters = vec![Parameter::Text(previous.as_bytes())];
        parameters.extend(arrays.iter().map(|array| Parameter::Binary(array)));
        self.session.execute(&run.call, &parameters, Purpose::Call)?;
        self.session.sync_run(run.last, run.transactions);
        self.shared.status.sent(self.source.origin, run.last, run.last_time);
        self.sent = run.last;
        Ok(())
    }

    /// Statements that call procedures were prepared in vain: their shapes are met anew.
    pub(super) fn forget_calls(&mut self, statements: &[String]) {
        self.calls.run = None;
        self.calls.shapes.retain(|_, known| match known {
            Known::Procedure(call) => !statements.contains(call),
            Known::Seen(_) => true,
        });
    }

    /// Forgets all procedures; those of the server are dropped when the lane's statements are prepared again.
    pub(super) fn forget_procedures(&mut self) {
        self.calls = Calls::default();
    }

    /// The shape and the values of a transaction, if all its tables have plans and it does nothing unusual.
    fn candidate(&mut self, frame: &Frame, header: &Header) -> Step<Option<Candidate>> {
        let version = recent::version(self.source.origin, header);
        let writer = Writer { version, vector: &header.vector };
        let mut candidate = Candidate { shape: Vec::new(), values: Vec::new() };
        let mut plans: Vec<(u32, usize)> = Vec::new();
        for raw in frame.messages() {
            if raw.first() == Some(&b'R') {
                let Some(plan) = self.known.get(&raw) else { return Ok(None) };
                plans.push((crate::replication::recent::relation_id(&raw), *plan));
                continue;
            }
            let Message::Change(change) =
                pgoutput::decode(&raw).context("decode a spooled message")?
            else {
                return Ok(None);
            };
            let plan_of = |relation: u32| {
                plans.iter().rev().find(|(known, _)| *known == relation).map(|(_, plan)| *plan)
            };
            if candidate.shape.len() == STATEMENTS_MAX
                || !take(&mut candidate, &self.plans, plan_of, &raw, &change)
            {
                return Ok(None);
            }
            let keys = plan_of(change.relation()).and_then(|plan| self.plans[plan].keys.as_ref());
            let mut history = self.shared.recent.lock();
            if keys.is_some_and(|keys| {
                recent::note(&mut history, keys, &change, &writer, Side::Remote)
            }) {
                return Ok(None);
            }
        }
        Ok((!candidate.shape.is_empty()).then_some(candidate))
    }

    /// The prepared CALL for a shape; makes the procedure when the shape has come often enough.
    async fn procedure(&mut self, candidate: &Candidate) -> Step<Option<String>> {
        match self.calls.shapes.get_mut(&candidate.shape) {
            Some(Known::Procedure(call)) => return Ok(Some(call.clone())),
            Some(Known::Seen(times)) if *times >= SEEN_MIN => {}
            Some(Known::Seen(times)) => {
                *times += 1;
                return Ok(None);
            }
            None => {
                self.calls.shapes.insert(candidate.shape.clone(), Known::Seen(1));
                return Ok(None);
            }
        }
        self.send_run().await?;
        if self.calls.procedures >= PROCEDURES_MAX {
            self.forget_plans().await?;
            return Ok(None);
        }
        self.settle_all().await?;
        let name = format!("apply_{}_{}", self.source.origin, self.calls.procedures);
        let values = candidate.values.len();
        self.session.query(&create_procedure(&name, &candidate.shape, values, &self.plans)).await?;
        let places: String = (2..values + 5).map(|place| format!(", ${place}::text[]")).collect();
        let call = format!("call synapsedb.{name}($1::text{places}, 0)");
        self.session.prepare(&name, &call)?;
        self.calls.procedures += 1;
        self.calls.shapes.insert(candidate.shape.clone(), Known::Procedure(name.clone()));
        Ok(Some(name))
    }
}

/// Adds a change to a candidate; answers whether a procedure can repeat it.
fn take<'a>(
    candidate: &mut Candidate,
    plans: &[Plan],
    plan_of: impl Fn(u32) -> Option<usize>,
    raw: &Bytes,
    change: &Change<'a>,
) -> bool {
    // The bound has its own array.
    let bound: &[u8] = b"";
    let (relation, width) = match change {
        Change::Insert { relation, new } | Change::Update { relation, new, .. } => {
            (*relation, Some(new.len()))
        }
        Change::Delete { relation, .. } => (*relation, None),
        Change::Truncate { .. } => return false,
    };
    let Some(number) = plan_of(relation) else { return false };
    let plan = &plans[number];
    if width.is_some_and(|width| width != plan.width()) {
        return false;
    }
    let (shape, mut parameters) = match change {
        Change::Insert { new, .. } => (Shape::Insert, plan.insert_parameters(new)),
        Change::Update { old, new, .. } => plan.update_parameters(old.as_ref(), new, bound),
        Change::Delete { old, .. } => (Shape::Delete, plan.delete_parameters(old, bound)),
        Change::Truncate { .. } => return false,
    };
    if plan.has_versions() && shape != Shape::Insert {
        parameters.pop();
    }
    for parameter in parameters {
        candidate.values.push(match parameter {
            Parameter::Null => None,
            Parameter::Text(text) => Some(raw.slice_ref(text)),
            Parameter::Binary(_) => return false,
        });
    }
    candidate.shape.push((number, shape));
    true
}

/// The procedure that repeats transactions of a shape, as SQL.
fn create_procedure(name: &str, shape: &TransactionShape, values: usize, plans: &[Plan]) -> String {
    let list = |part: &dyn Fn(usize) -> String| (1..=values).map(part).collect::<String>();
    let mut statements = String::new();
    let (mut before, mut bounded) = (0, false);
    for (plan, shape) in shape {
        let sql = plans[*plan].in_procedure(shape, before);
        let missed = if plans[*plan].has_versions() && *shape != Shape::Insert {
            bounded = true;
            "raise exception 'the row is not as its writer saw it' using errcode = 'SY001'"
        } else {
            "ineffective := ineffective + 1"
        };
        let _ = write!(statements, "{sql}; if not found then {missed}; end if; ");
        before += plans[*plan].values_of(shape);
    }
    let body = format!(
        include_str!("../sql/apply_run.plpgsql"),
        bound = if bounded { ", u.b::timestamptz as b" } else { "" },
        fields = list(&|n| format!(", u.c{n}")),
        arrays = list(&|n| format!(", v{n}")),
        names = list(&|n| format!(", c{n}")),
        statements = statements,
    );
    let parameters = list(&|n| format!(", v{n} text[]"));
    format!(
        "create procedure synapsedb.{name}(previous text, lsns text[], times text[], bounds text[]{parameters}, \
         inout ineffective bigint) language plpgsql as {}",
        quote::literal(&body)
    )
}
