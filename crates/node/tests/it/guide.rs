//! The deployment guide's first session, as its reader types it.

use crate::shared;

const USERS: &str =
    "create table if not exists users (id serial primary key, username text, email text)";
const ORDERS: &str =
    "create table if not exists orders (id serial primary key, user_id int references users (id),
    product_name text, amount numeric(12, 2))";

/// Both sample tables on all nodes, whoever made them.
async fn sample_tables(cluster: &synapsedb_dev::Cluster) {
    cluster.node(1).sql(&format!("{USERS}; {ORDERS}")).await;
    cluster
        .all_show(
            "select to_regclass('users') is not null, to_regclass('orders') is not null",
            &["t|t"],
        )
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_inserted_through_the_read_endpoint_is_on_every_node() {
    let cluster = shared().await;
    sample_tables(&cluster).await;
    let insert = "insert into users (username, email) values ('test_user', 'test@example.com')";
    cluster.read_endpoint().sql(insert).await;
    cluster
        .all_show("select email from users where username = 'test_user'", &["test@example.com"])
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_of_two_nodes_are_seen_on_the_third() {
    let cluster = shared().await;
    sample_tables(&cluster).await;
    let insert = |node| {
        format!(
            "insert into users (username, email) values ('user_node{node}', 'user{node}@test.com')"
        )
    };
    cluster.node(1).sql(&insert(1)).await;
    let seen = "select username from users where username like 'user\\_node_' order by username";
    cluster.all_show(seen, &["user_node1"]).await;
    cluster.node(2).sql(&insert(2)).await;
    cluster.all_show(seen, &["user_node1", "user_node2"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_made_on_one_node_takes_rows_on_all() {
    let cluster = shared().await;
    cluster
        .node(1)
        .sql("create table documents (id serial primary key, title text, content text, embedding_json jsonb)")
        .await;
    cluster.all_show("select count(*) from documents", &["0"]).await;
    for node in cluster.nodes() {
        let rows =
            (1..=5).map(|row| format!("('node {} row {row}', 'x', '[0.1, 0.2]')", node.number()));
        let rows = rows.collect::<Vec<_>>().join(", ");
        node.sql(&format!("insert into documents (title, content, embedding_json) values {rows}"))
            .await;
    }
    cluster.all_show("select count(*), count(distinct id) from documents", &["15|15"]).await;
    cluster.all_show_as(1, "select id, title, embedding_json from documents order by id").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_similarity_search_of_the_guide_answers_alike() {
    let cluster = shared().await;
    cluster
        .node(2)
        .sql("create table guide_vectors (id serial primary key, title text, embedding_json jsonb)")
        .await;
    cluster
        .node(2)
        .sql(
            "insert into guide_vectors (title, embedding_json) values ('Doc 1', '[0.1, 0.2, 0.3, 0.4]'),
             ('Doc 2', '[0.2, 0.3, 0.4, 0.5]'), ('Doc 3', '[0.9, 0.8, 0.7, 0.6]')",
        )
        .await;
    let search = "select title from guide_vectors order by (
            select sum(a.value::float * b.value::float)
            from jsonb_array_elements(embedding_json) with ordinality a(value, idx)
            join jsonb_array_elements('[0.15, 0.25, 0.35, 0.45]'::jsonb) with ordinality b(value, idx)
            on a.idx = b.idx) desc";
    cluster.all_show("select count(*) from guide_vectors", &["3"]).await;
    cluster.all_show(search, &["Doc 3", "Doc 2", "Doc 1"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_over_two_tables_is_seen_whole_or_not_at_all() {
    let cluster = shared().await;
    let tables = "create table whole_users (id bigint primary key, name text);
                  create table whole_orders (id bigint primary key, user_id bigint, amount numeric)";
    cluster.node(1).sql(tables).await;
    cluster.all_show("select to_regclass('whole_orders') is not null", &["t"]).await;
    // One statement is one snapshot: it sees a replicated transaction whole or it sees a fault.
    let torn = "select (select count(*) from whole_users), (select count(*) from whole_orders)";
    let watchers: Vec<_> = [2, 3]
        .into_iter()
        .map(|number| {
            let server = cluster.node(number).server().clone();
            tokio::spawn(async move {
                let session = server.session().await;
                loop {
                    let rows = session.rows(torn).await.unwrap();
                    let (users, orders) = rows[0].split_once('|').unwrap();
                    assert_eq!(users, orders, "node {number} shows half a transaction");
                    if users == "200" {
                        return;
                    }
                }
            })
        })
        .collect();
    let writer = cluster.node(1).session().await;
    for id in 1..=200 {
        let sql = format!(
            "begin; insert into whole_users values ({id}, 'u');
             insert into whole_orders values ({id}, {id}, 9.99); commit"
        );
        writer.batch_execute(&sql).await.unwrap();
    }
    for watcher in watchers {
        tokio::time::timeout(synapsedb_dev::cluster::EQUAL_TIMEOUT, watcher)
            .await
            .unwrap()
            .unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_rolled_back_is_nowhere() {
    let cluster = shared().await;
    cluster.node(1).sql("create table rolled (id int primary key)").await;
    let session = cluster.node(1).session().await;
    session.batch_execute("begin; insert into rolled values (1); rollback").await.unwrap();
    session
        .batch_execute(
            "begin; insert into rolled values (2); savepoint s; insert into rolled values (3);
             rollback to s; insert into rolled values (4); commit",
        )
        .await
        .unwrap();
    cluster.all_show("select id from rolled order by id", &["2", "4"]).await;
}
