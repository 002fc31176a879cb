//! No reader on any node sees an effect before its cause, whatever befalls the nodes, and all nodes end with the rows
//! that must have won; and the observers do find effects without causes where there are some.

use std::time::Duration;

use synapsedb_dev::causality::{self, Workload};
use synapsedb_dev::chaos::{self, Fault};
use synapsedb_dev::eventually;

use crate::{NOTICED, binary, cluster, skip};

#[tokio::test(flavor = "multi_thread")]
async fn no_effect_is_seen_before_its_cause_on_hot_keys() {
    let faults = chaos::Config {
        duration: Duration::from_secs(20),
        between: Duration::from_secs(2),
        away_ms_max: 1500,
        faults: vec![
            Fault::Pause,
            Fault::CutOff,
            Fault::KillAgent,
            Fault::SetClock,
            Fault::KillPostgres,
        ],
        ..chaos::Config::default()
    };
    let cluster = binary().lay_out(3);
    if let Err(reason) = chaos::own_clocks(&cluster, faults.seed) {
        skip(&format!("clocks that differ: {reason}"));
    }
    cluster.start().await;
    match causality::run(&cluster, &Workload::default(), &faults).await {
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

/// The WAL tells peers of a commit before its own node shows it: here for long, since it waits for a standby.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_yet_visible_at_home_has_no_effect_there() {
    let cluster = cluster(2).await;
    let tables =
        "create table cause (id int primary key); create table effect (id int primary key)";
    cluster.node(1).sql(tables).await;
    let both = "select (select count(*) from cause), (select count(*) from effect)";
    cluster.all_show(both, &["0|0"]).await;
    let superuser = cluster.node(1).agent_server();
    superuser.sql("alter system set synchronous_standby_names = 'nobody'").await;
    superuser.sql("select pg_reload_conf()").await;
    eventually("node 1 waits for a standby", NOTICED, async || {
        cluster.node(1).shows("show synchronous_standby_names", &["nobody"]).await
    })
    .await;
    let server = cluster.node(1).server().clone();
    let insert = "set synchronous_commit = on; insert into cause values (1)";
    let hanging = tokio::spawn(async move { server.sql(insert).await });
    eventually("node 2 has the row", NOTICED, async || cluster.node(2).shows(both, &["1|0"]).await)
        .await;
    assert_eq!(cluster.node(1).value(both).await, "0|0", "the commit does not wait");
    cluster.node(2).sql("insert into effect values (1)").await;
    for _ in 0..30 {
        assert_eq!(cluster.node(1).value(both).await, "0|0", "an effect before its cause");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    superuser.sql("alter system reset synchronous_standby_names").await;
    superuser.sql("select pg_reload_conf()").await;
    cluster.all_show(both, &["1|1"]).await;
    hanging.await.unwrap();
}
