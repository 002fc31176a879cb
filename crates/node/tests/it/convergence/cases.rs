//! The cases of the convergence matrix: what is written while nobody hears of anybody, and what must be left.

/// Concurrent writes, in the order of their commits. `$k` is another number in every round.
pub(super) struct Case {
    pub(super) name: &'static str,
    /// What all nodes have before.
    pub(super) before: &'static str,
    /// On which node what is written while nobody hears of anybody.
    pub(super) writes: &'static [(u16, &'static str)],
    /// What is asked in the end.
    pub(super) query: &'static str,
    /// The rows of it, with `$k` as in the rest.
    pub(super) expected: &'static [&'static str],
}

/// The tables of the cases.
pub(super) const TABLES: &str = "
    create table met (id int primary key, v text);
    create table met_unique (id int primary key, u int unique, w int unique, v text);
    create table met_large (id int primary key, v text, large text);
    alter table met_large alter large set storage external;
    alter table met_large replica identity full;
    create table met_toast (id int primary key, v text, large text);
    alter table met_toast alter large set storage external;
    create table met_parent (id int primary key);
    create table met_child (id int primary key, parent int references met_parent (id));
    create table met_round (node int, round int, primary key (node, round))";

const MET: &str = "select id - $k, v from met where id between $k and $k + 9 order by id";

const UNIQUE: &str =
    "select id - $k, u - $k, w - $k, v from met_unique where id between $k and $k + 9 order by id";

pub(super) const CASES: &[Case] = &[
    Case {
        name: "D1: two updates, the one of the higher node later",
        before: "insert into met values ($k, 'old')",
        writes: &[
            (1, "update met set v = 'one' where id = $k"),
            (2, "update met set v = 'two' where id = $k"),
        ],
        query: MET,
        expected: &["0|two"],
    },
    Case {
        name: "D1: two updates, the one of the lower node later",
        before: "insert into met values ($k, 'old')",
        writes: &[
            (2, "update met set v = 'two' where id = $k"),
            (1, "update met set v = 'one' where id = $k"),
        ],
        query: MET,
        expected: &["0|one"],
    },
    Case {
        name: "D1: three updates",
        before: "insert into met values ($k, 'old')",
        writes: &[
            (3, "update met set v = 'three' where id = $k"),
            (1, "update met set v = 'one' where id = $k"),
            (2, "update met set v = 'two' where id = $k"),
        ],
        query: MET,
        expected: &["0|two"],
    },
    Case {
        name: "two inserts of one key",
        before: "",
        writes: &[
            (2, "insert into met values ($k, 'two')"),
            (3, "insert into met values ($k, 'three')"),
        ],
        query: MET,
        expected: &["0|three"],
    },
    Case {
        name: "two deletes",
        before: "insert into met values ($k, 'old')",
        writes: &[(1, "delete from met where id = $k"), (2, "delete from met where id = $k")],
        query: MET,
        expected: &[],
    },
    Case {
        name: "D8: a delete that is later than an update",
        before: "insert into met values ($k, 'old')",
        writes: &[
            (1, "update met set v = 'one' where id = $k"),
            (2, "delete from met where id = $k"),
        ],
        query: MET,
        expected: &[],
    },
    Case {
        name: "D13: the versions of frozen rows count",
        before: "insert into met values ($k, 'old')",
        writes: &[
            (1, "update met set v = 'one' where id = $k"),
            (2, "update met set v = 'two' where id = $k"),
            (1, "vacuum freeze met"),
            (2, "vacuum freeze met"),
            (3, "vacuum freeze met"),
        ],
        query: MET,
        expected: &["0|two"],
    },
    Case {
        name: "D7: an update that is later than a delete",
        before: "insert into met values ($k, 'old')",
        writes: &[
            (1, "delete from met where id = $k"),
            (2, "update met set v = 'two' where id = $k"),
        ],
        query: MET,
        expected: &["0|two"],
    },
    Case {
        name: "an insert after a delete, and an update of before",
        before: "insert into met values ($k, 'old')",
        writes: &[
            (3, "update met set v = 'three' where id = $k"),
            (1, "delete from met where id = $k"),
            (1, "insert into met values ($k, 'new')"),
        ],
        query: MET,
        expected: &["0|new"],
    },
    Case {
        name: "a delete and an insert by one node, a later update by another",
        before: "insert into met values ($k, 'old')",
        writes: &[
            (1, "delete from met where id = $k"),
            (1, "insert into met values ($k, 'new')"),
            (3, "update met set v = 'three' where id = $k"),
        ],
        query: MET,
        expected: &["0|three"],
    },
    Case {
        name: "D9: each of three rows shares a unique value with the next",
        before: "",
        writes: &[
            (1, "insert into met_unique values ($k + 1, $k + 1, $k + 1, 'one')"),
            (2, "insert into met_unique values ($k + 2, $k + 1, $k + 2, 'two')"),
            (3, "insert into met_unique values ($k + 3, $k + 3, $k + 2, 'three')"),
        ],
        query: UNIQUE,
        expected: &["3|3|2|three"],
    },
    Case {
        name: "D9: the row that took a value has moved on",
        before: "",
        writes: &[
            (1, "insert into met_unique values ($k + 1, $k + 1, $k + 1, 'one')"),
            (2, "insert into met_unique values ($k + 2, $k + 1, $k + 2, 'two')"),
            (2, "update met_unique set u = $k + 5 where id = $k + 2"),
        ],
        query: UNIQUE,
        expected: &["2|5|2|two"],
    },
    Case {
        name: "D9: the row that took a value is gone",
        before: "",
        writes: &[
            (3, "insert into met_unique values ($k + 1, $k + 1, $k + 1, 'three')"),
            (2, "insert into met_unique values ($k + 2, $k + 1, $k + 2, 'two')"),
            (2, "delete from met_unique where id = $k + 2"),
        ],
        query: UNIQUE,
        expected: &[],
    },
    Case {
        name: "D9: an update takes a value of a row that another node updates earlier",
        before: "insert into met_unique values ($k + 1, $k + 1, $k + 1, 'a'), ($k + 2, $k + 2, $k + 2, 'b')",
        writes: &[
            (1, "update met_unique set u = $k + 7 where id = $k + 1"),
            (2, "update met_unique set u = $k + 7 where id = $k + 2"),
        ],
        query: UNIQUE,
        expected: &["2|7|2|b"],
    },
    Case {
        name: "D10: one primary key becomes two others",
        before: "insert into met values ($k, 'old')",
        writes: &[
            (1, "update met set id = $k + 1 where id = $k"),
            (2, "update met set id = $k + 2 where id = $k"),
        ],
        query: MET,
        expected: &["1|old", "2|old"],
    },
    Case {
        name: "D10: two rows get one primary key",
        before: "insert into met values ($k + 1, 'a'), ($k + 2, 'b')",
        writes: &[
            (1, "update met set id = $k where id = $k + 1"),
            (2, "update met set id = $k where id = $k + 2"),
        ],
        query: MET,
        expected: &["0|b"],
    },
    Case {
        name: "D11: a large value, with the whole old row sent, that only the earlier update changed",
        before: "insert into met_large values ($k, 'old', repeat('old ', 2000))",
        writes: &[
            (1, "update met_large set large = repeat('new ', 2000) where id = $k"),
            (2, "update met_large set v = 'two' where id = $k"),
        ],
        query: "select v, left(large, 3), length(large) from met_large where id = $k",
        expected: &["two|old|8000"],
    },
    Case {
        name: "D11: a large value, with the whole old row sent, that only the later update changed",
        before: "insert into met_large values ($k, 'old', repeat('old ', 2000))",
        writes: &[
            (2, "update met_large set v = 'two' where id = $k"),
            (1, "update met_large set large = repeat('new ', 2000) where id = $k"),
        ],
        query: "select v, left(large, 3), length(large) from met_large where id = $k",
        expected: &["old|new|8000"],
    },
    Case {
        name: "D11: a large value that only the earlier update changed and the later one left out",
        before: "insert into met_toast values ($k, 'old', repeat('old ', 2000))",
        writes: &[
            (1, "update met_toast set large = repeat('new ', 2000) where id = $k"),
            (2, "update met_toast set v = 'two' where id = $k"),
        ],
        query: "select v, left(large, 3), length(large) from met_toast where id = $k",
        expected: &["two|old|8000"],
    },
    Case {
        name: "D11: a large value that only the later update changed and the earlier one left out",
        before: "insert into met_toast values ($k, 'old', repeat('old ', 2000))",
        writes: &[
            (2, "update met_toast set v = 'two' where id = $k"),
            (1, "update met_toast set large = repeat('new ', 2000) where id = $k"),
        ],
        query: "select v, left(large, 3), length(large) from met_toast where id = $k",
        expected: &["old|new|8000"],
    },
    Case {
        name: "D11: two left out what a third one, the earliest, changed",
        before: "insert into met_toast values ($k, 'old', repeat('old ', 2000))",
        writes: &[
            (3, "update met_toast set large = repeat('new ', 2000) where id = $k"),
            (1, "update met_toast set v = 'one' where id = $k"),
            (2, "update met_toast set v = 'two' where id = $k"),
            (2, "update met_toast set v = 'again' where id = $k"),
        ],
        query: "select v, left(large, 3), length(large) from met_toast where id = $k",
        expected: &["again|old|8000"],
    },
    Case {
        name: "D17: a child of a parent that is deleted",
        before: "insert into met_parent values ($k), ($k + 1)",
        writes: &[
            (1, "delete from met_parent where id = $k"),
            (2, "insert into met_child values ($k, $k), ($k + 1, $k + 1)"),
        ],
        query: "select (select count(*) from met_parent where id in ($k, $k + 1)),
                (select count(*) from met_child where id = $k + 1)",
        expected: &["1|1"],
    },
];

/// Writes of the same microsecond: the higher node counts as the later one.
pub(super) const AT_ONCE: &[Case] = &[
    Case {
        name: "D2: two updates at once",
        before: "insert into met values ($k, 'old')",
        writes: &[
            (2, "update met set v = 'two' where id = $k"),
            (1, "update met set v = 'one' where id = $k"),
        ],
        query: MET,
        expected: &["0|two"],
    },
    Case {
        name: "D3: three updates at once",
        before: "insert into met values ($k, 'old')",
        writes: &[
            (3, "update met set v = 'three' where id = $k"),
            (1, "update met set v = 'one' where id = $k"),
            (2, "update met set v = 'two' where id = $k"),
        ],
        query: MET,
        expected: &["0|three"],
    },
    Case {
        name: "D3: three inserts at once",
        before: "",
        writes: &[
            (2, "insert into met values ($k, 'two')"),
            (3, "insert into met values ($k, 'three')"),
            (1, "insert into met values ($k, 'one')"),
        ],
        query: MET,
        expected: &["0|three"],
    },
    Case {
        name: "D3: two updates and the delete of the highest node at once",
        before: "insert into met values ($k, 'old')",
        writes: &[
            (3, "delete from met where id = $k"),
            (1, "update met set v = 'one' where id = $k"),
            (2, "update met set v = 'two' where id = $k"),
        ],
        query: MET,
        expected: &[],
    },
    Case {
        name: "D3: an update and two deletes of lower nodes at once",
        before: "insert into met values ($k, 'old')",
        writes: &[
            (1, "delete from met where id = $k"),
            (2, "delete from met where id = $k"),
            (3, "update met set v = 'three' where id = $k"),
        ],
        query: MET,
        expected: &["0|three"],
    },
    Case {
        name: "D3: three rows claim one value at once",
        before: "",
        writes: &[
            (3, "insert into met_unique values ($k + 3, $k + 1, $k + 3, 'three')"),
            (1, "insert into met_unique values ($k + 1, $k + 1, $k + 1, 'one')"),
            (2, "insert into met_unique values ($k + 2, $k + 1, $k + 2, 'two')"),
        ],
        query: UNIQUE,
        expected: &["3|1|3|three"],
    },
];
