//! No reader on any node sees an effect before its cause, whatever befalls the nodes, and all nodes end with the rows
//! that must have won; and the observers do find effects without causes where there are some.

use std::time::Duration;

use synapsedb_dev::causality::{self, Workload};
use synapsedb_dev::chaos::{self, Fault};

use crate::{cluster, skip};

#[tokio::test(flavor = "multi_thread")]
async fn no_effect_is_seen_before_its_cause_on_hot_keys() {
    let cluster = cluster(3).await;
    let faults = chaos::Config {
        duration: Duration::from_secs(20),
        between: Duration::from_secs(2),
        away_ms_max: 1500,
        faults: vec![Fault::Pause, Fault::CutOff, Fault::KillAgent, Fault::KillPostgres],
        ..chaos::Config::default()
    };
    let workload = Workload { deletes: false, uniques: false, ..Workload::default() };
    match causality::run(&cluster, &workload, &faults).await {
        Ok(report) => eprintln!("{report:?}"),
        Err(error) => panic!("{error:#}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_observers_find_effects_without_causes_on_pglogical() {
    let report = causality::run_pglogical(Duration::from_secs(10), &Workload::default()).await;
    match report {
        Ok(report) => assert!(report.violations > 0 && report.faults > 5, "{report:?}"),
        Err(error) => skip(&format!("{error:#}")),
    }
}
