//! What a transaction writes that may be in the way of another: rows and unique values, whole tables, or anything.
//!
//! Two transactions of which neither writes what the other does may be applied at the same time, in whatever order
//! their statements come. A set says too much rather than too little: values are kept as the lower half of their
//! digests, and of more values than are allowed only the tables are kept.

use std::collections::BTreeMap;

use crate::history::Digest;

/// How much of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Extent {
    /// The rows and values that are told.
    Values,
    /// All of it.
    Whole,
}

/// What a transaction writes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WriteSet {
    everything: bool,
    tables: BTreeMap<Digest, Extent>,
    /// In order once the set is sealed.
    values: Vec<u64>,
    /// More values were told than are kept.
    is_over: bool,
}

impl WriteSet {
    /// What nobody can tell: it is in everybody's way.
    pub fn everything() -> Self {
        Self { everything: true, ..Self::default() }
    }

    /// A row, or a unique value, of a table; `max` values are kept.
    pub fn value(&mut self, table: Digest, value: Digest, max: usize) {
        self.tables.entry(table).or_insert(Extent::Values);
        if self.values.len() >= max {
            self.is_over = true;
            self.values = Vec::new();
        }
        if !self.is_over {
            self.values.push(lower_half(value));
        }
    }

    /// Any row of a table.
    pub fn whole(&mut self, table: Digest) {
        self.tables.insert(table, Extent::Whole);
    }

    /// Nothing more will be told: from now on it can be compared.
    pub fn seal(mut self) -> Self {
        if self.is_over {
            self.tables.values_mut().for_each(|extent| *extent = Extent::Whole);
        }
        self.values.sort_unstable();
        self.values.dedup();
        self
    }

    /// Whether more values were told than are kept.
    pub fn is_over(&self) -> bool {
        self.is_over
    }

    /// Whether it is in everybody's way.
    pub fn is_everything(&self) -> bool {
        self.everything
    }

    /// Whether both write the same of something, or may.
    pub fn meets(&self, other: &Self) -> bool {
        if self.everything || other.everything {
            return true;
        }
        let mut shared = self.tables.iter().filter_map(|(table, mine)| {
            let theirs = other.tables.get(table)?;
            Some((*mine).max(*theirs))
        });
        match shared.by_ref().max() {
            None => false,
            Some(Extent::Whole) => true,
            Some(Extent::Values) => {
                let (few, many) = match self.values.len() <= other.values.len() {
                    true => (&self.values, &other.values),
                    false => (&other.values, &self.values),
                };
                few.iter().any(|value| many.binary_search(value).is_ok())
            }
        }
    }
}

/// Two values whose halves meet by chance only wait for each other.
fn lower_half(digest: Digest) -> u64 {
    let [.., a, b, c, d, e, f, g, h] = digest.0.to_be_bytes();
    u64::from_be_bytes([a, b, c, d, e, f, g, h])
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX: usize = 3;

    fn of(values: &[(u128, u128)]) -> WriteSet {
        let mut set = WriteSet::default();
        values.iter().for_each(|(table, value)| set.value(Digest(*table), Digest(*value), MAX));
        set.seal()
    }

    fn whole(table: u128) -> WriteSet {
        let mut set = WriteSet::default();
        set.whole(Digest(table));
        set.seal()
    }

    #[test]
    fn sets_meet_where_they_write_the_same() {
        let (a, b) = (of(&[(1, 10), (1, 11)]), of(&[(1, 12), (2, 20)]));
        assert!(!a.meets(&b) && !b.meets(&a));
        assert!(a.meets(&of(&[(1, 11)])) && of(&[(1, 11)]).meets(&a));
        assert!(whole(1).meets(&a) && a.meets(&whole(1)) && !whole(2).meets(&a));
        assert!(b.meets(&whole(2)) && whole(1).meets(&whole(1)) && !whole(1).meets(&whole(2)));
        for set in [&a, &b, &whole(1), &WriteSet::default()] {
            assert!(WriteSet::everything().meets(set) && set.meets(&WriteSet::everything()));
        }
        assert!(!WriteSet::default().meets(&a), "what writes nothing is in nobody's way");
    }

    #[test]
    fn more_values_than_are_kept_are_their_tables() {
        let many = of(&[(1, 1), (1, 2), (1, 3), (2, 4)]);
        assert!(many.is_over() && !of(&[(1, 1), (1, 2), (1, 3)]).is_over());
        assert!(many.meets(&of(&[(1, 9)])) && many.meets(&of(&[(2, 9)])));
        assert!(!many.meets(&of(&[(3, 9)])));
    }
}
