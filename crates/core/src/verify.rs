//! Whether the nodes hold the same rows: what the digests of a range say, and when a row that differs really does.
//!
//! A look at a row on several nodes is no snapshot: a change may be on its way. So a row is looked at again after every
//! node has applied what the others had committed at the look before, and it differs only if nothing has changed since.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::ids::NodeId;

/// How many rows a range has, and the sum of their hashes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Digest {
    /// Rows in the range.
    pub rows: u64,
    /// The sum of the rows' hashes, in decimals.
    pub sum: String,
}

/// What is to be done with a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RangeVerdict {
    /// All nodes hold the same rows.
    Equal,
    /// They differ, and there are too many rows to list: compare parts of it.
    Split,
    /// They differ in few rows: compare row by row.
    List,
}

/// Compares the digests of one range; a range of up to `listed_max` rows is listed.
pub fn judge_range(digests: &BTreeMap<NodeId, Digest>, listed_max: u64) -> RangeVerdict {
    let mut all = digests.values();
    let Some(first) = all.next() else { return RangeVerdict::Equal };
    if all.all(|digest| digest == first) {
        RangeVerdict::Equal
    } else if digests.values().all(|digest| digest.rows <= listed_max) {
        RangeVerdict::List
    } else {
        RangeVerdict::Split
    }
}

/// A row on one node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RowState {
    /// The hash of its values: the same on every node that holds the same row.
    pub content: String,
    /// Which of its versions it is, on that node: another one after every write.
    pub version: String,
}

/// A row on every node at one time; `None` where it is not.
pub type Look = BTreeMap<NodeId, Option<RowState>>;

/// How often is looked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// How many looks after the first must show the very same.
    pub confirmations: usize,
    /// After how many looks a row that keeps changing is left alone.
    pub looks_max: usize,
}

/// What is known of a row after some looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowVerdict {
    /// All nodes hold the same.
    Equal,
    /// Look again, after all nodes have applied what the others have committed until now.
    Again,
    /// The nodes differ, and nothing that could change that is on its way.
    Different,
    /// It changed at every look: it is being written all the time.
    InFlight,
}

fn content(look: &Look, node: NodeId) -> Option<&str> {
    look.get(&node)?.as_ref().map(|row| row.content.as_str())
}

/// Judges a row by the looks at it. Between two of them every node has applied everything that any of them had
/// committed at the former.
pub fn judge_row(looks: &[Look], patience: Patience) -> RowVerdict {
    let Some(last) = looks.last() else { return RowVerdict::Again };
    let mut contents = last.keys().map(|node| content(last, *node));
    let first = contents.next();
    if contents.all(|other| Some(other) == first) {
        return RowVerdict::Equal;
    }
    let since = looks.len().checked_sub(patience.confirmations + 1);
    if since.is_some_and(|since| looks[since..].iter().all(|look| look == last)) {
        return RowVerdict::Different;
    }
    if looks.len() < patience.looks_max.max(2) {
        return RowVerdict::Again;
    }
    // A node whose row stands still while another's moves on, and never meets it, does not receive those writes.
    let stands = |node: &NodeId| looks.iter().all(|look| look.get(node) == last.get(node));
    let never_met = |still: NodeId, moving: NodeId| {
        looks.iter().all(|look| content(look, still) != content(look, moving))
    };
    let left_behind = last
        .keys()
        .filter(|node| stands(node))
        .any(|still| last.keys().any(|moving| moving != still && never_met(*still, *moving)));
    if left_behind { RowVerdict::Different } else { RowVerdict::InFlight }
}

/// What is wrong with a row on one node, measured by what most nodes hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Fault {
    /// Most nodes have it, this one does not.
    Missing,
    /// Most nodes do not have it, this one does.
    Extra,
    /// It has other values than on most nodes.
    Different,
}

/// Which nodes differ from what most of them hold; among equals what the node with the lowest number holds counts.
pub fn faults(look: &Look) -> BTreeMap<NodeId, Fault> {
    let votes = |of: Option<&str>| look.keys().filter(|node| content(look, **node) == of).count();
    let mut right: Option<(usize, Option<&str>)> = None;
    for node in look.keys() {
        let held = content(look, *node);
        if right.is_none_or(|(most, _)| votes(held) > most) {
            right = Some((votes(held), held));
        }
    }
    let Some((_, right)) = right else { return BTreeMap::new() };
    let fault = |held: Option<&str>| match (right, held) {
        (Some(_), None) => Some(Fault::Missing),
        (None, Some(_)) => Some(Fault::Extra),
        (right, held) => (right != held).then_some(Fault::Different),
    };
    look.keys().filter_map(|node| Some((*node, fault(content(look, *node))?))).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const PATIENCE: Patience = Patience { confirmations: 2, looks_max: 6 };

    /// A look as text: one word per node, `-` for no row, else its content, and after a dot its version.
    fn look(text: &str) -> Look {
        let row = |word: &str| {
            let (content, version) = word.split_once('.').unwrap_or((word, ""));
            (word != "-").then(|| RowState { content: content.into(), version: version.into() })
        };
        let rows = text.split(' ').enumerate();
        rows.map(|(index, word)| {
            (NodeId::new(u16::try_from(index).unwrap() + 1).unwrap(), row(word))
        })
        .collect()
    }

    fn judge(looks: &[&str]) -> RowVerdict {
        judge_row(&looks.iter().map(|text| look(text)).collect::<Vec<_>>(), PATIENCE)
    }

    fn digests(digests: &[(u64, &str)]) -> BTreeMap<NodeId, Digest> {
        let digest = |(index, (rows, sum)): (usize, &(u64, &str))| {
            let node = NodeId::new(u16::try_from(index).unwrap() + 1).unwrap();
            (node, Digest { rows: *rows, sum: (*sum).to_owned() })
        };
        digests.iter().enumerate().map(digest).collect()
    }

    #[test]
    fn a_range_is_split_until_it_can_be_listed() {
        assert_eq!(judge_range(&digests(&[(9, "x"), (9, "x")]), 5), RangeVerdict::Equal);
        assert_eq!(judge_range(&digests(&[(9, "x"), (9, "y")]), 5), RangeVerdict::Split);
        assert_eq!(judge_range(&digests(&[(5, "x"), (6, "y")]), 5), RangeVerdict::Split);
        assert_eq!(judge_range(&digests(&[(5, "x"), (0, "0")]), 5), RangeVerdict::List);
    }

    #[test]
    fn a_row_that_arrives_is_no_difference() {
        assert_eq!(judge(&["a.1 - a.7"]), RowVerdict::Again);
        assert_eq!(judge(&["a.1 - a.7", "a.1 a.4 a.7"]), RowVerdict::Equal);
    }

    #[test]
    fn a_row_differs_when_nothing_changes_any_more() {
        assert_eq!(judge(&["a.1 b.2 a.3", "a.1 b.2 a.3"]), RowVerdict::Again);
        assert_eq!(judge(&["a.1 b.2 a.3"; 3]), RowVerdict::Different);
        // It arrived and was deleted again in between: what stands still must do so twice.
        assert_eq!(judge(&["a.1 - a.3", "a.1 - a.4", "a.1 - a.4"]), RowVerdict::Again);
    }

    #[test]
    fn equal_values_of_other_versions_are_equal() {
        assert_eq!(judge(&["a.1 a.2 a.3"]), RowVerdict::Equal);
        assert_eq!(judge(&["- - -"]), RowVerdict::Equal);
    }

    #[test]
    fn a_row_that_is_always_being_written_is_in_flight() {
        let looks = ["a.1 b.1", "c.2 b.2", "d.3 c.3", "e.4 d.4", "f.5 e.5", "g.6 f.6"];
        for shown in 1..looks.len() {
            assert_eq!(judge(&looks[..shown]), RowVerdict::Again);
        }
        assert_eq!(judge(&looks), RowVerdict::InFlight);
    }

    #[test]
    fn a_node_that_is_left_behind_differs_though_the_row_is_being_written() {
        assert_eq!(
            judge(&["a.1 -", "b.2 -", "c.3 -", "d.4 -", "e.5 -", "f.6 -"]),
            RowVerdict::Different
        );
        // It met the row once: then it has received it, and what is there now is on its way.
        assert_eq!(
            judge(&["a.1 a.9", "b.2 a.9", "c.3 a.9", "d.4 a.9", "e.5 a.9", "f.6 a.9"]),
            RowVerdict::InFlight
        );
    }

    #[test]
    fn what_most_nodes_hold_is_right() {
        let found = |text: &str| {
            faults(&look(text))
                .into_iter()
                .map(|(node, fault)| (node.get(), fault))
                .collect::<Vec<_>>()
        };
        assert_eq!(found("a.1 a.2 a.3"), []);
        assert_eq!(found("a.1 b.2 a.3"), [(2, Fault::Different)]);
        assert_eq!(found("a.1 a.2 -"), [(3, Fault::Missing)]);
        assert_eq!(found("a.1 - -"), [(1, Fault::Extra)]);
        assert_eq!(found("a.1 b.2"), [(2, Fault::Different)]);
        assert_eq!(found("b c c"), [(1, Fault::Different)]);
        assert_eq!(found("a b -"), [(2, Fault::Different), (3, Fault::Missing)]);
    }

    proptest::proptest! {
        #[test]
        fn a_verdict_comes_in_time(states in proptest::collection::vec((0u8..3, 0u8..3), 1..12)) {
            let looks: Vec<_> = states.iter().map(|(a, b)| look(&format!("{a}.{a} {b}.{b}"))).collect();
            let verdict = judge_row(&looks, PATIENCE);
            let equal = states.last().is_some_and(|(a, b)| a == b);
            proptest::prop_assert_eq!(verdict == RowVerdict::Equal, equal);
            proptest::prop_assert!(looks.len() < PATIENCE.looks_max || verdict != RowVerdict::Again);
        }
    }
}
