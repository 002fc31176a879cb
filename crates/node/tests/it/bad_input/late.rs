//! What one node could not apply in its turn, and applies later, counts as if it had come in time: also when the other
//! nodes have long forgotten what it met.

use std::time::Duration;

use synapsedb_dev::{Cluster, eventually};

use super::{cluster, only_here, retry_all};
use crate::NOTICED;

/// How long a node that forgets what all have seen may take to do it, four times over.
const FORGETTING: Duration = Duration::from_secs(1);

/// All nodes write into a table of ids and see each other's writes, twice, so that everybody has seen everything
/// before; then it is forgotten where nothing holds it.
pub(crate) async fn everything_was_seen(cluster: &Cluster, table: &str) {
    for round in 1..=2 {
        for node in cluster.nodes() {
            node.sql(&format!("insert into {table} default values")).await;
        }
        let count = (3 * round).to_string();
        cluster.all_show(&format!("select count(*) from {table}"), &[&count]).await;
    }
    tokio::time::sleep(FORGETTING).await;
}

const SET_UP: &str = "
    create table late_seen (id serial primary key);
    create table late_merge (id int primary key, v text);
    create table late_sum (id int primary key, n int);
    create table late_plain (id int primary key, v text);
    create function late_larger(a jsonb, b jsonb) returns jsonb language sql as
        $$ select case when a ->> 'v' > b ->> 'v' then a else b end $$;
    create function late_refuse() returns trigger language plpgsql as $$ begin
        if tg_table_name = 'late_plain' and to_jsonb(new) ->> 'v' = 'refused'
            or tg_table_name = 'late_sum' and tg_op = 'UPDATE'
                and (to_jsonb(new) ->> 'n')::int - (to_jsonb(old) ->> 'n')::int = 5 then
            raise exception 'not today';
        end if;
        return new;
    end $$;
    create trigger late_refuse before insert or update on late_plain for each row execute function late_refuse();
    create trigger late_refuse before insert or update on late_sum for each row execute function late_refuse();
    insert into late_merge values (1, 'old'), (2, 'old');
    insert into late_sum values (1, 10), (2, 10);
    insert into late_plain values (1, 'old');
    select synapsedb.set_policy('late_merge', 'function(public.late_larger)');
    select synapsedb.set_delta('late_sum', 'n')";

/// What only node 1 refuses.
const REFUSE: &str = "
    create or replace function late_larger(a jsonb, b jsonb) returns jsonb language plpgsql as
        $$ begin raise exception 'no merge today'; end $$;
    alter table late_plain enable always trigger late_refuse;
    alter table late_sum enable always trigger late_refuse";

const MEND: &str = "
    create or replace function late_larger(a jsonb, b jsonb) returns jsonb language sql as
        $$ select case when a ->> 'v' > b ->> 'v' then a else b end $$;
    alter table late_plain disable trigger late_refuse;
    alter table late_sum disable trigger late_refuse";

#[tokio::test(flavor = "multi_thread")]
async fn what_was_set_aside_counts_as_if_it_had_come_in_time() {
    let (cluster, _turn) = cluster().await;
    let [one, two] = [1, 2].map(|number| cluster.node(number));
    for node in cluster.nodes() {
        node.agent_server().sql("delete from synapsedb.quarantine").await;
    }
    one.sql(SET_UP).await;
    cluster
        .all_show(
            "select count(*) from synapsedb.policies() where policy like '%late_larger%'",
            &["1"],
        )
        .await;
    cluster.all_show("select v from late_plain", &["old"]).await;
    for node in cluster.nodes() {
        only_here(
            node,
            "alter table late_plain disable trigger late_refuse; alter table late_sum disable trigger late_refuse",
        )
        .await;
    }
    only_here(one, REFUSE).await;
    crate::conflicts::concurrently(
        &cluster,
        &[
            // The later write stays where nobody remembers, the larger one where the function decides.
            (2, "update late_merge set v = 'two'"),
            (1, "update late_merge set v = 'one'"),
            // A concurrent update adds up with it; a later one of its origin has it in its row.
            (2, "update late_sum set n = n + 5"),
            (3, "update late_sum set n = n + 100 where id = 2"),
            (2, "update late_sum set n = n + 1 where id = 1"),
            // What its origin did to the row afterwards stays done.
            (2, "update late_plain set v = 'refused' where id = 1"),
            (2, "update late_plain set v = 'new' where id = 1"),
            (2, "insert into late_plain values (2, 'refused')"),
        ],
    )
    .await;
    eventually("node 1 sets aside what it refuses", NOTICED, async || {
        let aside = "select table_name, count(*) from synapsedb.quarantine group by 1 order by 1";
        one.shows(aside, &["late_merge|2", "late_plain|2", "late_sum|2"]).await
    })
    .await;
    two.sql("delete from late_plain where id = 2").await;
    let expected = [
        ("select v from late_merge order by id", vec!["two", "two"]),
        ("select n from late_sum order by id", vec!["16", "115"]),
        ("select v from late_plain order by id", vec!["new"]),
    ];
    for (sql, rows) in &expected {
        eventually("the others are as it shall be", NOTICED, async || two.shows(sql, rows).await)
            .await;
    }
    everything_was_seen(&cluster, "late_seen").await;
    only_here(one, MEND).await;
    retry_all(&cluster, one).await;
    for (sql, rows) in &expected {
        cluster.all_show(sql, rows).await;
    }
    cluster.assert_equal_rows().await;
}
