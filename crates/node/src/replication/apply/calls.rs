//! Runs of transactions of one shape, each run applied by one CALL of a procedure that commits per transaction.
//!
//! A *shape* is the sequence of a transaction's tables, operations and present columns. What an application commits is
//! mostly a few shapes over and over; a shape that came often gets a procedure. Inside the server a transaction costs
//! neither a round trip nor a message, and its plans are kept. An error ends the call with everything before it
//! committed and nothing after it begun, so the order needs no other guard.
//!
//! A procedure decides nothing: a row that is not exactly as the writer had seen it ends its transaction with
//! `SY001`, a key that is taken with a unique violation, and the lane applies that transaction by itself.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use synapsedb_core::change::{Change, Value};
use synapsedb_core::delivery::Delivery;
use synapsedb_core::group::Group;
use synapsedb_core::history::Writer;
use synapsedb_core::lsn::Lsn;
use synapsedb_core::time::Timestamp;
use synapsedb_pg::pgoutput::{self, Message};
use synapsedb_pg::quote;

use super::array::Array;
use super::element::Element;
use super::gate::bound;
use super::lane::{Lane, Step};
use super::plan::{Plan, RowChange, Shape};
use super::session::{Parameter, Purpose};
use crate::replication::outcome;
use crate::replication::recent::{self, Side};
use crate::replication::spool::{Frame, Header};

/// How often a shape must have come before it gets a procedure.
const SEEN_MIN: u32 = 20;
/// Procedures of a lane; then all are dropped and made anew for the shapes that still come.
const PROCEDURES_MAX: usize = 64;
/// Statements of a transaction that a procedure repeats at most.
const STATEMENTS_MAX: usize = 8;
/// Transactions of a run: about two milliseconds of work.
const RUN_TRANSACTIONS_MAX: u64 = 256;
/// Bytes of values that a run holds at most.
const RUN_BYTES_MAX: usize = 256 << 10;
/// Calls in flight: one works, one waits, one is being filled.
const CALLS_IN_FLIGHT_MAX: usize = 3;

/// The statements of a transaction, by plan and shape.
type TransactionShape = Vec<(usize, Shape)>;

/// What is known of a shape.
enum Known {
    /// How often it came.
    Seen(u32),
    /// Its procedure.
    Procedure(Arc<Procedure>),
}

/// A procedure that applies runs of one shape.
struct Procedure {
    shape: TransactionShape,
    /// The prepared CALL.
    call: String,
    /// How the values are sent.
    elements: Vec<Element>,
}

/// The procedures of a lane, and the run that is being gathered.
#[derive(Default)]
pub(super) struct Calls {
    shapes: HashMap<TransactionShape, Known>,
    procedures: usize,
    run: Option<Run>,
}

/// A statement that a procedure can repeat.
struct Statement<'f> {
    plan: usize,
    change: Change<'f>,
}

impl<'f> Statement<'f> {
    /// Whether its [`Shape`] would be this one.
    fn has(&self, shape: &Shape) -> bool {
        match (&self.change, shape) {
            (Change::Insert { .. }, Shape::Insert) | (Change::Delete { .. }, Shape::Delete) => true,
            (Change::Update { new, .. }, Shape::Update(present)) => {
                let here = new.iter().map(|value| *value != Value::Unchanged);
                here.eq(present.iter().copied())
            }
            _ => false,
        }
    }
}

struct Run {
    procedure: Arc<Procedure>,
    lsns: Array,
    /// The commit times of the transactions with which the server commits: NULL for one that a group goes on behind.
    times: Array,
    bounds: Array,
    values: Vec<Array>,
    last: Lsn,
    last_time: Timestamp,
    transactions: u64,
    /// The last group.
    group: Group,
}

impl Run {
    fn new(procedure: Arc<Procedure>) -> Self {
        let values = procedure.elements.iter().map(|element| Array::new(*element)).collect();
        Self {
            procedure,
            lsns: Array::new(Element::Lsn),
            times: Array::new(Element::Timestamptz),
            bounds: Array::new(Element::Timestamptz),
            values,
            last: Lsn::ZERO,
            last_time: Timestamp::default(),
            transactions: 0,
            group: Group::default(),
        }
    }

    fn is_of(&self, statements: &[Statement<'_>]) -> bool {
        let shape = &self.procedure.shape;
        shape.len() == statements.len()
            && shape
                .iter()
                .zip(statements)
                .all(|((plan, shape), statement)| statement.plan == *plan && statement.has(shape))
    }

    /// Adds a transaction, to the last group if that has fewer than `group_max`; answers whether all its values could
    /// be. If not, nothing of it was added.
    fn push(
        &mut self,
        header: &Header,
        bound: Timestamp,
        (statements, plans): (&[Statement<'_>], &[Plan]),
        group_max: usize,
    ) -> Result<bool> {
        let mut arrays = self.values.iter_mut();
        let mut added = 0;
        let mut whole = true;
        for statement in statements {
            let Some(change) = RowChange::of(&statement.change) else { continue };
            for value in plans[statement.plan].values(&change) {
                let array =
                    arrays.next().context("a transaction has more values than its shape")?;
                whole = array.push(value)?;
                if !whole {
                    break;
                }
                added += 1;
            }
            if !whole {
                break;
            }
        }
        if !whole {
            self.values[..added].iter_mut().for_each(Array::pop);
            return Ok(false);
        }
        if self.group.takes(header.commit_time, group_max) {
            self.times.pop();
            self.times.push(Value::Null)?;
        } else {
            self.group = Group::of(header.commit_time);
        }
        self.lsns.push_binary(&header.commit_lsn.0.to_be_bytes());
        self.times.push_binary(&header.commit_time.0.to_be_bytes());
        self.bounds.push_binary(&bound.0.to_be_bytes());
        (self.last, self.last_time) = (header.commit_lsn, header.commit_time);
        self.transactions += 1;
        Ok(true)
    }

    fn is_full(&self) -> bool {
        let bytes: usize = self.values.iter().map(Array::len_bytes).sum();
        self.transactions >= RUN_TRANSACTIONS_MAX || bytes >= RUN_BYTES_MAX
    }
}

impl Lane<'_> {
    /// Takes a whole small transaction into a run if its shape has a procedure and nothing keeps it from being applied
    /// now; answers whether it was taken.
    pub(super) async fn take_into_run(&mut self, frame: &Frame) -> Step<bool> {
        let whole = self.procedures && frame.is_first() && frame.is_last() && self.open.is_none();
        let Some(header) = frame.header().filter(|_| whole && self.begun_any) else {
            return Ok(false);
        };
        // What it had seen may have changed a table just now.
        if !matches!(self.delivery(&header), Delivery::Deliver) || self.catalog_has_changed() {
            return Ok(false);
        }
        let Some(statements) = self.statements(frame)? else {
            return Ok(false);
        };
        if !self.calls.run.as_ref().is_some_and(|run| run.is_of(&statements)) {
            self.send_run().await?;
            let Some(procedure) = self.procedure(&statements).await? else {
                return Ok(false);
            };
            self.calls.run = Some(Run::new(procedure));
        }
        let Some(bound) = self.note_run(&header, &statements) else {
            return Ok(false);
        };
        let Some(run) = &mut self.calls.run else { return Ok(false) };
        let group_max = match header.commit_lsn <= self.alone_through {
            true => 1,
            false => self.shared.config.apply_group_max,
        };
        if !run.push(&header, bound, (&statements, &self.plans), group_max)? {
            return Ok(false);
        }
        if run.is_full() {
            self.send_run().await?;
        }
        Ok(true)
    }

    /// Notes what the statements delete and claim. Answers the transaction's bound; nothing when one of them must be
    /// looked at closely.
    fn note_run(&self, header: &Header, statements: &[Statement<'_>]) -> Option<Timestamp> {
        let version = recent::version(self.source.origin, header);
        let writer = Writer { version, vector: &header.vector };
        let mut history = self.shared.recent.lock();
        for Statement { plan, change } in statements {
            let Plan { keys, foreign, is_policy, .. } = &self.plans[*plan];
            if *is_policy {
                return None;
            }
            if let Some(keys) = keys
                && recent::note(&mut history, keys, change, &writer, Side::Remote)
            {
                return None;
            }
            let mut orphans = Vec::new();
            foreign.note(&mut history, change, &writer, &mut orphans);
            self.shared.look_for_orphans(orphans);
        }
        let bound = bound(&history, self.shared.identity.node, self.source.origin, header);
        recent::note_commit(&mut history, self.source.origin, header, false);
        Some(bound)
    }

    /// Sends the run that is being gathered, if any.
    pub(super) async fn send_run(&mut self) -> Step<()> {
        let Some(run) = self.calls.run.take().filter(|run| run.transactions > 0) else {
            return Ok(());
        };
        while self.session.in_flight() >= CALLS_IN_FLIGHT_MAX {
            let outcome = self.session.outcome().await?;
            self.settle(outcome)?;
        }
        let previous = self.own.0.to_be_bytes();
        let arrays: Vec<Vec<u8>> = [run.lsns, run.times, run.bounds]
            .into_iter()
            .chain(run.values)
            .map(Array::finish)
            .collect();
        let config = &self.shared.config;
        let patience = config.apply_group_lock_timeout_ms.min(config.lock_timeout_ms).to_string();
        let mut parameters =
            vec![Parameter::Binary(&previous), Parameter::Text(patience.as_bytes())];
        parameters.extend(arrays.iter().map(|array| Parameter::Binary(array)));
        self.session.execute(&run.procedure.call, &parameters, Purpose::Call)?;
        self.session.sync_run(run.last, run.transactions);
        self.shared.status.sent(self.source.origin, run.last, run.last_time);
        (self.sent, self.own) = (run.last, run.last);
        Ok(())
    }

    /// Statements that call procedures were prepared in vain: their shapes are met anew.
    pub(super) fn forget_calls(&mut self, statements: &[String]) {
        self.calls.run = None;
        self.calls.shapes.retain(|_, known| match known {
            Known::Procedure(procedure) => !statements.contains(&procedure.call),
            Known::Seen(_) => true,
        });
    }

    /// Forgets all procedures; those of the server are dropped when the lane's statements are prepared again.
    pub(super) fn forget_procedures(&mut self) {
        self.calls = Calls::default();
    }

    /// The statements of a transaction, if all its tables have plans and it does nothing unusual.
    fn statements<'f>(&self, frame: &'f Frame) -> Step<Option<Vec<Statement<'f>>>> {
        let mut statements = Vec::with_capacity(STATEMENTS_MAX);
        let mut plans: [(u32, usize); STATEMENTS_MAX] = [(0, 0); STATEMENTS_MAX];
        let mut told = 0;
        for raw in frame.message_slices() {
            if raw.first() == Some(&b'R') {
                let (Some(plan), Some(place)) = (self.known.get(raw), plans.get_mut(told)) else {
                    return Ok(None);
                };
                *place = (recent::relation_id(raw), *plan);
                told += 1;
                continue;
            }
            if outcome::mark(raw).is_some() {
                // It was noted when it came, and changes nothing: with it the transaction is of the same shape.
                continue;
            }
            let Ok(Message::Change(change)) = pgoutput::decode(raw) else { return Ok(None) };
            let (relation, width) = match &change {
                Change::Insert { relation, new } | Change::Update { relation, new, .. } => {
                    (*relation, Some(new.len()))
                }
                Change::Delete { relation, .. } => (*relation, None),
                Change::Truncate { .. } => return Ok(None),
            };
            let plan = plans[..told].iter().rev().find(|(known, _)| *known == relation);
            let Some((_, plan)) = plan.copied() else { return Ok(None) };
            let fits = width.is_none_or(|width| width == self.plans[plan].width());
            if !fits || statements.len() == STATEMENTS_MAX {
                return Ok(None);
            }
            statements.push(Statement { plan, change });
        }
        Ok((!statements.is_empty()).then_some(statements))
    }

    /// The procedure for a shape, made when the shape has come often enough. Nothing may be gathered.
    async fn procedure(&mut self, statements: &[Statement<'_>]) -> Step<Option<Arc<Procedure>>> {
        let shape = |statement: &Statement<'_>| {
            Some((statement.plan, RowChange::of(&statement.change)?.shape()))
        };
        let shape: TransactionShape = statements.iter().filter_map(shape).collect();
        match self.calls.shapes.get_mut(&shape) {
            Some(Known::Procedure(procedure)) => return Ok(Some(procedure.clone())),
            Some(Known::Seen(times)) if *times >= SEEN_MIN => {}
            Some(Known::Seen(times)) => {
                *times += 1;
                return Ok(None);
            }
            None => {
                self.calls.shapes.insert(shape, Known::Seen(1));
                return Ok(None);
            }
        }
        if self.calls.procedures >= PROCEDURES_MAX {
            self.forget_plans().await?;
            return Ok(None);
        }
        self.settle_all().await?;
        let name = format!("apply_{}_{}", self.source.origin, self.calls.procedures);
        let elements: Vec<_> =
            shape.iter().flat_map(|(plan, shape)| self.plans[*plan].elements(shape)).collect();
        self.session.query(&create_procedure(&name, &shape, &elements, &self.plans)).await?;
        let places =
            (6..).zip(&elements).map(|(place, element)| format!(", ${place}::{}[]", element.sql()));
        let call = format!(
            "call synapsedb.{name}($1::pg_lsn, $2::text, $3::pg_lsn[], $4::timestamptz[], \
             $5::timestamptz[]{}, 0)",
            places.collect::<String>()
        );
        self.session.prepare(&name, &call)?;
        self.calls.procedures += 1;
        let procedure = Arc::new(Procedure { shape: shape.clone(), call: name, elements });
        self.calls.shapes.insert(shape, Known::Procedure(procedure.clone()));
        Ok(Some(procedure))
    }
}

/// The procedure that repeats transactions of a shape, as SQL.
fn create_procedure(
    name: &str,
    shape: &TransactionShape,
    elements: &[Element],
    plans: &[Plan],
) -> String {
    let body = match shape.as_slice() {
        [(plan, Shape::Insert)] if !elements.is_empty() => {
            let statement = plans[*plan].group_in_procedure();
            format!(include_str!("../sql/apply_inserts.plpgsql"), statement = statement)
        }
        _ => repeat_each(shape, elements, plans),
    };
    let parameters = list(elements, |n, sql| format!(", v{n} {sql}[]"));
    format!(
        "create procedure synapsedb.{name}(previous pg_lsn, patience text, lsns pg_lsn[], times timestamptz[], \
         bounds timestamptz[]{parameters}, inout ineffective bigint) language plpgsql as {}",
        quote::literal(&body)
    )
}

/// The parts for all elements, which are numbered.
fn list(elements: &[Element], part: impl Fn(usize, &str) -> String) -> String {
    (1..).zip(elements).map(|(number, element)| part(number, element.sql())).collect()
}

/// The body that repeats one transaction after the other.
fn repeat_each(shape: &TransactionShape, elements: &[Element], plans: &[Plan]) -> String {
    let mut statements = String::new();
    let mut before = 0;
    let writes =
        shape.iter().any(|(plan, shape)| *shape == Shape::Insert || plans[*plan].has_versions());
    if !writes {
        // A transaction that changes nothing would not be recorded as applied.
        statements.push_str("perform pg_catalog.pg_current_xact_id(); ");
    }
    for (plan, shape) in shape {
        let plan = &plans[*plan];
        let _ = write!(statements, "{}; ", plan.in_procedure(shape, before));
        if *shape != Shape::Insert {
            statements.push_str(match plan.has_versions() {
                true => "if not found then raise exception using errcode = 'SY001'; end if; ",
                false => "if not found then ineffective := ineffective + 1; end if; ",
            });
        }
        before += plan.elements(shape).len();
    }
    format!(
        include_str!("../sql/apply_run.plpgsql"),
        variables = list(elements, |n, sql| format!(" c{n} {sql};")),
        arrays = list(elements, |n, _| format!(", v{n}")),
        names = list(elements, |n, _| format!(", c{n}")),
        statements = statements,
    )
}
