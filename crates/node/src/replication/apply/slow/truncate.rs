//! A truncate removes what its writer had seen; rows that others wrote concurrently stay.

use synapsedb_core::change::{Change, Value};

use super::super::gate::{bound, sql_bound};
use super::super::lane::Lane;
use super::log::Conflict;
use super::statement;
use super::{Settled, Trouble};
use crate::replication::recent;

impl Lane<'_> {
    pub(super) async fn slow_truncate(
        &mut self,
        relations: &[u32],
        restart_identity: bool,
    ) -> Settled<()> {
        let mut plans = Vec::with_capacity(relations.len());
        for relation in relations {
            // A table of the internal schema was left out by the publisher.
            if self.current.contains_key(relation) {
                plans.push(self.plan(*relation).await?);
            }
        }
        let Some(only) = self.tables(&plans) else { return Ok(()) };
        self.ask(&format!("lock table only {only} in access exclusive mode"), &[]).await?;
        // Many rows may be looked at.
        self.limit_statements(0)?;
        for plan in &plans {
            let relations = relations.to_vec();
            let all = Change::Truncate { relations, cascade: false, restart_identity };
            self.note_slowly(*plan, &all);
        }
        self.await_decoded().await?;
        let header = self.header.clone().ok_or_else(|| Trouble::row("no transaction is open"))?;
        let writer = synapsedb_core::history::Writer {
            version: recent::version(self.source.origin, &header),
            vector: &header.vector,
        };
        if self.shared.recent.lock().has_seen_all(&writer) {
            let restart = if restart_identity { " restart identity" } else { "" };
            self.ask(&format!("truncate only {only}{restart}"), &[]).await?;
            return Ok(self.limit_statements(self.shared.config.row_timeout_ms)?);
        }
        let bound = {
            let history = self.shared.recent.lock();
            bound(&history, self.shared.identity.node, self.source.origin, &header)
        };
        for plan in plans {
            self.empty(plan, &sql_bound(bound)).await?;
        }
        Ok(self.limit_statements(self.shared.config.row_timeout_ms)?)
    }

    fn tables(&self, plans: &[usize]) -> Option<String> {
        let tables: Vec<_> = plans.iter().map(|plan| self.plans[*plan].table()).collect();
        (!tables.is_empty()).then(|| tables.join(", only "))
    }

    /// Deletes the rows of a locked table whose writers the truncate had seen.
    async fn empty(&mut self, plan: usize, bound: &str) -> Settled<()> {
        let table = self.plans[plan].table().to_owned();
        let seen = self.plans[plan].seen("$1::timestamptz");
        let parameters = [super::super::session::Parameter::Text(bound.as_bytes())];
        self.ask(&format!("delete from only {table} as t where {seen}"), &parameters).await?;
        if self.plans[plan].keys.is_none() {
            return Ok(());
        }
        let rest = statement::read(&self.plans[plan], "true");
        let rest = self.read_all(plan, &rest).await?;
        let mut survivors = 0;
        for row in rest {
            if row.concurrent {
                survivors += 1;
                let conflict = Conflict::new("truncate", "keep_local").local(Some(&row));
                let key: Vec<Value<'_>> = row.tuple();
                self.log(plan, conflict.remote(&key)).await?;
            } else {
                self.delete_here(plan, &row.tuple()).await?;
            }
        }
        tracing::info!(%table, survivors, "a truncate met rows that were written concurrently: they stay");
        Ok(())
    }
}
