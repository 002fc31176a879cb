//! A column of an origin's relation and the local one of its name, which may have come later or be gone.

use crate::replication::keys;

/// A column of the local table.
#[derive(Clone, Debug, Default)]
pub(crate) struct LocalColumn {
    pub(crate) name: String,
    /// The type with its modifier, as SQL.
    pub(crate) type_name: String,
    /// `GENERATED ALWAYS AS IDENTITY`: cannot be updated.
    pub(crate) always_identity: bool,
    /// `GENERATED ALWAYS AS (…) STORED`: computed here.
    pub(crate) generated: bool,
    pub(crate) in_primary_key: bool,
    /// What it is in rows from before it was added, as text.
    pub(crate) missing: Option<String>,
}

/// The local table.
#[derive(Clone, Copy)]
pub(crate) struct Local<'t> {
    pub(crate) columns: &'t [LocalColumn],
    /// How many columns it has ever had.
    pub(crate) ever: i16,
    /// Columns that were dropped here lately: what is written to them elsewhere will be dropped there too.
    pub(crate) gone: &'t [String],
}

/// One column of the origin's relation, matched by name with the local one.
pub(super) struct Column {
    pub(super) local: LocalColumn,
    /// Whether it is one of those that name the row.
    pub(super) key: bool,
    /// It was dropped here.
    pub(super) gone: bool,
}

impl Column {
    /// One that was dropped here.
    pub(super) fn gone(name: &str) -> Self {
        let local = LocalColumn { name: name.to_owned(), ..LocalColumn::default() };
        Self { local, key: false, gone: true }
    }

    /// SQL for its value in the row `t`, as the stream has it.
    pub(super) fn text_sql(&self) -> String {
        if self.gone { "null::text".to_owned() } else { keys::text_sql(&self.local.name) }
    }

    /// Whether its values are written.
    pub(super) fn insertable(&self) -> bool {
        !self.local.generated && !self.gone
    }

    /// Whether its values may be written over others.
    pub(super) fn updatable(&self) -> bool {
        self.insertable() && !self.local.always_identity
    }
}
