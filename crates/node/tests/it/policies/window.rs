//! What a local session does after a remote write was decided upon, and before that has its place, counts too.

use std::time::Duration;

use synapsedb_dev::{Node, eventually};

use super::cluster;
use crate::NOTICED;
use crate::bad_input::{only_here, retry_all};
use crate::conflicts::concurrently;

/// Rows of two writers become the larger one; a delete wins over some rows, and loses to the others.
const SET_UP: &str = "
    create table windowed (id int primary key, v text);
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

#[tokio::test(flavor = "multi_thread")]
async fn what_is_written_while_a_remote_row_is_on_its_way_counts() {
    let (cluster, _turn) = cluster().await;
    let here = cluster.node(1);
    here.sql(SET_UP).await;
    cluster
        .all_show(
            "select count(*) from synapsedb.policies() where policy like '%window_merge%'",
            &["1"],
        )
        .await;
    only_here(here, WAIT).await;
    let holder = here.session().await;
    let (hold, free) = ("select pg_advisory_lock(7077)", "select pg_advisory_unlock(7077)");

    // The place was free by a delete that is known, and is taken meanwhile.
    holder.batch_execute(hold).await.unwrap();
    concurrently(
        &cluster,
        &[
            (2, "update windowed set v = 'b' where id = 1"),
            (1, "delete from windowed where id = 1"),
        ],
    )
    .await;
    waits(here).await;
    here.sql("insert into windowed values (1, 'c')").await;
    holder.batch_execute(free).await.unwrap();
    cluster.all_show("select v from windowed where id = 1", &["c"]).await;

    // The place was never anybody's, and is left again.
    holder.batch_execute(hold).await.unwrap();
    cluster.node(2).sql("insert into windowed values (2, 'b')").await;
    waits(here).await;
    here.sql("insert into windowed values (2, 'x')").await;
    here.sql("delete from windowed where id = 2").await;
    holder.batch_execute(free).await.unwrap();
    cluster.all_show("select count(*) from windowed where id = 2", &["0"]).await;

    // It was decided that nothing is there, and something comes before that is committed.
    holder.batch_execute(hold).await.unwrap();
    concurrently(
        &cluster,
        &[
            (2, "begin; update windowed set v = 'b' where id = 3; insert into windowed values (4, 'd'); commit"),
            (1, "delete from windowed where id = 3"),
        ],
    )
    .await;
    waits(here).await;
    here.sql("insert into windowed values (3, 'a')").await;
    holder.batch_execute(free).await.unwrap();
    cluster.all_show("select v from windowed where id > 1 order by id", &["b", "d"]).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    cluster.assert_equal_rows().await;

    // What cannot be decided waits in quarantine on every node, also where it was written.
    here.sql(BREAK).await;
    let broken =
        "select count(*) from pg_proc where proname = 'window_merge' and prosrc like '%no merge%'";
    cluster.all_show(broken, &["1"]).await;
    holder.batch_execute(hold).await.unwrap();
    cluster.node(2).sql("insert into windowed values (5, 'b')").await;
    waits(here).await;
    here.sql("insert into windowed values (5, 'x')").await;
    here.sql("delete from windowed where id = 5").await;
    holder.batch_execute(free).await.unwrap();
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
    here.sql(MEND).await;
    cluster.all_show(broken, &["0"]).await;
    for node in cluster.nodes() {
        retry_all(&cluster, node).await;
    }
    cluster.all_show("select count(*) from windowed where id = 5", &["0"]).await;

    // The agent is killed before it could be looked at: the row is locked.
    here.sql("insert into windowed values (6, 'old')").await;
    cluster.all_show("select v from windowed where id = 6", &["old"]).await;
    holder.batch_execute(hold).await.unwrap();
    concurrently(
        &cluster,
        &[
            (2, "begin; update windowed set v = 'b' where id = 6; insert into windowed values (7, 'd'); commit"),
            (1, "delete from windowed where id = 6"),
        ],
    )
    .await;
    waits(here).await;
    here.sql("insert into windowed values (6, 'a')").await;
    let locker = here.session().await;
    locker.batch_execute("begin; select from windowed where id = 6 for update").await.unwrap();
    holder.batch_execute(free).await.unwrap();
    cluster.all_show("select v from windowed where id = 7", &["d"]).await;
    here.sql("create table after_six (id int primary key)").await;
    cluster.all_show("select count(*) from after_six", &["0"]).await;
    here.kill_agent();
    here.start();
    cluster.wait_ready().await;
    here.shows("select v from windowed where id = 6", &["a"]).await.unwrap();
    locker.batch_execute("commit").await.unwrap();
    cluster.all_show("select v from windowed where id = 6", &["b"]).await;
    cluster.assert_equal_rows().await;
}
