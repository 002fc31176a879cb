//! What the local catalogs must have before rows can be written: plans of tables, and DDL repeated from the stream.

use anyhow::Result;
use bytes::Bytes;
use synapsedb_core::change::Relation;
use synapsedb_core::history::Seen;
use synapsedb_core::ids::NodeId;
use synapsedb_core::time::Timestamp;
use synapsedb_pg::pgoutput::Message;

use super::column::{Local, LocalColumn};
use super::lane::{Lane, Step};
use super::plan::Plan;
use super::scope::Scope;
use super::session::{Parameter, Purpose, text};
use super::slow::Trouble;
use crate::replication::ddl::{Ddl, PREFIX as DDL_PREFIX};
use crate::replication::foreign_keys::{Concern, ForeignKeys};
use crate::replication::keys::{LocalKeys, UniqueIndex, table_digest};

/// A column that was dropped here.
struct Dropped {
    name: String,
    seen: bool,
}

impl Lane<'_> {
    pub(super) async fn ddl(&mut self, ddl: &Ddl) -> Step<()> {
        let index = self.ddl_tags.len();
        self.ddl_tags.push(ddl.tag.clone());
        if ddl.creates.as_ref().is_some_and(|table| self.created_ahead.contains(table)) {
            return Ok(());
        }
        match ddl.statement() {
            Ok(Some(statement)) => self.run_ddl(ddl, &statement, index).await,
            Ok(None) => Ok(()),
            Err(error) => Err(self.refuse(format!("{}: {error:#}", ddl.tag))),
        }
    }

    async fn run_ddl(&mut self, ddl: &Ddl, statement: &str, index: usize) -> Step<()> {
        let run =
            [&ddl.role, &ddl.search_path, statement].map(|text| Parameter::Text(text.as_bytes()));
        // An index or a new column may take hours.
        self.limit_statements(0)?;
        self.session.execute("ddl", &run, Purpose::Ddl(index))?;
        // Waited for, since what follows may depend on the catalogs as they are now.
        if self.session.lookup("ddl_done", &[]).await?.is_none() {
            return Err(self.failure().await);
        }
        self.limit_statements(self.shared.config.row_timeout_ms)?;
        self.shared.catalog_changed();
        self.known.clear();
        self.current.values_mut().for_each(|(_, plan)| *plan = None);
        self.shared.metrics.applied_ddl.inc();
        Ok(())
    }

    /// How long a statement of the open transaction may take from now on; 0 for as long as it needs.
    pub(super) fn limit_statements(&mut self, limit_ms: u64) -> Step<()> {
        let limit = limit_ms.to_string();
        self.session.execute("limit", &[Parameter::Text(limit.as_bytes())], Purpose::Other)?;
        Ok(())
    }

    /// The plan for a relation that this transaction has named, made when it is first needed.
    pub(super) async fn plan(&mut self, relation: u32) -> Step<usize> {
        let Some((raw, plan)) = self.current.get(&relation) else {
            return Err(self.refuse(format!("the stream changes relation {relation} unnamed")));
        };
        if let Some(plan) = plan {
            return Ok(*plan);
        }
        let raw = raw.clone();
        let Message::Relation(described) = self.decode(&raw)? else {
            return Err(self.refuse("a spooled message of kind R is no relation".to_owned()));
        };
        let (mut columns, mut ever) = self.local_columns(&described).await?;
        if columns.is_empty() && self.create_ahead(&described).await? {
            (columns, ever) = self.local_columns(&described).await?;
        }
        if columns.is_empty() {
            return Err(self.refuse(format!(
                "there is no table {}.{} here: create it as at the origin, and the stream goes on",
                described.schema, described.name
            )));
        }
        let number = self.plans.len();
        let keys = self.local_keys(&described).await?;
        if keys.policy.is_some() && !self.shared.status.has_lost_slot() {
            // It may have been changed here just now: what had not seen that is settled by the one before.
            match self.await_decoded().await {
                Ok(()) => {}
                Err(Trouble::Stop(stop)) => return Err(stop),
                Err(Trouble::Row { reason, .. }) => return Err(self.refuse(reason)),
            }
        }
        let concerns = self.foreign_keys(&described).await?;
        let dropped = self.dropped_columns(&described).await?;
        let is_here = |name: &str| columns.iter().any(|found| found.name == name);
        // One that was made anew here is not the one of who has not seen the drop.
        let gone = dropped.iter().filter(|column| !column.seen || !is_here(&column.name));
        let gone: Vec<String> = gone.map(|column| column.name.clone()).collect();
        let local = Local { columns: &columns, ever, gone: &gone };
        let mut plan = Plan::new(number, &described, local, keys, self.check.clone())
            .map_err(|error| self.refuse(error.to_string()))?;
        plan.foreign = ForeignKeys::new(&described, &concerns);
        // What is settled by more than the row that is here is not applied ahead of its turn.
        if plan.keys.as_ref().is_some_and(|keys| keys.policy().is_none()) {
            plan.scope = self.scope(&described).await?;
        }
        self.plans.push(plan);
        // Else the next transaction may need another plan.
        if !dropped.iter().any(|column| is_here(&column.name)) {
            // A copy: a slice would keep its whole block of the spool in memory.
            self.known.insert(Bytes::copy_from_slice(&raw), number);
        }
        self.current.insert(relation, (raw, Some(number)));
        Ok(number)
    }

    /// What a statement of the lane's tells of a local table.
    async fn look_up(
        &mut self,
        statement: &str,
        relation: &Relation,
    ) -> Step<Vec<Vec<Option<Bytes>>>> {
        let parameters = [
            Parameter::Text(relation.schema.as_bytes()),
            Parameter::Text(relation.name.as_bytes()),
        ];
        match self.session.lookup(statement, &parameters).await? {
            Some(rows) => Ok(rows),
            None => Err(self.failure().await),
        }
    }

    /// The columns of the local table, and how many it has ever had.
    async fn local_columns(&mut self, relation: &Relation) -> Step<(Vec<LocalColumn>, i16)> {
        let rows = self.look_up("table", relation).await?;
        let columns = rows.iter().map(|row| {
            Ok(LocalColumn {
                name: text(row, 1)?.to_owned(),
                type_name: text(row, 2)?.to_owned(),
                always_identity: text(row, 3)? == "t",
                generated: text(row, 4)? == "t",
                in_primary_key: text(row, 5)? == "t",
                missing: row[6].as_ref().map(|_| text(row, 6).map(str::to_owned)).transpose()?,
            })
        });
        let columns = columns.collect::<Result<_>>()?;
        let ever = rows.first().map(|row| Ok::<_, anyhow::Error>(text(row, 7)?.parse()?));
        Ok((columns, ever.transpose()?.unwrap_or_default()))
    }

    /// The columns that were dropped here lately, and whether the open transaction had seen that.
    async fn dropped_columns(&mut self, relation: &Relation) -> Step<Vec<Dropped>> {
        let node = self.check.without_origin("r");
        let sql = include_str!("../sql/dropped_columns.sql").replace("{without_origin}", &node);
        self.session.prepare("", &sql)?;
        let rows = self.look_up("", relation).await?;
        let dropped = rows.iter().map(|row| {
            let name = text(row, 0)?.to_owned();
            Ok(Dropped { name, seen: self.has_seen_drop(row)? })
        });
        Ok(dropped.collect::<Result<_>>()?)
    }

    /// Whether the open transaction had seen the transaction that a row of `dropped_columns.sql` tells.
    fn has_seen_drop(&self, row: &[Option<Bytes>]) -> Result<bool> {
        let (Some(_), Some(header)) = (&row[3], &self.header) else { return Ok(true) };
        let (xid, roident, unix_us): (u32, u32, i64) =
            (text(row, 1)?.parse()?, text(row, 2)?.parse()?, text(row, 3)?.parse()?);
        let writer = match roident {
            0 => NodeId::new(text(row, 4)?.parse()?),
            roident => self.check.node(roident),
        };
        let here = self.shared.identity.node;
        let Some(writer) = writer.filter(|writer| *writer != self.source.origin) else {
            return Ok(true);
        };
        let xid = (writer == here && roident == 0).then_some(xid);
        let (vector, time) = (&header.vector, Timestamp::from_unix_us(unix_us));
        Ok(self.shared.recent.lock().seen(here, vector, writer, time, xid) == Seen::Covered)
    }

    async fn local_keys(&mut self, relation: &Relation) -> Step<LocalKeys> {
        let rows = self.look_up("keys", relation).await?;
        let indexes = rows.iter().map(|row| {
            let flags = [text(row, 1)? == "t", text(row, 2)? == "t", text(row, 3)? == "t"];
            UniqueIndex::new(text(row, 0)?, flags, text(row, 4)?)
        });
        let indexes = indexes.collect::<Result<_>>()?;
        let policy = rows.first().and_then(|row| text(row, 5).ok());
        let table = table_digest(&relation.schema, &relation.name);
        let history = self.shared.recent.lock();
        Ok(LocalKeys::new(indexes, policy).changing(history.has_policy_changes(table)))
    }

    async fn scope(&mut self, relation: &Relation) -> Step<Scope> {
        if self.shared.config.apply_workers == 0 {
            return Ok(Scope::default());
        }
        let rows = self.look_up("scope", relation).await?;
        Ok(match rows.first() {
            Some(row) => Scope::parse(text(row, 0)?),
            None => Scope::default(),
        })
    }

    async fn foreign_keys(&mut self, relation: &Relation) -> Step<Vec<Concern>> {
        let rows = self.look_up("foreign_keys", relation).await?;
        let concern =
            |row: &Vec<_>| Concern::new(text(row, 0)?, text(row, 1)? == "t", text(row, 2)? == "t");
        Ok(rows.iter().map(concern).collect::<Result<_>>()?)
    }

    /// `CREATE TABLE AS`: its rows come before the message that creates the table. The transaction is whole in the
    /// spool, so the message is found ahead.
    async fn create_ahead(&mut self, relation: &Relation) -> Step<bool> {
        let wanted = (relation.schema.clone(), relation.name.clone());
        let mut ahead = self.source.spool.reader_after(self.sent)?;
        while let Some(frame) = ahead.try_next()? {
            for message in frame.messages().filter(|message| message.first() == Some(&b'M')) {
                let Message::LogicalMessage { prefix: DDL_PREFIX, content, .. } =
                    self.decode(&message)?
                else {
                    continue;
                };
                let ddl = Ddl::parse(content).map_err(|error| self.unreadable(&error))?;
                if ddl.creates.as_ref() == Some(&wanted) {
                    self.run_ddl(&ddl, &ddl.query, 0).await?;
                    self.created_ahead.push(wanted);
                    return Ok(true);
                }
            }
            if frame.is_last() {
                break;
            }
        }
        Ok(false)
    }
}
