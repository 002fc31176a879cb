//! Compares one table on all nodes: ranges by their hashes, rows one by one, and what differs again and again.

use std::collections::BTreeMap;
use std::time::Duration;

use synapsedb_core::ids::NodeId;
use synapsedb_core::verify::{
    Digest, Fault, Look, Patience, RangeVerdict, RowState, RowVerdict, faults, judge_range,
    judge_row,
};

use super::api::{DifferenceBody, TableBody};
use super::call::{
    Ask, Circle, Described, Fetched, Key, Range, SetOutcome, SetRow, TableName, Trouble,
};
use super::{Config, Job};

/// Into how many parts a range that differs is cut.
const PARTS: u64 = 16;
/// Rows that are looked at in one call.
const LOOKED_AT: usize = 500;
/// Rows that are set in one call; if they are too long for one, they are set one by one.
const SET_AT_ONCE: usize = 50;
/// How often a row is set that differs again afterwards.
const REPAIRS_MAX: usize = 3;
/// After a node was late so often, it is not waited for again.
const LATE_MAX: usize = 3;

/// A row that differed when it was looked at.
struct Suspect {
    key: Key,
    looks: Vec<Look>,
}

/// What became of suspects.
#[derive(Default)]
struct Settled {
    different: Vec<Suspect>,
    in_flight: u64,
    undecided: u64,
    undecided_reason: Option<String>,
}

/// What is known of a table that is not compared, or not yet.
pub(super) fn body(
    name: &TableName,
    schema_difference: Option<String>,
    error: Option<String>,
) -> TableBody {
    let (schema, name) = (name.schema.clone(), name.name.clone());
    TableBody { schema, name, schema_difference, error, ..TableBody::default() }
}

/// Compares a table, and repairs it if `from` says from where.
pub(super) async fn verify(
    circle: &Circle<'_>,
    job: &Job,
    described: &Described,
    from: Option<NodeId>,
) -> Result<TableBody, Trouble> {
    let comparison = Comparison {
        circle,
        job,
        config: &circle.shared.config.verify,
        table: &described.table,
        keyless: described.key.is_empty(),
        from,
        body: body(&described.table, None, None),
        suspects: Vec::new(),
        late: 0,
    };
    comparison.run().await
}

struct Comparison<'a> {
    circle: &'a Circle<'a>,
    job: &'a Job,
    config: &'a Config,
    table: &'a TableName,
    keyless: bool,
    from: Option<NodeId>,
    body: TableBody,
    suspects: Vec<Suspect>,
    /// How often a node did not apply in time what the others had committed.
    late: usize,
}

impl Comparison<'_> {
    async fn run(mut self) -> Result<TableBody, Trouble> {
        self.body.keyless = self.keyless;
        if self.keyless {
            self.whole().await?;
            return Ok(self.body);
        }
        let rows = self.config.rows_per_range.max(1);
        let mut range = Range::default();
        loop {
            let (table, rest) = (self.table.clone(), range.clone());
            let ask = Ask::NextBound { table, range: rest, rows };
            range.through = self.circle.ask(self.circle.here(), ask).await?;
            self.range(range.clone()).await?;
            let Some(last) = range.through.take() else { break };
            range.after = Some(last);
            tokio::time::sleep(Duration::from_millis(self.config.pause_ms)).await;
        }
        self.settle_suspects().await?;
        Ok(self.body)
    }

    /// A table without primary key: one suspect, the table.
    async fn whole(&mut self) -> Result<(), Trouble> {
        let look = self.look_at(&[Key::new()]).await?.pop().unwrap_or_default();
        self.suspects.push(Suspect { key: Key::new(), looks: vec![look] });
        self.body.ranges = 1;
        self.settle_suspects().await
    }

    fn counted(&mut self, rows: u64) {
        self.body.rows += rows;
        self.circle.shared.verify.metrics.rows.inc_by(rows);
        self.job.update(|job| job.progress.rows += rows);
    }

    /// Compares a range, cutting what differs until it can be listed.
    async fn range(&mut self, whole: Range) -> Result<(), Trouble> {
        let mut ranges = vec![whole];
        let mut first = true;
        while let Some(range) = ranges.pop() {
            let ask = Ask::Digest { table: self.table.clone(), range: range.clone() };
            let digests: BTreeMap<NodeId, Digest> = self.circle.ask_all(ask).await?;
            self.body.ranges += 1;
            self.circle.shared.verify.metrics.ranges.inc();
            if std::mem::take(&mut first) {
                self.counted(digests.values().map(|digest| digest.rows).max().unwrap_or(0));
            }
            match judge_range(&digests, self.config.rows_listed_max) {
                RangeVerdict::Equal => {}
                RangeVerdict::List => {
                    if !self.list(&range).await? {
                        ranges.extend(self.cut(&range, &digests).await?);
                    }
                }
                RangeVerdict::Split => ranges.extend(self.cut(&range, &digests).await?),
            }
            if self.suspects.len() >= self.config.suspects_max {
                self.settle_suspects().await?;
            }
        }
        Ok(())
    }

    /// Cuts a range at the keys of the node that has most rows in it.
    async fn cut(
        &self,
        range: &Range,
        digests: &BTreeMap<NodeId, Digest>,
    ) -> Result<Vec<Range>, Trouble> {
        let largest = digests.iter().max_by_key(|(_, digest)| digest.rows);
        let Some((node, digest)) = largest else { return Ok(Vec::new()) };
        // A range that could be listed and has grown since is cut into at least two.
        let rows = (digest.rows / PARTS).max(self.config.rows_listed_max / 2).max(1);
        let ask = Ask::Bounds { table: self.table.clone(), range: range.clone(), rows };
        let bounds: Vec<Key> = self.circle.ask(*node, ask).await?;
        let mut after = range.after.clone();
        let mut parts = Vec::new();
        for bound in bounds {
            parts.push(Range { after: after.replace(bound.clone()), through: Some(bound) });
        }
        if after != range.through || after.is_none() {
            parts.push(Range { after, through: range.through.clone() });
        }
        parts.reverse();
        Ok(parts)
    }

    /// Compares the rows of a range one by one; false if there are too many by now.
    async fn list(&mut self, range: &Range) -> Result<bool, Trouble> {
        let limit = self.config.rows_listed_max.saturating_mul(4);
        let ask = Ask::Rows { table: self.table.clone(), range: range.clone(), limit };
        let listed: BTreeMap<NodeId, Vec<(Key, RowState)>> = self.circle.ask_all(ask).await?;
        if listed.values().any(|rows| rows.len() as u64 >= limit) {
            return Ok(false);
        }
        let mut rows: BTreeMap<Key, Look> = BTreeMap::new();
        for (node, listed) in listed {
            for (key, state) in listed {
                rows.entry(key).or_default().insert(node, Some(state));
            }
        }
        for (key, mut look) in rows {
            for node in &self.circle.nodes {
                look.entry(*node).or_insert(None);
            }
            if !faults(&look).is_empty() {
                self.suspects.push(Suspect { key, looks: vec![look] });
            }
        }
        Ok(true)
    }

    /// Looks at rows on all nodes.
    async fn look_at(&self, keys: &[Key]) -> Result<Vec<Look>, Trouble> {
        let mut looks = vec![Look::new(); keys.len()];
        if self.keyless {
            let ask = Ask::Digest { table: self.table.clone(), range: Range::default() };
            for (node, digest) in self.circle.ask_all::<Digest>(ask).await? {
                let content = format!("{} rows, {}", digest.rows, digest.sum);
                let version = content.clone();
                looks[0].insert(node, Some(RowState { content, version }));
            }
            return Ok(looks);
        }
        for (keys, looks) in keys.chunks(LOOKED_AT).zip(looks.chunks_mut(LOOKED_AT)) {
            let ask = Ask::Look { table: self.table.clone(), keys: keys.to_vec() };
            for (node, rows) in self.circle.ask_all::<Vec<Option<RowState>>>(ask).await? {
                for (look, row) in looks.iter_mut().zip(rows) {
                    look.insert(node, row);
                }
            }
        }
        Ok(looks)
    }

    /// Looks at suspects again until each of them is judged.
    async fn settle(&mut self, mut suspects: Vec<Suspect>) -> Result<Settled, Trouble> {
        let patience =
            Patience { confirmations: self.config.confirmations, looks_max: self.config.looks_max };
        let mut settled = Settled::default();
        loop {
            let mut open = Vec::new();
            for suspect in suspects {
                match judge_row(&suspect.looks, patience) {
                    RowVerdict::Equal => {}
                    RowVerdict::Again => open.push(suspect),
                    RowVerdict::Different => settled.different.push(suspect),
                    RowVerdict::InFlight => settled.in_flight += 1,
                }
            }
            if open.is_empty() {
                return Ok(settled);
            }
            let late = match self.body.undecided_reason.clone().filter(|_| self.late >= LATE_MAX) {
                Some(known) => Some(known),
                None => self.circle.barrier().await?,
            };
            if let Some(reason) = late {
                self.late += 1;
                settled.undecided = open.len() as u64;
                settled.undecided_reason = Some(reason);
                return Ok(settled);
            }
            let keys: Vec<Key> = open.iter().map(|suspect| suspect.key.clone()).collect();
            for (suspect, look) in open.iter_mut().zip(self.look_at(&keys).await?) {
                suspect.looks.push(look);
            }
            suspects = open;
        }
    }

    /// Settles what is suspected until now, and repairs what differs if it is to be repaired.
    async fn settle_suspects(&mut self) -> Result<(), Trouble> {
        let suspects = std::mem::take(&mut self.suspects);
        if self.keyless {
            let rows =
                suspects.iter().flat_map(|suspect| suspect.looks.last()).flat_map(BTreeMap::values);
            let rows = rows.flatten().filter_map(|row| row.content.split(' ').next()?.parse().ok());
            self.counted(rows.max().unwrap_or(0));
        }
        let mut settled = self.settle(suspects).await?;
        if self.keyless && settled.in_flight > 0 {
            settled.undecided = std::mem::take(&mut settled.in_flight);
            settled.undecided_reason = Some(
                "it was written at every look, and without primary key rows cannot be told apart"
                    .to_owned(),
            );
        }
        self.add_undecided(&settled);
        let found = settled.different.len() as u64;
        self.body.different += found;
        self.circle.shared.verify.metrics.differences.inc_by(found);
        self.job.update(|job| job.progress.different += found);
        for suspect in &settled.different {
            self.name(suspect);
        }
        match self.from {
            Some(from) if !settled.different.is_empty() => self.mend(from, settled.different).await,
            Some(_) | None => {
                self.body.left += found;
                Ok(())
            }
        }
    }

    fn add_undecided(&mut self, settled: &Settled) {
        self.body.in_flight += settled.in_flight;
        self.body.undecided += settled.undecided;
        if settled.undecided_reason.is_some() {
            self.body.undecided_reason.clone_from(&settled.undecided_reason);
        }
    }

    /// Counts a difference, and names it if not too many are named already.
    fn name(&mut self, suspect: &Suspect) {
        let Some(look) = suspect.looks.last() else { return };
        let faults = faults(look);
        for (node, fault) in &faults {
            let counts = self.body.faults.entry(node.get()).or_default();
            match fault {
                Fault::Missing => counts.missing += 1,
                Fault::Extra => counts.extra += 1,
                Fault::Different => counts.different += 1,
            }
        }
        if self.body.differences.len() < self.config.differences_max {
            let hash = |row: &Option<RowState>| row.as_ref().map(|row| row.content.clone());
            self.body.differences.push(DifferenceBody {
                key: suspect.key.clone(),
                faults,
                hashes: look.iter().map(|(node, row)| (*node, hash(row))).collect(),
                not_repaired: None,
            });
        }
    }

    /// Sets rows as they are on `from` until they no longer differ.
    async fn mend(&mut self, from: NodeId, mut left: Vec<Suspect>) -> Result<(), Trouble> {
        let mut reasons = BTreeMap::new();
        if self.keyless {
            let reason =
                "it has no primary key: its rows cannot be told apart to set them".to_owned();
            reasons.insert(Key::new(), reason);
        } else {
            for _ in 0..REPAIRS_MAX {
                reasons = self.set(from, &left).await?;
                let again = |suspect: Suspect| Suspect { key: suspect.key, looks: Vec::new() };
                let settled = self.settle(left.into_iter().map(again).collect()).await?;
                self.add_undecided(&settled);
                left = settled.different;
                if left.is_empty() {
                    break;
                }
            }
        }
        self.body.left += left.len() as u64;
        for suspect in left {
            let named = self.body.differences.iter_mut().find(|named| named.key == suspect.key);
            if let Some(named) = named {
                let reason = reasons.remove(&suspect.key);
                named.not_repaired =
                    Some(reason.unwrap_or_else(|| "it differs again after it was set".to_owned()));
            }
        }
        Ok(())
    }

    /// Sets rows on every node where they are not as on `from`; answers what was refused.
    async fn set(
        &mut self,
        from: NodeId,
        suspects: &[Suspect],
    ) -> Result<BTreeMap<Key, String>, Trouble> {
        let mut refused = BTreeMap::new();
        for some in suspects.chunks(SET_AT_ONCE) {
            match self.set_some(from, some, &mut refused).await {
                Err(Trouble::Failed(_)) => {}
                done => {
                    done?;
                    continue;
                }
            }
            for one in some {
                match self.set_some(from, std::slice::from_ref(one), &mut refused).await {
                    Err(Trouble::Failed(reason)) => _ = refused.insert(one.key.clone(), reason),
                    done => done?,
                }
            }
        }
        Ok(refused)
    }

    async fn set_some(
        &mut self,
        from: NodeId,
        suspects: &[Suspect],
        refused: &mut BTreeMap<Key, String>,
    ) -> Result<(), Trouble> {
        let keys: Vec<Key> = suspects.iter().map(|suspect| suspect.key.clone()).collect();
        let ask = Ask::Fetch { table: self.table.clone(), keys: keys.clone() };
        let fetched: Vec<Option<Fetched>> = self.circle.ask(from, ask).await?;
        for node in self.circle.nodes.iter().filter(|node| **node != from) {
            let rows = suspects.iter().zip(&fetched).filter_map(|(suspect, row)| {
                let seen = suspect.looks.last()?.get(node)?.clone();
                let content = |row: &RowState| row.content.clone();
                let wanted = row.as_ref().map(|row| content(&row.state));
                (seen.as_ref().map(content) != wanted).then(|| SetRow {
                    key: suspect.key.clone(),
                    seen,
                    row: row.clone(),
                })
            });
            let rows: Vec<SetRow> = rows.collect();
            if rows.is_empty() {
                continue;
            }
            let keys: Vec<Key> = rows.iter().map(|row| row.key.clone()).collect();
            let ask = Ask::Set { table: self.table.clone(), from, rows };
            let outcomes: Vec<SetOutcome> = self.circle.ask(*node, ask).await?;
            for (key, outcome) in keys.into_iter().zip(outcomes) {
                match outcome {
                    SetOutcome::Done => self.body.repaired += 1,
                    SetOutcome::Moved => {}
                    SetOutcome::Refused(reason) => {
                        refused.insert(key, format!("node {node} refuses it: {reason}"));
                    }
                }
            }
        }
        Ok(())
    }
}
