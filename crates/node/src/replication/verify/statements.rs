//! The SQL that compares one table, made of its columns.

use std::collections::BTreeMap;

use synapsedb_pg::quote;

use super::call::{Column, Described, Key, Range};
use crate::replication::keys;

/// What the statements of a table are made of.
pub(super) struct Statements {
    table: String,
    columns: Vec<Column>,
    key: Vec<Column>,
}

impl Statements {
    pub(super) fn new(described: &Described) -> Self {
        let table = quote::qualified(&described.table.schema, &described.table.name);
        Self { table, columns: described.columns.clone(), key: described.key.clone() }
    }

    /// How many columns the primary key has.
    pub(super) fn key_width(&self) -> usize {
        self.key.len()
    }

    /// A key with the names of its columns.
    pub(super) fn named_key(&self, key: &Key) -> BTreeMap<String, String> {
        self.key.iter().map(|column| column.name.clone()).zip(key.iter().cloned()).collect()
    }

    pub(super) fn digest(&self, range: &Range) -> String {
        self.fill(include_str!("../sql/verify_digest.sql"), range)
    }

    pub(super) fn next_bound(&self, range: &Range) -> String {
        self.fill(include_str!("../sql/verify_next_bound.sql"), range)
    }

    pub(super) fn bounds(&self, range: &Range) -> String {
        self.fill(include_str!("../sql/verify_bounds.sql"), range)
    }

    pub(super) fn rows(&self, range: &Range) -> String {
        self.fill(include_str!("../sql/verify_rows.sql"), range)
    }

    pub(super) fn look(&self) -> String {
        self.fill(include_str!("../sql/verify_look.sql"), &Range::default())
    }

    pub(super) fn fetch(&self) -> String {
        self.fill(include_str!("../sql/verify_fetch.sql"), &Range::default())
    }

    pub(super) fn take_out(&self) -> String {
        self.fill(include_str!("../sql/repair_take_out.sql"), &Range::default())
    }

    pub(super) fn put_in(&self) -> String {
        self.fill(include_str!("../sql/repair_put_in.sql"), &Range::default())
    }

    fn fill(&self, template: &str, range: &Range) -> String {
        let list = |parts: &mut dyn Iterator<Item = String>| parts.collect::<Vec<_>>().join(", ");
        let places = || 1..=self.key.len();
        let row = list(&mut self.columns.iter().map(column));
        let parts = [
            ("{table}", self.table.clone()),
            ("{hash}", format!("pg_catalog.hashtextextended(row({row})::text collate \"C\", 0)")),
            ("{keys}", list(&mut self.key.iter().map(column))),
            ("{key_texts}", format!("array[{}]::text[]", list(&mut self.key.iter().map(text)))),
            (
                "{value_texts}",
                format!("array[{}]::text[]", list(&mut self.columns.iter().map(text))),
            ),
            ("{range}", self.condition(range)),
            ("{key_arrays}", list(&mut places().map(|place| format!("${place}::text[]")))),
            ("{key_names}", list(&mut places().map(|place| format!("k{place}")))),
            ("{key_looked_up}", self.cast_key(|place| format!("k.k{place}"))),
            ("{key_given}", self.cast_key(|place| format!("($1::text[])[{place}]"))),
            ("{names}", list(&mut self.columns.iter().map(|column| quote::ident(&column.name)))),
            (
                "{values}",
                list(
                    &mut self
                        .columns
                        .iter()
                        .zip(1..)
                        .map(|(column, place)| format!("($1::text[])[{place}]::{}", column.r#type)),
                ),
            ),
        ];
        parts.into_iter().fold(template.to_owned(), |sql, (name, part)| sql.replace(name, &part))
    }

    /// The key's columns from text.
    fn cast_key(&self, text: impl Fn(usize) -> String) -> String {
        let cast =
            |(column, place): (&Column, usize)| format!("{}::{}", text(place), column.r#type);
        self.key.iter().zip(1..).map(cast).collect::<Vec<_>>().join(", ")
    }

    fn condition(&self, range: &Range) -> String {
        let bound = |operator: &str, key: &Key| {
            let keys: Vec<_> = self.key.iter().map(column).collect();
            let values = key.iter().zip(&self.key);
            let values: Vec<_> = values
                .map(|(text, key)| format!("{}::{}", quote::literal(text), key.r#type))
                .collect();
            format!("({}) {operator} ({})", keys.join(", "), values.join(", "))
        };
        let after = range.after.as_ref().map(|key| bound(">", key));
        let through = range.through.as_ref().map(|key| bound("<=", key));
        let parts: Vec<_> = after.into_iter().chain(through).collect();
        if parts.is_empty() { "true".to_owned() } else { parts.join(" and ") }
    }
}

fn column(column: &Column) -> String {
    format!("t.{}", quote::ident(&column.name))
}

fn text(column: &Column) -> String {
    keys::text_sql(&column.name)
}

#[cfg(test)]
mod tests {
    use super::super::call::TableName;
    use super::*;

    fn statements() -> Statements {
        let column = |name: &str, kind: &str| Column { name: name.into(), r#type: kind.into() };
        Statements::new(&Described {
            table: TableName { schema: "public".into(), name: "t\"s".into() },
            columns: vec![column("a", "integer"), column("b", "text")],
            key: vec![column("b", "text"), column("a", "integer")],
        })
    }

    #[test]
    fn a_range_compares_whole_keys_and_quotes_what_it_is_given() {
        let key = |b: &str, a: &str| Some(vec![b.to_owned(), a.to_owned()]);
        let range = Range { after: key("it's", "1"), through: key("z", "2") };
        assert_eq!(
            statements().condition(&range),
            "(t.\"b\", t.\"a\") > ('it''s'::text, '1'::integer) and \
             (t.\"b\", t.\"a\") <= ('z'::text, '2'::integer)"
        );
        assert_eq!(statements().condition(&Range::default()), "true");
    }

    #[test]
    fn no_placeholder_is_left() {
        let (made, range) = (statements(), Range::default());
        for sql in [
            made.digest(&range),
            made.next_bound(&range),
            made.bounds(&range),
            made.rows(&range),
            made.look(),
            made.fetch(),
            made.take_out(),
            made.put_in(),
        ] {
            assert!(!sql.contains('{') && sql.contains("\"public\".\"t\"\"s\""), "{sql}");
        }
    }
}
