//! Seeds that the rules survive, and what is broken on purpose, which the checkers find.

use super::model::Rules;
use super::node::{Forget, Rigging};
use super::replica::Breakage;
use super::{Config, run};

#[test]
fn every_seed_is_safe_and_then_converges() {
    let (mut concurrent, mut crashes, mut lost) = (0, 0, 0);
    for seed in 0..60 {
        match run(seed, &Config::default()) {
            Ok(report) => {
                concurrent += report.concurrent;
                crashes += report.crashes;
                lost += report.lost;
            }
            Err(reason) => panic!("{reason}"),
        }
    }
    assert!(concurrent > 1_000 && crashes > 50 && lost > 1_000, "{concurrent} {crashes} {lost}");
}

#[test]
fn five_nodes_converge_too() {
    for seed in 1000..1010 {
        let config = Config { nodes: 5, transactions: 80, ..Config::default() };
        if let Err(reason) = run(seed, &config) {
            panic!("{reason}");
        }
    }
}

#[test]
fn a_seed_always_tells_the_same() {
    let runs = [(); 2].map(|()| format!("{:?}", run(7, &Config::default())));
    assert_eq!(runs[0], runs[1]);
}

/// What a broken setting leads to within some seeds.
fn found(rigging: Rigging, breakage: Breakage) -> Option<String> {
    let rules = Rules::all().into_iter().next();
    let config = Config { rigging, breakage, rules, check_every: 1, ..Config::default() };
    (0..200).find_map(|seed| run(seed, &config).err())
}

#[track_caller]
fn is_found(rigging: Rigging, breakage: Breakage, sign: &str) {
    let found = found(rigging, breakage);
    assert!(found.as_ref().is_some_and(|reason| reason.contains(sign)), "{found:?}");
}

#[test]
fn without_causal_delivery_effects_are_seen_before_their_causes() {
    let rigging = Rigging { without_causal_delivery: true, ..Rigging::default() };
    is_found(rigging, Breakage::default(), "before its cause");
}

#[test]
fn without_commit_wait_a_fast_clock_beats_a_later_write() {
    let rigging = Rigging { without_commit_wait: true, ..Rigging::default() };
    is_found(rigging, Breakage::default(), "instead of");
}

#[test]
fn without_tombstones_deleted_rows_come_back() {
    let breakage = Breakage { without_tombstones: true, ..Breakage::default() };
    is_found(Rigging::default(), breakage, "instead of");
}

#[test]
fn claims_of_rows_that_have_moved_on_count() {
    let breakage = Breakage { claims_of_present_rows_only: true, ..Breakage::default() };
    is_found(Rigging::default(), breakage, "instead of");
}

#[test]
fn writes_that_are_forgotten_at_once_are_missed() {
    let rigging = Rigging { forget: Forget::AtOnce, ..Rigging::default() };
    is_found(rigging, Breakage::default(), "instead of");
}

/// That every member has applied a write is not enough: a transaction from before that may still be on its way to one
/// of them.
#[test]
fn writes_that_are_forgotten_when_all_have_applied_them_are_missed() {
    let rigging = Rigging { forget: Forget::Applied, ..Rigging::default() };
    is_found(rigging, Breakage::default(), "instead of");
}
