//! A row of a table with a policy of its own: decided upon from all writes on it that are remembered.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, anyhow};
use bytes::Bytes;
use synapsedb_core::change::{Change, Tuple, Value};
use synapsedb_core::history::{Digest, KnownWrite};
use synapsedb_core::lsn::Lsn;
use synapsedb_core::policy::{self, Decision, Effect, Policy, Ruling, TablePolicy};
use synapsedb_core::version::{RowVersion, VersionVector};
use synapsedb_pg::pgoutput::{self, Message};
use synapsedb_pg::quote;

use super::super::column::Column;
use super::super::lane::Lane;
use super::super::plan::{Plan, parameter};
use super::super::session::Parameter;
use super::log::Conflict;
use super::row::{LocalRow, filled};
use super::{Settled, Trouble};
use crate::replication::keys::{LocalKeys, RowKeys};
use crate::replication::parse_origin_name;
use crate::replication::recent::{old_values, relation_id};

/// A row before and after a write, in the order of the plan; `None` where there is none.
#[derive(Default)]
pub(super) struct Content {
    old: Option<Vec<Option<Bytes>>>,
    pub(super) new: Option<Vec<Option<Bytes>>>,
}

pub(super) fn tuple(values: &[Option<Bytes>]) -> Tuple<'_> {
    values.iter().map(|value| value.as_deref().map_or(Value::Null, Value::Text)).collect()
}

impl Lane<'_> {
    /// Decides upon a write by the table's policy and does what it says. The change is the row before, if the stream
    /// tells it, and the row after; nothing for a delete.
    pub(super) async fn rule(
        &mut self,
        plan: usize,
        row: Digest,
        key: &[Value<'_>],
        change: (Option<&[Value<'_>]>, Option<&[Value<'_>]>),
    ) -> Settled<()> {
        let (_, new) = change;
        let incoming = self.incoming()?;
        // One lane at a time, also where there is no row to be locked.
        let turn = (row.0 as i64).to_string();
        let turn = [Parameter::Text(turn.as_bytes())];
        self.session.queue(include_str!("../../sql/lock_row.sql"), &turn)?;
        let here = self.read_row(plan, key).await?;
        self.await_writes(row, here.as_ref()).await?;
        let effect = if new.is_some() { Effect::Insert } else { Effect::Delete };
        let (own, known) = self.known_writes(plan, row, (incoming, effect)).await?;
        // Another lane, on its fast path, may have committed a row between the two questions: it would be known, and
        // not meant.
        if here.is_none() && !known.is_empty() && self.read_row(plan, key).await?.is_some() {
            return Err(Trouble::unmet("the row has come just now"));
        }
        let others: Vec<_> = known.iter().map(|write| write.as_write()).collect();
        let met = others.iter().any(|other| own.as_write().is_concurrent_with(other));
        let Plan { keys, digest, .. } = &self.plans[plan];
        let now = keys.as_ref().and_then(RowKeys::policy).cloned().unwrap_or_default();
        let ruling = self.shared.recent.lock().rule(*digest, &now, &own.as_write(), &others);
        let (table, decision) = match ruling {
            _ if self.outlived(&others, here.as_ref(), incoming) => (now, Decision::Keep),
            Ruling::By(table, decision) => (table, decision),
            // From before the table had any policy.
            Ruling::Plain => {
                return match new {
                    Some(new) => self.put(plan, new, verb(own.effect)).await,
                    None => self.remove(plan, key).await,
                };
            }
        };
        let table = &table;
        let resolution = resolution(&decision, incoming);
        let told = new.unwrap_or(key);
        self.carry_out(decision, plan, table, (row, key), change, here.as_ref()).await?;
        if met {
            let conflict = Conflict::new(kind(&own, &known), resolution).remote(told);
            let latest = known.last().map(|write| write.version);
            let conflict = conflict.local(here.as_ref()).deleted(latest).policy(table.to_string());
            self.log(plan, conflict).await?;
        }
        Ok(())
    }

    /// Does what is decided upon a write.
    async fn carry_out(
        &mut self,
        decision: Decision,
        plan: usize,
        table: &TablePolicy,
        (row, key): (Digest, &[Value<'_>]),
        (old, new): (Option<&[Value<'_>]>, Option<&[Value<'_>]>),
        here: Option<&LocalRow>,
    ) -> Settled<()> {
        let incoming = self.incoming()?;
        match decision {
            Decision::Keep => {}
            Decision::Take(version) if version == incoming => match new {
                Some(new) => self.write_ruled(plan, new, here.is_some()).await?,
                None => self.remove_ruled(plan, key, here.is_some()).await?,
            },
            Decision::Take(version) => {
                let content = self.content(plan, row, version).await?;
                self.write_content(plan, key, content.new.as_deref(), here.is_some()).await?;
            }
            Decision::SetColumns(columns) => {
                if let (Some(new), true) = (new, here.is_some()) {
                    self.set_columns(plan, new, &columns).await?;
                }
            }
            Decision::TakeBut(columns) => {
                if let Some(new) = new {
                    self.take_but(plan, row, new, here, columns).await?;
                }
            }
            Decision::Add => {
                if let (Some(old), Some(new)) = (old, new) {
                    self.add(plan, table, key, old, new).await?;
                }
            }
            Decision::TakeAndAdd(updates) => {
                let Some(new) = new else { return Ok(()) };
                self.write_ruled(plan, new, here.is_some()).await?;
                for version in updates {
                    let content = self.content(plan, row, version).await?;
                    if let (Some(old), Some(changed)) = (&content.old, &content.new) {
                        self.add(plan, table, key, &tuple(old), &tuple(changed)).await?;
                    }
                }
            }
            Decision::Fold(versions) => {
                self.fold(plan, table, (row, key), &versions, here.is_some()).await?;
            }
        }
        Ok(())
    }

    /// Whether a change comes late, when what it met is forgotten, which left a later row: that stays, alike on both
    /// sides.
    fn outlived(
        &self,
        others: &[policy::Write<'_>],
        here: Option<&LocalRow>,
        incoming: RowVersion,
    ) -> bool {
        let later = here.and_then(|here| here.version).is_some_and(|version| version > incoming);
        self.is_forgotten() && others.is_empty() && later
    }

    /// The write of the open transaction on a row, and the others that are in the row here: applied, and not set aside.
    /// Of one that is forgotten only its `effect` is known.
    async fn known_writes(
        &mut self,
        plan: usize,
        row: Digest,
        (incoming, effect): (RowVersion, Effect),
    ) -> Settled<(KnownWrite, Vec<KnownWrite>)> {
        let writes = {
            let mut history = self.shared.recent.lock();
            history.set_settled(row, incoming, true);
            history.writes(row).to_vec()
        };
        let applied = self.applied_now().await?;
        let (mut own, mut known): (Vec<_>, Vec<_>) =
            writes.into_iter().partition(|write| write.version == incoming);
        // Another lane may have noted a write that it has not applied: it will count this one.
        let here_or_mine = [self.shared.identity.node, incoming.origin];
        known.retain(|KnownWrite { version, .. }| {
            here_or_mine.contains(&version.origin) || applied.get(version.origin) >= version.lsn
        });
        if !known.is_empty() {
            let aside = self.set_aside(plan, row).await?;
            let is_aside =
                |known: &KnownWrite| aside.contains(&(known.version.origin, known.version.lsn));
            known.retain(|known| !is_aside(known));
        }
        let forgotten = || self.is_forgotten().then(|| KnownWrite::forgotten(incoming, effect));
        let own = own.pop().or_else(forgotten);
        let own = own.ok_or_else(|| Trouble::row("the write is not remembered"))?;
        Ok((own, known))
    }

    /// What has been committed here of every origin at this moment: a row that is locked shows all of it.
    pub(super) async fn applied_now(&mut self) -> Settled<VersionVector> {
        let answer = self.ask(include_str!("../../sql/durable_progress.sql"), &[]).await?;
        let mut applied = VersionVector::new();
        for row in &answer.rows {
            let (Some(name), Some(lsn)) = (&row[0], &row[1]) else { continue };
            let name = std::str::from_utf8(name).unwrap_or_default();
            let lsn = std::str::from_utf8(lsn).unwrap_or_default().parse();
            if let (Some((node, _)), Ok(lsn)) = (parse_origin_name(name), lsn) {
                applied.advance(node, lsn);
            }
        }
        Ok(applied)
    }

    /// Writes the row as it came, but some columns as other writes left them: as they are here, if the row is here.
    async fn take_but(
        &mut self,
        plan: usize,
        row: Digest,
        new: &[Value<'_>],
        here: Option<&LocalRow>,
        columns: BTreeMap<u16, RowVersion>,
    ) -> Settled<()> {
        let mut contents = Vec::new();
        for (number, version) in columns {
            let content = match here {
                Some(_) => None,
                None => Some(self.content(plan, row, version).await?),
            };
            contents.push((self.place(plan, number), content));
        }
        let mut merged = new.to_vec();
        for (place, content) in &contents {
            let from: Option<Tuple<'_>> = match content {
                Some(content) => content.new.as_deref().map(tuple),
                None => here.map(LocalRow::tuple),
            };
            if let (Some(place), Some(from)) = (place, from) {
                merged[*place] = from[*place];
            }
        }
        self.write_ruled(plan, &merged, here.is_some()).await
    }

    fn place(&self, plan: usize, number: u16) -> Option<usize> {
        self.plans[plan].keys.as_ref().and_then(|keys| keys.place(number))
    }

    /// Sets columns of the row that is here.
    async fn set_columns(
        &mut self,
        plan: usize,
        new: &[Value<'_>],
        columns: &BTreeSet<u16>,
    ) -> Settled<()> {
        let mut sets = Vec::new();
        let mut parameters = Vec::new();
        for number in columns {
            let Some(place) = self.place(plan, *number) else { continue };
            let column = &self.plans[plan].columns[place];
            if !column.updatable() || new[place] == Value::Unchanged {
                continue;
            }
            let local = &column.local;
            parameters.push(parameter(new[place]));
            let name = quote::ident(&local.name);
            sets.push(format!("{name} = ${}::{}", parameters.len(), local.type_name));
        }
        self.set(plan, new, &sets, parameters).await
    }

    /// Adds new − old to each delta column of the row that is here.
    async fn add(
        &mut self,
        plan: usize,
        table: &TablePolicy,
        key: &[Value<'_>],
        old: &[Value<'_>],
        new: &[Value<'_>],
    ) -> Settled<()> {
        let mut sets = Vec::new();
        let mut parameters = Vec::new();
        for (place, column) in self.plans[plan].columns.iter().enumerate() {
            let local = &column.local;
            let (Value::Text(_), Value::Text(_)) = (old[place], new[place]) else { continue };
            let counts = table.delta.contains(&local.name) && !column.gone;
            if !counts || old[place] == new[place] {
                continue;
            }
            parameters.push(parameter(new[place]));
            parameters.push(parameter(old[place]));
            let (name, at, kind) = (quote::ident(&local.name), parameters.len(), &local.type_name);
            sets.push(format!("{name} = t.{name} + (${}::{kind} - ${at}::{kind})", at - 1));
        }
        self.set(plan, key, &sets, parameters).await
    }

    /// Updates the row with this key by what the clauses say, if there are any; the key follows their parameters.
    async fn set<'v>(
        &mut self,
        plan: usize,
        key: &[Value<'v>],
        sets: &[String],
        mut parameters: Vec<Parameter<'v>>,
    ) -> Settled<()> {
        if sets.is_empty() {
            return Ok(());
        }
        let described = &self.plans[plan];
        let found = described.found(parameters.len() + 1);
        let sql =
            format!("update {} as t set {} where {found}", described.table(), sets.join(", "));
        described.push_key(key, &mut parameters);
        self.ask(&sql, &parameters).await?;
        Ok(())
    }

    async fn write_content(
        &mut self,
        plan: usize,
        key: &[Value<'_>],
        content: Option<&[Option<Bytes>]>,
        was_here: bool,
    ) -> Settled<()> {
        match content {
            Some(values) => self.write_ruled(plan, &tuple(values), was_here).await,
            None => self.remove_ruled(plan, key, was_here).await,
        }
    }

    /// The user's function over the rows of the heads.
    async fn fold(
        &mut self,
        plan: usize,
        table: &TablePolicy,
        (row, key): (Digest, &[Value<'_>]),
        versions: &[RowVersion],
        was_here: bool,
    ) -> Settled<()> {
        let Policy::Function(function) = &table.policy else { return Ok(()) };
        let (schema, name) = (self.plans[plan].schema.clone(), self.plans[plan].name.clone());
        let relation = quote::qualified(&schema, &name);
        let mut folded: Option<String> = None;
        for (index, version) in versions.iter().enumerate() {
            let content = self.content(plan, row, *version).await?;
            let json = content
                .new
                .as_deref()
                .map(|values| super::statement::json(&self.plans[plan], &tuple(values), false));
            if index == 0 {
                folded = json;
                continue;
            }
            let texts = [Some(function.as_str()), Some(&relation), folded.as_deref()];
            let mut parameters: Vec<Parameter<'_>> = texts.map(Parameter::optional).into();
            parameters.push(Parameter::optional(json.as_deref()));
            parameters.push(Parameter::optional(Some(&schema)));
            parameters.push(Parameter::optional(Some(&name)));
            let sql = include_str!("../../sql/call_merge.sql");
            let answer = self.ask(sql, &parameters).await?;
            let merged = answer.rows.first().and_then(|row| row.first().cloned().flatten());
            folded = merged
                .map(|merged| String::from_utf8(merged.to_vec()))
                .transpose()
                .map_err(|_| Trouble::row("the merge function made no text"))?;
        }
        let Some(folded) = folded else { return self.remove_ruled(plan, key, was_here).await };
        let values = self.columns_of(plan, &folded).await?;
        self.write_ruled(plan, &filled(&tuple(&values), key), was_here).await
    }

    /// The columns of a JSON object as texts, in the order of the plan.
    async fn columns_of(&mut self, plan: usize, json: &str) -> Settled<Vec<Option<Bytes>>> {
        let described = &self.plans[plan];
        let columns = described.columns.iter().map(Column::text_sql);
        let columns = columns.collect::<Vec<_>>().join(", ");
        let sql = format!(
            "select {columns} from pg_catalog.jsonb_populate_record(null::{}, $1::jsonb) t",
            described.table()
        );
        let answer = self.ask(&sql, &[Parameter::Text(json.as_bytes())]).await?;
        answer.rows.into_iter().next().ok_or_else(|| Trouble::row("the merge made no row"))
    }

    /// What a remembered write left of a row, as its origin's spool has it.
    pub(super) async fn content(
        &mut self,
        plan: usize,
        row: Digest,
        version: RowVersion,
    ) -> Settled<Content> {
        let gone = || {
            Trouble::Stop(super::super::lane::Stop::Broken(anyhow!(
                "transaction {} of node {} is not in the spool, though it is remembered",
                version.lsn,
                version.origin
            )))
        };
        let (_, spool) = self.shared.spools.get(version.origin).ok_or_else(gone)?;
        let before = Lsn(version.lsn.0.saturating_sub(1));
        let mut reader = spool.reader_after(before).map_err(anyhow::Error::from)?;
        let mut content = Content::default();
        let mut relations: Vec<(u32, RowKeys, Vec<Option<usize>>)> = Vec::new();
        while let Some(frame) = reader.try_next().map_err(anyhow::Error::from)? {
            if frame.commit_lsn().is_some_and(|lsn| lsn != version.lsn) {
                return Err(gone());
            }
            for raw in frame.messages() {
                match pgoutput::decode(&raw).context("decode a spooled message")? {
                    Message::Relation(relation) => {
                        let described = &self.plans[plan];
                        if (&relation.schema, &relation.name)
                            != (&described.schema, &described.name)
                        {
                            continue;
                        }
                        let local = LocalKeys { indexes: described.indexes.clone(), policy: None };
                        let places = described.columns.iter().map(|column| {
                            relation.columns.iter().position(|c| c.name == column.local.name)
                        });
                        let places = places.collect();
                        if let Some(keys) = RowKeys::new(&relation, &local) {
                            relations.push((relation_id(&raw), keys, places));
                        }
                    }
                    Message::Change(change) => {
                        let known = relations.iter().rev();
                        let mut known = known.filter(|(id, _, _)| *id == change.relation());
                        if let Some((_, keys, places)) = known.next() {
                            note_content(&mut content, &change, keys, places, row);
                        }
                    }
                    _ => {}
                }
            }
            if frame.is_last() {
                return Ok(content);
            }
        }
        Err(gone())
    }
}

/// What a write does, as a word of the log.
fn verb(effect: Effect) -> &'static str {
    match effect {
        Effect::Insert => "insert",
        Effect::Update | Effect::Delete => "update",
    }
}

fn note_content(
    content: &mut Content,
    change: &Change<'_>,
    keys: &RowKeys,
    places: &[Option<usize>],
    row: Digest,
) {
    let values = |tuple: &[Value<'_>]| -> Vec<Option<Bytes>> {
        let value = |place: &Option<usize>| match place.and_then(|place| tuple.get(place)) {
            Some(Value::Text(text)) => Some(Bytes::copy_from_slice(text)),
            Some(Value::Null | Value::Unchanged | Value::Binary(_)) | None => None,
        };
        places.iter().map(value).collect()
    };
    match change {
        Change::Insert { new, .. } if keys.row(new) == Some(row) => content.new = Some(values(new)),
        Change::Update { old, new, .. } => {
            let before = old.as_ref().map(old_values);
            if before.and_then(|before| keys.row(before)) == Some(row) && content.old.is_none() {
                content.old = before.map(values);
            }
            if keys.row(new) == Some(row) {
                let whole = before.map_or_else(|| new.clone(), |before| filled(new, before));
                content.new = Some(values(&whole));
            } else if before.and_then(|before| keys.row(before)) == Some(row) {
                content.new = None;
            }
        }
        Change::Delete { old, .. } if keys.row(old_values(old)) == Some(row) => content.new = None,
        Change::Insert { .. } | Change::Delete { .. } | Change::Truncate { .. } => {}
    }
}

fn resolution(decision: &Decision, incoming: RowVersion) -> &'static str {
    match decision {
        Decision::Keep => "keep_local",
        Decision::Take(version) if *version == incoming => "apply_remote",
        Decision::Take(_) => "keep_other",
        Decision::SetColumns(_) | Decision::TakeBut(_) | Decision::Fold(_) => "merged",
        Decision::Add | Decision::TakeAndAdd(_) => "added",
    }
}

fn kind(own: &KnownWrite, known: &[KnownWrite]) -> &'static str {
    let other =
        known.iter().rev().find(|other| own.as_write().is_concurrent_with(&other.as_write()));
    match (own.effect, other.map(|other| other.effect)) {
        (Effect::Insert, Some(Effect::Delete)) => "insert_delete",
        (Effect::Insert, _) => "insert_insert",
        (Effect::Update, Some(Effect::Delete)) => "update_delete",
        (Effect::Update, _) => "update_update",
        (Effect::Delete, Some(Effect::Delete)) => "delete_delete",
        (Effect::Delete, _) => "delete_update",
    }
}
