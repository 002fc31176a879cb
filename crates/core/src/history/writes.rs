//! Writes on rows of tables with a policy of their own, which decides upon all of them together.

use std::collections::BTreeSet;

use super::{Digest, Entry, History, Writer};
use crate::policy::{Effect, Write};
use crate::version::{RowVersion, VersionVector};

/// A write on a row of a table with a policy of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownWrite {
    /// Who wrote and when.
    pub version: RowVersion,
    /// What the writer had seen of the others.
    pub vector: VersionVector,
    /// What was done.
    pub effect: Effect,
    /// The columns that were changed.
    pub changed: BTreeSet<u16>,
    /// Whether it was decided upon with what was known then, or is of this node: a write that becomes known after that,
    /// and had not seen it, does not count yet.
    pub settled: bool,
}

impl KnownWrite {
    /// A write that is forgotten: of what it had seen and changed nothing is known any more.
    pub fn forgotten(version: RowVersion, effect: Effect) -> Self {
        let (vector, changed) = (VersionVector::new(), BTreeSet::new());
        Self { version, vector, effect, changed, settled: true }
    }

    /// The write as policies look at it.
    pub fn as_write(&self) -> Write<'_> {
        let Self { version, vector, effect, changed, settled: _ } = self;
        Write { version: *version, seen: vector, effect: *effect, changed }
    }
}

impl History {
    /// A write on a row of a table with a policy of its own. Answers whether another one is known that it had not seen.
    /// What one transaction does to one row is one write.
    pub fn wrote(&mut self, row: Digest, write: KnownWrite) -> bool {
        let version = write.version;
        let writes = self.writes.entry(row).or_default();
        let unseen = writes.iter().any(|known| !write.as_write().covers(known.version));
        match writes.binary_search_by_key(&version, |known| known.version) {
            Ok(at) if writes[at].effect == Effect::Insert && write.effect == Effect::Update => {}
            Ok(at) => {
                let mut changed = std::mem::take(&mut writes[at].changed);
                changed.extend(&write.changed);
                writes[at] = KnownWrite { changed, ..write };
            }
            Err(at) => {
                writes.insert(at, write);
                let entries = self.entries.entry(version.origin).or_default();
                entries.push_back((version.lsn, Entry::Write(row)));
            }
        }
        unseen
    }

    /// A write on a row of a table with a policy of its own is decided upon with what is known now, or is still to be.
    pub fn set_settled(&mut self, row: Digest, version: RowVersion, settled: bool) {
        let writes = self.writes.get_mut(&row).into_iter().flatten();
        for write in writes.filter(|write| write.version == version) {
            write.settled = settled;
        }
    }

    /// Whether a write on a row of a table with a policy of its own was decided upon without this one, which had not
    /// seen it.
    pub fn missed(&self, row: Digest, writer: &Writer<'_>) -> bool {
        let mut writes = self.writes(row).iter();
        writes.any(|known| known.settled && !writer.has_seen(&known.version))
    }

    /// The writes on a row of a table with a policy of its own that are remembered, earliest first.
    pub fn writes(&self, row: Digest) -> &[KnownWrite] {
        self.writes.get(&row).map(Vec::as_slice).unwrap_or_default()
    }
}
