//! The relations of the stream: which are replicated, what names their rows, and what local rows delete and claim.

use std::sync::atomic::Ordering;

use anyhow::{Context as _, Result, anyhow, bail};
use bytes::Bytes;
use synapsedb_core::change::Change;
use synapsedb_core::history::Writer as RowWriter;
use synapsedb_core::version::VersionVector;
use synapsedb_pg::pgoutput::{self, Message};

use super::{Open, Publisher};
use crate::replication::foreign_keys::{self, ForeignKeys};
use crate::replication::keys::{self, LocalKeys, RowKeys};
use crate::replication::policies;
use crate::replication::recent::{self, Side};
use crate::replication::recheck::{Place, Recheck};

/// What is to be done with the rows of a relation.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// They are replicated.
    Replicated,
    /// They belong to this node.
    Internal,
    /// They are DDL statements (`synapsedb.ddl`).
    Ddl,
}

pub(super) struct Relation {
    pub(super) raw: Bytes,
    pub(super) kind: Kind,
    /// Whether its rows are the tables' policies.
    pub(super) is_policy: bool,
    /// The number of the transaction that last repeated it: every spooled transaction explains itself.
    pub(super) told_in: u64,
    /// Where its keys stand, if it has a primary key here.
    pub(super) keys: Option<RowKeys>,
    /// Its foreign keys and those to it.
    pub(super) foreign: ForeignKeys,
    /// The number of the transaction that last began to write children here, and whether each must be noted.
    pub(super) begun_in: (u64, bool),
}

impl Publisher<'_> {
    /// Whether a table or a policy has changed since the relations' keys were asked for.
    pub(super) fn catalog_has_changed(&self) -> bool {
        self.shared.catalog.load(Ordering::Acquire) != self.catalog
    }

    /// After a change of a table or a policy the keys of the relations are asked for anew.
    pub(super) async fn notice_catalog(&mut self) -> Result<()> {
        let catalog = self.shared.catalog.load(Ordering::Acquire);
        // The WAL tells of a commit before anybody sees what it did: then it is asked again at the next transaction.
        if self.shared.own_commits.all_visible(self.shared).await? {
            self.catalog = catalog;
        }
        let client = self.shared.sql("publisher").await?;
        for relation in self.relations.values_mut().filter(|known| known.kind == Kind::Replicated) {
            let Message::Relation(described) = pgoutput::decode(&relation.raw)? else { continue };
            let local =
                keys::load(self.shared, &client, &described.schema, &described.name).await?;
            relation.keys = RowKeys::new(&described, &local);
            let concerns = foreign_keys::load(&client, &described.schema, &described.name).await?;
            relation.foreign = ForeignKeys::new(&described, &concerns);
        }
        Ok(())
    }

    pub(super) async fn relation(&mut self, body: &Bytes) -> Result<()> {
        let Message::Relation(relation) =
            pgoutput::decode(body).context("decode a relation of the stream")?
        else {
            bail!("the replication stream holds a message of kind R that is no relation");
        };
        let kind = match (relation.schema.as_str(), relation.name.as_str()) {
            ("synapsedb", "ddl") => Kind::Ddl,
            ("synapsedb", "probe" | "policy") => Kind::Replicated,
            ("synapsedb", _) => Kind::Internal,
            _ => Kind::Replicated,
        };
        let (schema, name) = (&relation.schema, &relation.name);
        let (local, concerns) = match kind {
            Kind::Replicated => {
                let client = self.shared.sql("publisher").await?;
                let local = keys::load(self.shared, &client, schema, name).await?;
                (local, foreign_keys::load(&client, schema, name).await?)
            }
            Kind::Internal | Kind::Ddl => (LocalKeys::default(), Vec::new()),
        };
        let keys = RowKeys::new(&relation, &local);
        let foreign = ForeignKeys::new(&relation, &concerns);
        let is_policy = policies::is_policy(&relation.schema, &relation.name);
        let (raw, begun_in) = (body.clone(), (0, false));
        let known = Relation { raw, kind, is_policy, told_in: 0, keys, foreign, begun_in };
        self.relations.insert(relation.id, known);
        Ok(())
    }

    pub(super) fn row(&mut self, body: &Bytes) -> Result<()> {
        let id = recent::relation_id(body);
        if self.relations.get(&id).is_some_and(|relation| relation.is_policy) {
            self.shared.catalog_changed();
        }
        match self.tell_relation(id)? {
            Kind::Replicated => {
                self.note(id, body)?;
                self.spool(body)
            }
            Kind::Ddl => self.ddl(body),
            Kind::Internal => Ok(()),
        }
    }

    /// Notes what a local row deletes and claims, for the transactions of other nodes that had not seen it.
    fn note(&mut self, id: u32, body: &Bytes) -> Result<()> {
        let Open::Local { header, .. } = &self.open else { return Ok(()) };
        let Some(relation) = self.relations.get_mut(&id) else { return Ok(()) };
        let version = recent::version(self.shared.identity.node, header);
        let writer = RowWriter { version, vector: &header.vector };
        if relation.foreign.has_parents() && relation.begun_in.0 != self.transactions {
            let mut history = self.shared.recent.lock();
            relation.begun_in = (self.transactions, relation.foreign.begin(&mut history, &writer));
        }
        if relation.is_policy {
            let decoded = (pgoutput::decode(&relation.raw)?, pgoutput::decode(body)?);
            if let (Message::Relation(described), Message::Change(change)) = decoded {
                policies::note(self.shared, &described, &change, version);
            }
        }
        let keys = relation.keys.as_ref().filter(|keys| recent::concerns(keys, body, Side::Local));
        let foreign =
            relation.begun_in == (self.transactions, true) || relation.foreign.may_leave(body);
        if keys.is_none() && !foreign {
            return Ok(());
        }
        let Message::Change(change) = pgoutput::decode(body).context("decode a local row")? else {
            return Ok(());
        };
        let mut history = self.shared.recent.lock();
        if keys.is_some_and(|keys| recent::note(&mut history, keys, &change, &writer, Side::Local))
        {
            let awaits = match keys {
                Some(keys) => recent::unseen_by(&mut history, keys, &change, &writer),
                None => VersionVector::new(),
            };
            let change = (relation.raw.clone(), body.clone());
            self.rechecks.push(Recheck::new(change, version, Place::Winner, awaits));
        }
        if foreign {
            let mut orphans = Vec::new();
            relation.foreign.note(&mut history, &change, &writer, &mut orphans);
            drop(history);
            self.shared.look_for_orphans(orphans);
        }
        Ok(())
    }

    /// Notes that a local truncate took all rows of a relation.
    pub(super) fn note_emptied(&self, id: u32, change: &Change<'_>) {
        let Open::Local { header, .. } = &self.open else { return };
        let Some(relation) = self.relations.get(&id) else { return };
        let version = recent::version(self.shared.identity.node, header);
        let writer = RowWriter { version, vector: &header.vector };
        let mut orphans = Vec::new();
        relation.foreign.note(&mut self.shared.recent.lock(), change, &writer, &mut orphans);
        self.shared.look_for_orphans(orphans);
    }

    /// Repeats a replicated relation in the transaction that uses it first; answers what its rows are.
    pub(super) fn tell_relation(&mut self, id: u32) -> Result<Kind> {
        if !matches!(self.open, Open::Local { .. }) {
            return Ok(Kind::Internal);
        }
        let relation = self
            .relations
            .get_mut(&id)
            .ok_or_else(|| anyhow!("the stream changes relation {id} without having named it"))?;
        let kind = relation.kind;
        if kind == Kind::Replicated && relation.told_in != self.transactions {
            relation.told_in = self.transactions;
            let raw = relation.raw.clone();
            self.spool(&raw)?;
        }
        Ok(kind)
    }
}
