//! The names of rows and of the unique values that they hold, as every node computes them from the stream.

use std::hash::{DefaultHasher, Hasher as _};

use anyhow::{Context as _, Result};
use synapsedb_core::change::{Relation, Value};
use synapsedb_core::history::Digest;
use synapsedb_pg::client::Client;

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

/// The unique indexes of a table of the server behind `client`.
///
/// # Errors
/// The server cannot be asked.
pub(crate) async fn load(client: &Client, schema: &str, table: &str) -> Result<Vec<UniqueIndex>> {
    let rows = client.query(include_str!("sql/table_keys.sql"), &[&schema, &table]).await?;
    let index = |row: &tokio_postgres::Row| {
        UniqueIndex::new(row.get(0), [row.get(1), row.get(2), row.get(3)], row.get(4))
    };
    rows.iter().map(index).collect()
}

/// A column of a key: its place in the origin's tuples and its type there.
type Place = (usize, u32);

#[derive(Clone, Debug)]
struct Unique {
    /// Table and columns, hashed.
    seed: [DefaultHasher; 2],
    places: Vec<Place>,
    nulls_equal: bool,
}

/// Where the keys of a table stand in the tuples of one origin.
#[derive(Clone, Debug)]
pub(crate) struct RowKeys {
    primary: Unique,
    others: Vec<Unique>,
}

impl RowKeys {
    /// `None` for a table without a primary key, or whose key columns the origin does not have.
    pub(crate) fn new(relation: &Relation, indexes: &[UniqueIndex]) -> Option<Self> {
        let unique = |index: &UniqueIndex| unique(relation, index);
        let primary = indexes.iter().find(|index| index.is_primary).and_then(unique)?;
        let others = indexes.iter().filter(|index| !index.is_primary).filter_map(unique).collect();
        Some(Self { primary, others })
    }

    /// The name of the row; `None` if the tuple lacks a part of its key.
    pub(crate) fn row(&self, tuple: &[Value<'_>]) -> Option<Digest> {
        digest(&self.primary, tuple)
    }

    /// Whether rows hold unique values beside their primary key.
    pub(crate) fn has_claims(&self) -> bool {
        !self.others.is_empty()
    }

    /// The names of the unique values that the row holds beside its primary key.
    pub(crate) fn claims(&self, tuple: &[Value<'_>]) -> impl Iterator<Item = Digest> {
        self.others.iter().filter_map(|unique| digest(unique, tuple))
    }
}

fn unique(relation: &Relation, index: &UniqueIndex) -> Option<Unique> {
    let mut columns: Vec<&str> = index.columns.iter().map(String::as_str).collect();
    columns.sort_unstable();
    let mut places = Vec::with_capacity(columns.len());
    for name in &columns {
        let place = relation.columns.iter().position(|column| column.name == *name)?;
        places.push((place, relation.columns[place].type_oid));
    }
    let seed = [1u8, 2].map(|part| {
        let mut hasher = DefaultHasher::new();
        hasher.write_u8(part);
        hasher.write_u8(u8::from(index.is_primary));
        for name in [relation.schema.as_str(), &relation.name].into_iter().chain(columns.clone()) {
            hasher.write(name.as_bytes());
            hasher.write_u8(0);
        }
        hasher
    });
    Some(Unique { seed, places, nulls_equal: index.nulls_equal })
}

fn digest(unique: &Unique, tuple: &[Value<'_>]) -> Option<Digest> {
    let mut hashers = unique.seed.clone();
    for &(place, type_oid) in &unique.places {
        let text = match *tuple.get(place)? {
            Value::Text(text) => Some(canonical(text, type_oid)),
            Value::Null if unique.nulls_equal => None,
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
        let one = RowKeys::new(&relation(&[("a", 23), ("b", 25), ("c", 25)]), &indexes).unwrap();
        let other = RowKeys::new(&relation(&[("c", 25), ("b", 25), ("a", 23)]), &indexes).unwrap();
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
            let keys = RowKeys::new(&relation(&[("a", oid)]), &[index("pk", true, &["a"])]);
            let keys = keys.unwrap();
            keys.row(&[Value::Text(a)]) == keys.row(&[Value::Text(b)])
        };
        assert!(same(NUMERIC_OID, b"1.50", b"1.5") && same(NUMERIC_OID, b"1.00", b"1"));
        assert!(!same(NUMERIC_OID, b"10", b"1") && !same(25, b"1.50", b"1.5"));
        assert!(same(BPCHAR_OID, b"a  ", b"a") && same(701, b"-0", b"0"));
    }

    #[test]
    fn a_table_without_a_key_names_no_rows() {
        assert!(RowKeys::new(&relation(&[("a", 23)]), &[index("u", false, &["a"])]).is_none());
    }
}
