//! What is looked at in a table with a policy of its own.

use std::time::Duration;

use synapsedb_core::change::{Relation, Value};
use synapsedb_core::history::Digest;
use synapsedb_core::version::RowVersion;

use super::{Looked, Place, Recheck};
use crate::replication::keys::RowKeys;
use crate::replication::quarantine::retries::{Asked, LocalWrite};
use crate::replication::writers::Table;
use crate::replication::{Shared, other_members};

/// How long a lane may take to decide by a policy: it does so between two transactions.
const RULED_WITHIN: Duration = Duration::from_secs(1);

/// What says which write stays.
pub(super) enum By {
    /// The commit times: the table has no policy, or the write is from before it had one.
    Time,
    /// The policy of the table.
    Policy,
    /// The write is forgotten, since all have seen it: it was looked at before.
    Nothing,
}

pub(super) fn settled_by(
    shared: &Shared,
    relation: &Relation,
    table: &Table,
    recheck: &Recheck,
    rows: &[Option<&[Value<'_>]>],
) -> By {
    if table.keys.policy.is_none() {
        return By::Time;
    }
    let Some(keys) = RowKeys::new(relation, &table.keys) else { return By::Time };
    let history = shared.recent.lock();
    let mut rows = rows.iter().flatten().filter_map(|row| keys.row(row));
    let is_noted = |row: Digest| {
        let mut writes = history.writes(row).iter();
        writes.any(|write| write.version == recheck.version)
    };
    let RowVersion { origin, lsn, .. } = recheck.version;
    match (rows.any(is_noted), history.remembers(origin, lsn)) {
        (true, _) => By::Policy,
        (false, true) => By::Time,
        (false, false) => By::Nothing,
    }
}

/// A lane decides upon the local write by the policy: it has what that needs.
pub(super) async fn rule(shared: &Shared, recheck: &Recheck) -> Looked {
    if other_members(shared).is_empty() {
        // Nobody else has the row.
        return Looked::At;
    }
    let here = shared.identity.node;
    let asked = Asked::Local(LocalWrite {
        lsn: recheck.version.lsn,
        relation: recheck.relation.clone(),
        change: recheck.change.clone(),
        is_of_other: recheck.place != Place::Winner,
    });
    match tokio::time::timeout(RULED_WITHIN, shared.retries.ask(here, here, asked)).await {
        Ok(Ok(Ok(()))) => Looked::At,
        Ok(Ok(Err(reason))) => Looked::NotYet(reason),
        Ok(Err(_)) => Looked::NotYet("the applier was started anew meanwhile".to_owned()),
        Err(_) => Looked::NotYet("all appliers are busy".to_owned()),
    }
}
