//! What a local session does after a remote write was decided upon, and before that has its place, counts too.

use std::time::Duration;

use synapsedb_dev::client::Session;
use synapsedb_dev::{Cluster, Node, eventually};

use super::cluster;
use crate::NOTICED;
use crate::bad_input::late::everything_was_seen;
use crate::bad_input::{only_here, retry_all};
use crate::conflicts::concurrently;

/// Rows of two writers become the larger one; a delete wins over some rows, and loses to the others.
const SET_UP: &str = "
    create table windowed (id int primary key, v text);
    create table windowed_seen (id serial primary key);
    create function window_merge(a jsonb, b jsonb) returns jsonb language sql as $$
        select case when (coalesce(a, b) ->> 'id')::int in (2, 3) and (a is null or b is null) then null
            when a is null then b when b is null or a ->> 'v' > b ->> 'v' then a else b end $$;
    insert into windowed values (1, 'old'), (3, 'old');
    select synapsedb.set_policy('windowed', 'function(public.window_merge)')";

/// What applies rows from others waits before each insert until the key is free.
const WAIT: &str = "
    create function window_wait() returns trigger language plpgsql as
        $$ begin perform pg_advisory_xact_lock(7077); return new; end $$;
    create trigger window_wait before insert on windowed for each row execute function window_wait();
    alter table windowed enable replica trigger window_wait";

/// A function that cannot decide.
const BREAK: &str = "
    create or replace function window_merge(a jsonb, b jsonb) returns jsonb language plpgsql as
        $$ begin raise exception 'no merge today'; end $$";

/// A delete wins.
const MEND: &str = "
    create or replace function window_merge(a jsonb, b jsonb) returns jsonb language sql as
        $$ select case when a is not null and b is not null then a end $$";

async fn waits(node: &Node) {
    let blocked = "select count(*) from pg_locks where locktype = 'advisory' and objid = 7077 and not granted";
    eventually("an applier waits", NOTICED, async || node.shows(blocked, &["1"]).await).await;
}

/// Appliers of node 1 wait before each insert while this is held.
struct Hold {
    holder: Session,
}

impl Hold {
    async fn on(&self) {
        self.holder.batch_execute("select pg_advisory_lock(7077)").await.unwrap();
    }

    async fn off(&self) {
        self.holder.batch_execute("select pg_advisory_unlock(7077)").await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_written_while_a_remote_row_is_on_its_way_counts() {
    let (cluster, _turn) = cluster().await;
    let here = cluster.node(1);
    here.sql(SET_UP).await;
    let set = "select count(*) from synapsedb.policies() where policy like '%window_merge%'";
    cluster.all_show(set, &["1"]).await;
    only_here(here, WAIT).await;
    let hold = Hold { holder: here.session().await };
    a_place_is_taken(&cluster, &hold).await;
    a_place_is_taken_and_left(&cluster, &hold).await;
    a_place_is_taken_where_none_was_left(&cluster, &hold).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    cluster.assert_equal_rows().await;
    what_cannot_be_decided_is_set_aside(&cluster, &hold).await;
    cluster.assert_equal_rows().await;
    an_agent_is_killed_before(&cluster, &hold).await;
    cluster.assert_equal_rows().await;
    drop(hold);
    what_is_forgotten_goes_by_the_time(&cluster).await;
    cluster.assert_equal_rows().await;
}

/// The place was free by a delete that is known, and is taken meanwhile.
async fn a_place_is_taken(cluster: &Cluster, hold: &Hold) {
    hold.on().await;
    concurrently(
        cluster,
        &[
            (2, "update windowed set v = 'b' where id = 1"),
            (1, "delete from windowed where id = 1"),
        ],
    )
    .await;
    waits(cluster.node(1)).await;
    cluster.node(1).sql("insert into windowed values (1, 'c')").await;
    hold.off().await;
    cluster.all_show("select v from windowed where id = 1", &["c"]).await;
}

async fn is_taken_and_left(cluster: &Cluster, hold: &Hold, id: u32) {
    let here = cluster.node(1);
    hold.on().await;
    cluster.node(2).sql(&format!("insert into windowed values ({id}, 'b')")).await;
    waits(here).await;
    here.sql(&format!("insert into windowed values ({id}, 'x')")).await;
    here.sql(&format!("delete from windowed where id = {id}")).await;
    hold.off().await;
}

/// The place was never anybody's, is taken, and is left again.
async fn a_place_is_taken_and_left(cluster: &Cluster, hold: &Hold) {
    is_taken_and_left(cluster, hold, 2).await;
    cluster.all_show("select count(*) from windowed where id = 2", &["0"]).await;
}

/// It is decided that nothing is left in a place, and before that is committed something is there.
async fn is_taken_where_none_was_left(cluster: &Cluster, hold: &Hold, id: u32) {
    let here = cluster.node(1);
    hold.on().await;
    let (update, next) = (format!("update windowed set v = 'b' where id = {id}"), id + 1);
    let update = format!("begin; {update}; insert into windowed values ({next}, 'd'); commit");
    let delete = format!("delete from windowed where id = {id}");
    concurrently(cluster, &[(2, &update), (1, &delete)]).await;
    waits(here).await;
    here.sql(&format!("insert into windowed values ({id}, 'a')")).await;
}

async fn a_place_is_taken_where_none_was_left(cluster: &Cluster, hold: &Hold) {
    is_taken_where_none_was_left(cluster, hold, 3).await;
    hold.off().await;
    cluster.all_show("select v from windowed where id > 1 order by id", &["b", "d"]).await;
}

/// What a node says that forgets what is still to be decided upon.
const FORGOTTEN: &str = "what it met is forgotten";

/// Whether the function is one that cannot decide.
const IS_BROKEN: &str =
    "select count(*) from pg_proc where proname = 'window_merge' and prosrc like '%no merge%'";

/// A row of node 2 and a later delete of node 1 that nobody can decide upon.
async fn cannot_be_decided(cluster: &Cluster, hold: &Hold, id: u32) {
    let here = cluster.node(1);
    here.sql(BREAK).await;
    cluster.all_show(IS_BROKEN, &["1"]).await;
    is_taken_and_left(cluster, hold, id).await;
    let aside =
        "select origin, kind from synapsedb.quarantine where table_name = 'windowed' order by id";
    eventually("node 1 sets its own delete aside", NOTICED, async || {
        here.shows(aside, &["1|delete"]).await
    })
    .await;
    eventually("node 2 sets both aside", NOTICED, async || {
        cluster.node(2).shows(aside, &["1|insert", "1|delete"]).await
    })
    .await;
    eventually("node 3 sets some aside", NOTICED, async || {
        let set_aside = cluster.node(3).rows(aside).await;
        if set_aside.is_empty() { Err("none".to_owned()) } else { Ok(()) }
    })
    .await;
}

/// The function decides again, and does it upon what waits in quarantine.
async fn is_mended(cluster: &Cluster) {
    cluster.node(1).sql(MEND).await;
    cluster.all_show(IS_BROKEN, &["0"]).await;
    for node in cluster.nodes() {
        retry_all(cluster, node).await;
    }
}

/// What cannot be decided waits in quarantine on every node, also where it was written.
async fn what_cannot_be_decided_is_set_aside(cluster: &Cluster, hold: &Hold) {
    cannot_be_decided(cluster, hold, 5).await;
    is_mended(cluster).await;
    cluster.all_show("select count(*) from windowed where id = 5", &["0"]).await;
}

/// What waits in the quarantine of its own node is forgotten there before it is tried again.
async fn what_is_forgotten_goes_by_the_time(cluster: &Cluster) {
    let here = cluster.node(1);
    here.stop();
    here.configure("replication.quarantine_remembered_max", 0);
    here.start();
    cluster.wait_ready().await;
    let hold = Hold { holder: here.session().await };
    cannot_be_decided(cluster, &hold, 8).await;
    everything_was_seen(cluster, "windowed_seen").await;
    assert!(here.log().contains(FORGOTTEN), "{}", here.log_tail());
    is_mended(cluster).await;
    cluster.all_show("select count(*) from windowed where id = 8", &["0"]).await;

    // Nobody's lock keeps a node from forgetting for ever.
    here.sql("insert into windowed values (9, 'old')").await;
    cluster.all_show("select v from windowed where id = 9", &["old"]).await;
    is_taken_where_none_was_left(cluster, &hold, 9).await;
    let locker = here.session().await;
    locker.batch_execute("begin; select from windowed where id = 9 for update").await.unwrap();
    hold.off().await;
    cluster.all_show("select v from windowed where id = 10", &["d"]).await;
    eventually("it says that it forgets", NOTICED, async || {
        match here.log().matches(FORGOTTEN).count() {
            2 => Ok(()),
            times => Err(format!("it has said so {times} times")),
        }
    })
    .await;
    locker.batch_execute("commit").await.unwrap();
    here.sql("delete from windowed where id = 9").await;
    cluster.all_show("select count(*) from windowed where id = 9", &["0"]).await;
}

/// The agent is killed before it could look at the place: the row is locked.
async fn an_agent_is_killed_before(cluster: &Cluster, hold: &Hold) {
    let here = cluster.node(1);
    here.sql("insert into windowed values (6, 'old')").await;
    cluster.all_show("select v from windowed where id = 6", &["old"]).await;
    is_taken_where_none_was_left(cluster, hold, 6).await;
    let locker = here.session().await;
    locker.batch_execute("begin; select from windowed where id = 6 for update").await.unwrap();
    hold.off().await;
    cluster.all_show("select v from windowed where id = 7", &["d"]).await;
    here.sql("create table after_six (id int primary key)").await;
    cluster.all_show("select count(*) from after_six", &["0"]).await;
    here.kill_agent();
    here.start();
    cluster.wait_ready().await;
    here.shows("select v from windowed where id = 6", &["a"]).await.unwrap();
    locker.batch_execute("commit").await.unwrap();
    cluster.all_show("select v from windowed where id = 6", &["b"]).await;
}
