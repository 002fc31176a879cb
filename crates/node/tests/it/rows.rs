//! What happens to rows on one node happens on the others: keys, missing keys, truncates, foreign keys, triggers.

use crate::shared;

#[tokio::test(flavor = "multi_thread")]
async fn keys_can_change() {
    let cluster = shared().await;
    cluster.node(1).sql("create table keyed (a int, b text, v int, primary key (a, b))").await;
    cluster.node(1).sql("insert into keyed values (1, 'x', 1), (2, 'y', 2), (3, 'z', 3)").await;
    cluster.all_show("select count(*) from keyed", &["3"]).await;
    cluster.node(2).sql("update keyed set a = a + 10, b = b || b where a < 3").await;
    cluster
        .all_show("select a, b, v from keyed order by a", &["3|z|3", "11|xx|1", "12|yy|2"])
        .await;
    cluster.node(3).sql("delete from keyed where a = 11").await;
    cluster.all_show("select a from keyed order by a", &["3", "12"]).await;
}

/// Many updates and deletes of one transaction go in few statements; what they do is what they did one by one.
#[tokio::test(flavor = "multi_thread")]
async fn a_large_transaction_updates_and_deletes_what_it_did_at_its_origin() {
    let cluster = shared().await;
    cluster
        .node(1)
        .sql(
            "create table bulk (
                 a int, b text, v numeric(12, 2), note text, day date, doc jsonb, primary key (a, b));
             alter table bulk alter note set storage external;
             create table bulk_places (id int primary key, place int unique);
             create table bulk_keyless (id int, v int);
             insert into bulk
             select i, 'b' || i % 7, i, repeat(md5(i::text), 100 * (i % 2)), date '2026-01-01' + i, '{}'
             from generate_series(1, 3000) i;
             insert into bulk_places select i, i from generate_series(1, 500) i;
             insert into bulk_keyless select i, i from generate_series(1, 20) i",
        )
        .await;
    cluster.all_show("select count(*) from bulk_keyless", &["20"]).await;
    // Rows that are met twice, keys that change, values that stay as they are, places that become free on the way.
    cluster
        .node(2)
        .sql(
            "begin;
             update bulk set v = v + 1, note = null where a % 3 = 0;
             update bulk set v = v * 2 where a % 2 = 0;
             update bulk set doc = jsonb_build_object('a', a), day = null where a <= 1000;
             update bulk set a = -a where a % 10 = 0;
             delete from bulk where a > 0 and a % 7 = 0;
             insert into bulk select i, 'again', 0, null, null, null from generate_series(7, 700, 7) i;
             update bulk set v = v + 1 where b = 'again';
             update bulk_places set place = place - 1;
             delete from bulk_places where id > 400;
             update bulk_keyless set v = 0 where id <= 10;
             delete from bulk_keyless where id > 15;
             commit",
        )
        .await;
    let rows = "select count(*), sum(v), md5(string_agg(bulk::text, ';' order by a, b)),
                       (select count(*) || '|' || sum(place) from bulk_places),
                       (select count(*) || '|' || sum(v) from bulk_keyless)
                from bulk";
    cluster.all_show_as(2, rows).await;
    cluster.all_show("select count(*), sum(place) from bulk_places", &["400|79800"]).await;
    cluster.all_show("select count(*), sum(v) from bulk_keyless", &["15|65"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_without_primary_key_replicates_by_its_whole_rows() {
    let cluster = shared().await;
    cluster.node(1).sql("create table keyless (a int, b text)").await;
    cluster.node(1).sql("insert into keyless values (1, 'x'), (1, 'x'), (2, null), (3, 'z')").await;
    cluster.all_show("select a, b from keyless order by a", &["1|x", "1|x", "2|", "3|z"]).await;
    cluster.node(2).sql("update keyless set b = 'was null' where a = 2").await;
    cluster.all_show("select b from keyless where a = 2", &["was null"]).await;
    cluster
        .node(2)
        .sql("delete from keyless where ctid = (select min(ctid) from keyless where a = 1)")
        .await;
    cluster.all_show("select a, b from keyless order by a", &["1|x", "2|was null", "3|z"]).await;
    cluster.node(3).sql("delete from keyless where a = 3").await;
    cluster.all_show("select a from keyless order by a", &["1", "2"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn truncates_reach_every_table_they_name() {
    let cluster = shared().await;
    let tables = "create table emptied (id serial primary key, v int);
                  create table emptied_child (id int primary key, parent int references emptied (id))";
    cluster.node(1).sql(tables).await;
    cluster
        .node(1)
        .sql(
            "insert into emptied (id, v) values (1, 1), (2, 2);
             insert into emptied_child values (1, 1)",
        )
        .await;
    cluster.all_show("select count(*) from emptied_child", &["1"]).await;
    cluster.node(2).sql("truncate emptied cascade").await;
    cluster
        .all_show(
            "select (select count(*) from emptied), (select count(*) from emptied_child)",
            &["0|0"],
        )
        .await;
    cluster.node(3).sql("insert into emptied (v) values (3)").await;
    cluster.all_show("select v from emptied", &["3"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn foreign_keys_hold_on_every_node() {
    let cluster = shared().await;
    cluster
        .node(1)
        .sql(
            "create table parents (id int primary key);
             create table children (id int primary key, parent int references parents (id) on delete cascade)",
        )
        .await;
    cluster
        .node(1)
        .sql(
            "insert into parents values (1), (2);
             insert into children values (1, 1), (2, 1), (3, 2)",
        )
        .await;
    cluster.all_show("select count(*) from children", &["3"]).await;
    cluster.node(2).sql("delete from parents where id = 1").await;
    cluster.all_show("select id, parent from children", &["3|2"]).await;
    assert_eq!(
        cluster.node(3).server().sqlstate("insert into children values (9, 9)").await,
        "23503"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn triggers_fire_once_where_the_row_was_written() {
    let cluster = shared().await;
    cluster
        .node(1)
        .sql(
            "create table watched (id int primary key, v int);
             create table watched_log (id int primary key, note text);
             create function watched_note() returns trigger language plpgsql as
             $$ begin insert into watched_log values (new.id, 'seen'); return new; end $$;
             create trigger watched_note after insert on watched for each row execute function watched_note()",
        )
        .await;
    cluster.all_show("select count(*) from pg_trigger where tgname = 'watched_note'", &["1"]).await;
    cluster.node(2).sql("insert into watched values (1, 1), (2, 2)").await;
    // Fired again on the others, the second insert into the log would break its key and stop the stream.
    cluster.all_show("select id, note from watched_log order by id", &["1|seen", "2|seen"]).await;
    cluster.node(3).sql("insert into watched values (3, 3)").await;
    cluster.all_show("select count(*) from watched_log", &["3"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_update_that_follows_an_insert_of_another_node_is_not_lost() {
    let cluster = shared().await;
    cluster.node(1).sql("create table followed (id int primary key, v text)").await;
    cluster.all_show("select count(*) from followed", &["0"]).await;
    for id in 1..=50 {
        cluster.node(1).sql(&format!("insert into followed values ({id}, 'first')")).await;
        let seen = format!("select v from followed where id = {id}");
        synapsedb_dev::eventually("node 2 has the row", crate::NOTICED, async || {
            cluster.node(2).shows(&seen, &["first"]).await
        })
        .await;
        cluster.node(2).sql(&format!("update followed set v = 'second' where id = {id}")).await;
    }
    cluster.all_show("select v, count(*) from followed group by v", &["second|50"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_later_write_of_one_row_wins_everywhere() {
    let cluster = shared().await;
    cluster
        .node(1)
        .sql(
            "create table contested (id int primary key, v text);
             insert into contested values (1, 'start')",
        )
        .await;
    cluster.all_show("select v from contested", &["start"]).await;
    let sessions = [
        cluster.node(1).session().await,
        cluster.node(2).session().await,
        cluster.node(3).session().await,
    ];
    for round in 1..=30 {
        let [first, second, third] =
            [1, 2, 3].map(|node| format!("update contested set v = 'node {node} round {round}'"));
        let (one, two, three) = tokio::join!(
            sessions[0].rows(&first),
            sessions[1].rows(&second),
            sessions[2].rows(&third),
        );
        // A row that is being applied may be locked for a moment, never refused.
        one.and(two).and(three).unwrap();
    }
    synapsedb_dev::eventually(
        "all nodes hold the same winner",
        synapsedb_dev::cluster::EQUAL_TIMEOUT,
        async || {
            let winner = cluster.node(1).value("select v from contested").await;
            for node in cluster.nodes() {
                node.shows("select v from contested", &[&winner]).await?;
            }
            if winner.ends_with("round 30") {
                Ok(())
            } else {
                Err(format!("the winner is {winner}"))
            }
        },
    )
    .await;
}
