//! The names of rows and of the unique values that they hold, as every node computes them from the stream.

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hasher as _};

use anyhow::{Context as _, Result};
use synapsedb_core::change::{Relation, Value};
use synapsedb_core::history::Digest;
use synapsedb_core::policy::{self, TablePolicy};
use synapsedb_pg::client::Client;
use synapsedb_pg::quote;

use super::Shared;

/// `numeric`, whose equal values may differ in trailing zeros.
const NUMERIC_OID: u32 = 1700;
/// `character(n)`, whose equal values may differ in trailing blanks.
const BPCHAR_OID: u32 = 1042;
/// `real` and `double precision`, which have two zeros.
const FLOAT_OIDS: [u32; 2] = [700, 701];

/// A unique index of a local table, of plain columns and without a predicate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct UniqueIndex {
    /// Its name here, as the server tells it when it is violated.
    pub(crate) name: String,
    /// Whether it is the primary key's.
    pub(crate) is_primary: bool,
    /// Whether it is checked at once and not at the end of a statement or transaction.
    pub(crate) is_immediate: bool,
    /// `NULLS NOT DISTINCT`.
    pub(crate) nulls_equal: bool,
    /// Its columns.
    pub(crate) columns: Vec<String>,
}

impl UniqueIndex {
    /// From a row of `table_keys.sql`.
    ///
    /// # Errors
    /// The columns are not the JSON that the query makes.
    pub(crate) fn new(name: &str, flags: [bool; 3], columns: &str) -> Result<Self> {
        let [is_primary, is_immediate, nulls_equal] = flags;
        let columns = serde_json::from_str(columns).context("read the columns of an index")?;
        Ok(Self { name: name.to_owned(), is_primary, is_immediate, nulls_equal, columns })
    }
}

/// SQL for the value of a column of the row `t` as its type's own text, which its input reads again and which the
/// stream has; a cast to text may be somebody's function. A composite is not NULL for one of its fields.
pub(crate) fn text_sql(column: &str) -> String {
    let name = format!("t.{}", quote::ident(column));
    format!("case pg_catalog.num_nulls({name}) when 0 then pg_catalog.format('%s', {name}) end")
}

/// What names and settles the rows of a local table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct LocalKeys {
    /// Its unique indexes.
    pub(crate) indexes: Vec<UniqueIndex>,
    /// What settles concurrent writes on it, if not last write wins alone: while its policy changes, all its writes are
    /// noted.
    pub(crate) policy: Option<TablePolicy>,
}

impl LocalKeys {
    /// The same of a table whose policy has changed lately, if it has.
    pub(crate) fn changing(mut self, changes: bool) -> Self {
        if changes {
            self.policy.get_or_insert_default();
        }
        self
    }

    /// With the policy as `synapsedb.policy` has it. A policy that this version does not know is none, loudly.
    pub(crate) fn new(indexes: Vec<UniqueIndex>, policy: Option<&str>) -> Self {
        let parsed = policy.map(str::parse::<TablePolicy>).transpose();
        let policy = parsed.unwrap_or_else(|error| {
            tracing::error!("synapsedb.policy: {error}; last_write_wins is used");
            None
        });
        Self { indexes, policy }
    }
}

/// The keys of a table of the server behind `client`.
///
/// # Errors
/// The server cannot be asked.
pub(crate) async fn load(
    shared: &Shared,
    client: &Client,
    schema: &str,
    table: &str,
) -> Result<LocalKeys> {
    let rows = client.query(include_str!("sql/table_keys.sql"), &[&schema, &table]).await?;
    let index = |row: &tokio_postgres::Row| {
        UniqueIndex::new(row.get(0), [row.get(1), row.get(2), row.get(3)], row.get(4))
    };
    let indexes = rows.iter().map(index).collect::<Result<_>>()?;
    let policy: Option<&str> = rows.first().and_then(|row| row.get(5));
    let history = shared.recent.lock();
    Ok(LocalKeys::new(indexes, policy)
        .changing(history.has_policy_changes(table_digest(schema, table))))
}

/// A column of a key: its place in the origin's tuples and its type there.
pub(crate) type Place = (usize, u32);

/// Names what is found by the values of some columns, such as a row by its primary key.
#[derive(Clone, Debug)]
pub(crate) struct Named {
    /// What it is, hashed.
    seed: [DefaultHasher; 2],
    places: Vec<Place>,
    nulls_equal: bool,
}

impl Named {
    /// By the values at these places; `what` and `names` tell it from everything else. NULL names nothing.
    pub(crate) fn new<'a>(
        what: &'a str,
        names: impl IntoIterator<Item = &'a str> + Clone,
        places: Vec<Place>,
    ) -> Self {
        let seed = [1u8, 2].map(|part| {
            let mut hasher = DefaultHasher::new();
            hasher.write_u8(part);
            for name in [what].into_iter().chain(names.clone()) {
                hasher.write(name.as_bytes());
                hasher.write_u8(0);
            }
            hasher
        });
        Self { seed, places, nulls_equal: false }
    }

    /// The name; `None` if the tuple lacks one of the values.
    pub(crate) fn digest(&self, tuple: &[Value<'_>]) -> Option<Digest> {
        let mut hashers = self.seed.clone();
        for &(place, type_oid) in &self.places {
            let text = match *tuple.get(place)? {
                Value::Text(text) => Some(canonical(text, type_oid)),
                Value::Null if self.nulls_equal => None,
                Value::Null | Value::Unchanged | Value::Binary(_) => return None,
            };
            for hasher in &mut hashers {
                hasher.write_u64(text.map_or(u64::MAX, |text| text.len() as u64));
                hasher.write(text.unwrap_or_default());
            }
        }
        let [high, low] = hashers.map(|hasher| u128::from(hasher.finish()));
        Some(Digest(high << 64 | low))
    }
}

/// What names a table.
pub(crate) fn table_digest(schema: &str, name: &str) -> Digest {
    Named::new("table", [schema, name], Vec::new()).digest(&[]).unwrap_or(Digest(0))
}

/// Where the keys of a table stand in the tuples of one origin.
#[derive(Clone, Debug)]
pub(crate) struct RowKeys {
    primary: Named,
    others: Vec<Named>,
    /// What settles concurrent writes, if not last write wins.
    policy: Option<TablePolicy>,
    /// The number of each of the origin's columns: its place among the names in their order.
    numbers: Vec<u16>,
    /// The columns of each unique index, by number.
    groups: Vec<BTreeSet<u16>>,
}

impl RowKeys {
    /// `None` for a table without a primary key, or whose key columns the origin does not have.
    pub(crate) fn new(relation: &Relation, local: &LocalKeys) -> Option<Self> {
        let LocalKeys { indexes, policy } = local;
        let mut names: Vec<&str> =
            relation.columns.iter().map(|column| column.name.as_str()).collect();
        names.sort_unstable();
        let number = |name: &str| {
            let at = names.binary_search(&name).ok()?;
            u16::try_from(at).ok()
        };
        let numbers = relation.columns.iter().filter_map(|column| number(&column.name)).collect();
        let group =
            |index: &UniqueIndex| index.columns.iter().filter_map(|name| number(name)).collect();
        let groups = indexes.iter().map(group).collect();
        let unique = |index: &UniqueIndex| unique(relation, index);
        let primary = indexes.iter().find(|index| index.is_primary).and_then(unique)?;
        let others = indexes.iter().filter(|index| !index.is_primary).filter_map(unique).collect();
        Some(Self { primary, others, policy: policy.clone(), numbers, groups })
    }

    /// What settles concurrent writes, if not last write wins.
    pub(crate) fn policy(&self) -> Option<&TablePolicy> {
        self.policy.as_ref()
    }

    /// The numbers of the columns that differ between two rows, with those that go together with them; of all columns
    /// without the old row.
    pub(crate) fn changed(&self, old: Option<&[Value<'_>]>, new: &[Value<'_>]) -> BTreeSet<u16> {
        let differs = |at: &usize| {
            let (Some(old), Some(new)) = (old.and_then(|old| old.get(*at)), new.get(*at)) else {
                return true;
            };
            *new != Value::Unchanged && old != new
        };
        let places = (0..self.numbers.len()).filter(differs);
        policy::with_groups(&places.map(|at| self.numbers[at]).collect(), &self.groups)
    }

    /// The place in the origin's tuples of the column with this number.
    pub(crate) fn place(&self, number: u16) -> Option<usize> {
        self.numbers.iter().position(|known| *known == number)
    }

    /// The name of the row; `None` if the tuple lacks a part of its key.
    pub(crate) fn row(&self, tuple: &[Value<'_>]) -> Option<Digest> {
        self.primary.digest(tuple)
    }

    /// Whether rows hold unique values beside their primary key.
    pub(crate) fn has_claims(&self) -> bool {
        !self.others.is_empty()
    }

    /// The names of the unique values that the row holds beside its primary key.
    pub(crate) fn claims(&self, tuple: &[Value<'_>]) -> impl Iterator<Item = Digest> {
        self.others.iter().filter_map(|unique| unique.digest(tuple))
    }
}

fn unique(relation: &Relation, index: &UniqueIndex) -> Option<Named> {
    let mut columns: Vec<&str> = index.columns.iter().map(String::as_str).collect();
    columns.sort_unstable();
    let mut places = Vec::with_capacity(columns.len());
    for name in &columns {
        let place = relation.columns.iter().position(|column| column.name == *name)?;
        places.push((place, relation.columns[place].type_oid));
    }
    let what = if index.is_primary { "row" } else { "unique value" };
    let names = [relation.schema.as_str(), &relation.name].into_iter().chain(columns.clone());
    Some(Named { nulls_equal: index.nulls_equal, ..Named::new(what, names, places) })
}

/// The one text of all equal values, where a type has several.
fn canonical(text: &[u8], type_oid: u32) -> &[u8] {
    match type_oid {
        NUMERIC_OID if text.contains(&b'.') => {
            let end = text.iter().rposition(|byte| *byte != b'0').map_or(0, |last| last + 1);
            text[..end].strip_suffix(b".").unwrap_or(&text[..end])
        }
        BPCHAR_OID => {
            let end = text.iter().rposition(|byte| *byte != b' ').map_or(0, |last| last + 1);
            &text[..end]
        }
        oid if FLOAT_OIDS.contains(&oid) && text == b"-0" => b"0",
        _ => text,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use synapsedb_core::change::{Column, ReplicaIdentity};

    fn relation(names: &[(&str, u32)]) -> Relation {
        let column = |(name, type_oid): &(&str, u32)| Column {
            name: (*name).into(),
            in_key: false,
            type_oid: *type_oid,
            type_modifier: -1,
        };
        Relation {
            id: 1,
            schema: "public".into(),
            name: "t".into(),
            identity: ReplicaIdentity::Default,
            columns: names.iter().map(column).collect(),
        }
    }

    fn index(name: &str, is_primary: bool, columns: &[&str]) -> UniqueIndex {
        UniqueIndex {
            name: name.into(),
            is_primary,
            is_immediate: true,
            nulls_equal: false,
            columns: columns.iter().map(|&column| column.to_owned()).collect(),
        }
    }

    #[test]
    fn columns_in_another_order_name_the_same_row() {
        let indexes = [index("pk", true, &["b", "a"]), index("u", false, &["c"])];
        let local = LocalKeys { indexes: indexes.into(), policy: None };
        let one = RowKeys::new(&relation(&[("a", 23), ("b", 25), ("c", 25)]), &local).unwrap();
        let other = RowKeys::new(&relation(&[("c", 25), ("b", 25), ("a", 23)]), &local).unwrap();
        let (a, b, c) = (Value::Text(b"1"), Value::Text(b"x"), Value::Text(b"y"));
        assert_eq!(one.row(&[a, b, c]), other.row(&[c, b, a]));
        assert_eq!(one.claims(&[a, b, c]).count(), 1);
        assert_eq!(one.claims(&[a, b, Value::Null]).count(), 0, "NULLs are distinct");
        assert_ne!(one.row(&[a, b, c]), one.row(&[b, a, c]));
        assert_eq!(one.row(&[a, Value::Unchanged, c]), None);
    }

    #[test]
    fn equal_values_have_one_name() {
        let same = |oid: u32, a: &'static [u8], b: &'static [u8]| {
            let local = LocalKeys { indexes: vec![index("pk", true, &["a"])], policy: None };
            let keys = RowKeys::new(&relation(&[("a", oid)]), &local).unwrap();
            keys.row(&[Value::Text(a)]) == keys.row(&[Value::Text(b)])
        };
        assert!(same(NUMERIC_OID, b"1.50", b"1.5") && same(NUMERIC_OID, b"1.00", b"1"));
        assert!(!same(NUMERIC_OID, b"10", b"1") && !same(25, b"1.50", b"1.5"));
        assert!(same(BPCHAR_OID, b"a  ", b"a") && same(701, b"-0", b"0"));
    }

    #[test]
    fn a_table_without_a_key_names_no_rows() {
        let local = LocalKeys { indexes: vec![index("u", false, &["a"])], policy: None };
        assert!(RowKeys::new(&relation(&[("a", 23)]), &local).is_none());
    }
}
