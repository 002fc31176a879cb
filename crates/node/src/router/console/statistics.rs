//! The counters by database, as PgBouncer has them: in total, and on average over the last period.
//!
//! A query's time is that for which its transaction had a server connection: the moments within a transaction in which
//! the client says nothing are part of it, other than in PgBouncer.

use std::collections::BTreeMap;
use std::time::Duration;

use super::table::Kind::{Int8, Text};
use super::table::{Column, Field, Table, number, text};
use crate::router::account::Totals;
use crate::router::snapshot::Snapshot;

/// The counters in PgBouncer's order: their names in SHOW STATS behind `total_` and `avg_`, in SHOW STATS_TOTALS, and
/// in SHOW TOTALS behind both.
const NAMES: [[&str; 4]; 11] = [
    // Behind total_, behind avg_, alone, in SHOW TOTALS.
    [
        "server_assignment_count",
        "server_assignment_count",
        "server_assignment_count",
        "server_assignment_count",
    ],
    ["xact_count", "xact_count", "xact_count", "xact_count"],
    ["query_count", "query_count", "query_count", "query_count"],
    ["received", "recv", "bytes_received", "client_bytes"],
    ["sent", "sent", "bytes_sent", "server_bytes"],
    ["xact_time", "xact_time", "xact_time", "xact_time"],
    ["query_time", "query_time", "query_time", "query_time"],
    ["wait_time", "wait_time", "wait_time", "wait_time"],
    ["client_parse_count", "client_parse_count", "client_parse_count", "client_parse_count"],
    ["server_parse_count", "server_parse_count", "server_parse_count", "server_parse_count"],
    ["bind_count", "bind_count", "bind_count", "bind_count"],
];

/// By database: the totals, and what was counted lately in how long.
pub(in crate::router) fn by_database(
    snapshots: &[Snapshot],
) -> BTreeMap<&str, (Totals, Duration, Totals)> {
    let mut databases: BTreeMap<&str, (Totals, Duration, Totals)> = BTreeMap::new();
    for account in snapshots.iter().flat_map(|snapshot| &snapshot.accounts) {
        let (totals, period, lately) = databases.entry(&account.database).or_default();
        totals.add(&account.totals);
        *period = (*period).max(account.lately.0);
        lately.add(&account.lately.1);
    }
    databases
}

fn values(totals: &Totals) -> [u64; 11] {
    [
        totals.assignments,
        totals.transactions,
        totals.cycles,
        totals.received,
        totals.sent,
        totals.transaction_us,
        totals.transaction_us,
        totals.wait_us,
        totals.parses,
        totals.server_parses,
        totals.binds,
    ]
}

/// Per second; times per transaction, query, and assignment.
fn averages(period: Duration, lately: &Totals) -> [u64; 11] {
    let mut averages = values(lately);
    let micros = period.as_micros().max(1);
    for (place, value) in averages.iter_mut().enumerate() {
        let counted = match place {
            5 => lately.transactions,
            6 => lately.cycles,
            7 => lately.assignments,
            _ => {
                *value = (u128::from(*value) * 1_000_000 / micros) as u64;
                continue;
            }
        };
        *value /= counted.max(1);
    }
    averages
}

/// The names that PgBouncer's columns have here, for all the life of the agent.
fn names(prefix: &str, place: usize) -> impl Iterator<Item = String> {
    NAMES.iter().map(move |names| format!("{prefix}{}", names[place]))
}

/// `SHOW STATS`
pub(super) fn stats(snapshots: &[Snapshot]) -> Table {
    let mut table = Table::new(&STATS);
    for (database, (totals, period, lately)) in by_database(snapshots) {
        let averages = averages(period, &lately);
        let mut row = vec![text(database)];
        row.extend(values(&totals).iter().chain(&averages).map(number));
        table.push(row);
    }
    table
}

const STATS: [Column; 23] = [
    ("database", Text),
    ("total_server_assignment_count", Int8),
    ("total_xact_count", Int8),
    ("total_query_count", Int8),
    ("total_received", Int8),
    ("total_sent", Int8),
    ("total_xact_time", Int8),
    ("total_query_time", Int8),
    ("total_wait_time", Int8),
    ("total_client_parse_count", Int8),
    ("total_server_parse_count", Int8),
    ("total_bind_count", Int8),
    ("avg_server_assignment_count", Int8),
    ("avg_xact_count", Int8),
    ("avg_query_count", Int8),
    ("avg_recv", Int8),
    ("avg_sent", Int8),
    ("avg_xact_time", Int8),
    ("avg_query_time", Int8),
    ("avg_wait_time", Int8),
    ("avg_client_parse_count", Int8),
    ("avg_server_parse_count", Int8),
    ("avg_bind_count", Int8),
];

fn alone() -> Vec<Column> {
    let mut columns = vec![("database", Text)];
    columns.extend(NAMES.iter().map(|names| (names[2], Int8)));
    columns
}

/// `SHOW STATS_TOTALS`
pub(super) fn totals_by_database(snapshots: &[Snapshot]) -> Table {
    let mut table = Table::new(&alone());
    for (database, (totals, ..)) in by_database(snapshots) {
        let mut row = vec![text(database)];
        row.extend(values(&totals).iter().map(number));
        table.push(row);
    }
    table
}

/// `SHOW STATS_AVERAGES`
pub(super) fn averages_by_database(snapshots: &[Snapshot]) -> Table {
    let mut table = Table::new(&alone());
    for (database, (_, period, lately)) in by_database(snapshots) {
        let mut row = vec![text(database)];
        row.extend(averages(period, &lately).iter().map(number));
        table.push(row);
    }
    table
}

/// `SHOW TOTALS`
pub(super) fn totals(snapshots: &[Snapshot]) -> Table {
    let (mut totals, mut period, mut lately) =
        (Totals::default(), Duration::ZERO, Totals::default());
    for (of_totals, of_period, of_lately) in by_database(snapshots).into_values() {
        totals.add(&of_totals);
        lately.add(&of_lately);
        period = period.max(of_period);
    }
    let mut table = Table::new(&[("name", Text), ("value", Int8)]);
    let rows = |prefix: &'static str, values: [u64; 11]| -> Vec<Vec<Field>> {
        names(prefix, 3).zip(values).map(|(name, value)| vec![text(name), number(value)]).collect()
    };
    table.rows.extend(rows("total_", values(&totals)));
    table.rows.extend(rows("avg_", averages(period, &lately)));
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn averages_are_per_second_and_times_per_what_they_are_of() {
        let lately = Totals {
            transactions: 20,
            cycles: 40,
            assignments: 10,
            transaction_us: 400,
            wait_us: 50,
            received: 3_000,
            ..Totals::default()
        };
        let averages = averages(Duration::from_secs(2), &lately);
        assert_eq!(averages, [5, 10, 20, 1_500, 0, 20, 10, 5, 0, 0, 0]);
    }

    #[test]
    fn the_columns_of_show_stats_are_named_after_the_counters() {
        let named = names("total_", 0).chain(names("avg_", 1));
        assert!(named.eq(STATS.iter().skip(1).map(|(name, _)| (*name).to_owned())));
    }
}
