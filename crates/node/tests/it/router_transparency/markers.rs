//! Markers in front of what commits are not to be seen: in the database that is replicated, the only one in which there
//! are any, each answer is that of a direct connection; and the WAL shows that they were there.

use super::script::{
    Part, Step, bind, bind_to, close, describe, execute, parse, q, raw, same_in, sync, x,
};
use crate::routed::routed;

const TABLES: &str = "create table items (id int primary key, v text);
    insert into items values (1, 'one');
    create table children (id int primary key, parent int references items deferrable initially deferred);
    create table audit (query text);
    create function note() returns trigger language plpgsql as
        $$ begin insert into audit values (current_query()); return null; end $$;
    create trigger note after insert on children for each statement execute function note();
    create function writes() returns void language sql as 'insert into items values (1000, ''f'')'";

/// A slot that keeps the WAL until it has been counted.
const SLOT: &str = "select pg_create_logical_replication_slot('markers', 'pgoutput')";
const COUNT: &str = "select count(*) from pg_logical_slot_get_binary_changes('markers', null, null,
    'proto_version', '1', 'publication_names', 'synapsedb', 'messages', 'true')
    where encode(data, 'escape') like 'M%synapsedb.outcome%'";

fn batch(sql: &str) -> Vec<Part> {
    vec![parse("", sql), bind("", &[]), describe(b'P', ""), execute("", 0)]
}

fn batches(texts: &[&str]) -> Step {
    let mut parts: Vec<Part> = texts.iter().flat_map(|text| batch(text)).collect();
    parts.push(sync());
    x(parts)
}

fn blocks_by_query() -> Vec<Step> {
    vec![
        // Transaction blocks by Query: 2 markers, as two of them have written.
        q("begin"),
        q("insert into items values (2, 'two')").shows(&["C INSERT 0 1", "Z T"]),
        q("commit").shows(&["C COMMIT", "Z I"]),
        q("begin"),
        q("update items set v = 'x' where id = 1"),
        q("savepoint a"),
        q("insert into items values (3, 'three')"),
        q("end work").shows(&["C COMMIT", "Z I"]),
        q("begin; select 1"),
        q("commit").shows(&["C COMMIT", "Z I"]),
        // None: what is rolled back, has failed or has not written.
        q("begin; insert into items values (4, 'four')"),
        q("rollback").shows(&["C ROLLBACK", "Z I"]),
        q("begin; insert into items values (4, 'four')"),
        q("insert into items values (4, 'four')").shows(&["Z E"]),
        q("commit").shows(&["C ROLLBACK", "Z I"]),
        q("begin read only; select count(*) from items"),
        q("commit"),
        q("begin; update items set v = v where id = -1"),
        q("commit"),
        // One in a transaction whose COMMIT fails, and so in nothing.
        q("begin; insert into children values (1, 77)"),
        q("commit").shows(&["Z I"]),
        q("select count(*) from children").shows(&["D 0"]),
        // 2: in each part of a chain.
        q("begin; insert into items values (5, 'five')"),
        q("commit and chain").shows(&["C COMMIT", "Z T"]),
        q("insert into items values (6, 'six')"),
        q("commit and no chain").shows(&["C COMMIT", "Z I"]),
    ]
}

fn blocks_by_batch() -> Vec<Step> {
    vec![
        // By the extended protocol: 3.
        batches(&["begin", "insert into items values (7, 'seven')", "commit"])
            .shows(&["C COMMIT", "Z I"]),
        batches(&["begin", "insert into items values (8, 'eight')"]),
        batches(&["commit"]).shows(&["1", "2", "n", "C COMMIT", "Z I"]),
        batches(&["insert into items values (9, 'nine')", "commit"]),
        batches(&["begin", "insert into items values (9, 'again')", "commit"]).shows(&["Z E"]),
        batches(&["rollback"]),
    ]
}

fn outside_of_blocks() -> Vec<Step> {
    vec![
        // Writes outside a block: 4.
        batches(&["insert into items values (10, 'ten')"]).shows(&[
            "1",
            "2",
            "n",
            "C INSERT 0 1",
            "Z I",
        ]),
        batches(&["insert into items values (11, 'x') returning id, v"])
            .shows(&["D 11|x", "C INSERT 0 1"]),
        batches(&[
            "insert into items values (12, 'x')",
            "delete from items where id = 12",
            "select 1",
        ]),
        batches(&["with a as (insert into items values (13, 'x') returning 1) select * from a"]),
        // None.
        batches(&["insert into items values (13, 'x')"]),
        batches(&["insert into children values (2, 77)"]).shows(&["C INSERT 0 1", "Z I"]),
        batches(&["selec 1"]),
        batches(&["select 1"]),
        batches(&["update items set v = v where id = -1"]),
        batches(&["select writes()"]),
        batches(&["vacuum items"]),
        batches(&["truncate audit"]),
        q("insert into items values (14, 'x') returning v"),
        q("insert into items values (15, 'x'), (16"),
        q("insert into children values (3, 1)"),
        // 1: and no trigger sees a marker, by `current_query()` or else.
        batches(&["insert into children values (4, 1)"]),
        q("select * from audit"),
    ]
}

fn names() -> Vec<Step> {
    vec![
        // Prepared statements and portals with names: 1, and none where the portal has a name.
        x([parse("ins", "insert into items values ($1::int, $2)"), parse("end", "commit"), sync()]),
        x([bind("ins", &["20", "x"]), execute("", 0), sync()]),
        q("begin"),
        x([
            bind_to("p", "ins", &["21", "x"]),
            execute("p", 0),
            bind_to("c", "end", &[]),
            execute("c", 0),
            sync(),
        ]),
        // A cursor goes on where it was, up to the COMMIT: 1.
        q("begin"),
        x([parse("", "insert into items values (22, 'x')"), bind("", &[]), execute("", 0), sync()]),
        x([parse("", "select id from items order by id"), bind("", &[]), execute("", 2), sync()])
            .shows(&["D 1", "D 2", "s"]),
        x([
            execute("", 1),
            describe(b'S', "end"),
            bind("end", &[]),
            execute("", 0),
            close(b'S', "end"),
            sync(),
        ])
        .shows(&["D 3", "s", "C COMMIT", "Z I"]),
        // Nothing that takes the router's statements away is in the way: 2.
        q("begin; insert into items values (23, 'x')"),
        q("deallocate all"),
        q("commit").shows(&["C COMMIT"]),
        q("discard all"),
        batches(&["insert into items values (24, 'x')"]),
        // What is sent before the answer to something earlier: 1, and none for a transaction that fails meanwhile.
        q("begin; insert into items values (25, 'x')"),
        x([close(b'S', "none"), sync(), raw(b'Q', b"commit\0")])
            .shows(&["3", "Z T", "C COMMIT", "Z I"]),
        q("begin; insert into items values (26, 'x')"),
        x([raw(b'Q', b"insert into items values (26, 'y')\0"), raw(b'Q', b"commit\0")]).shows(&[
            "Z E",
            "C ROLLBACK",
            "Z I",
        ]),
        q("begin; insert into items values (26, 'x')"),
        x([raw(b'Q', b"rollback\0"), raw(b'Q', b"commit\0")]).shows(&[
            "C ROLLBACK",
            "Z I",
            "C COMMIT",
            "Z I",
        ]),
        q("begin; select 1"),
        x([
            raw(b'Q', b"commit\0"),
            raw(b'Q', b"insert into items values (27, 'x')\0"),
            raw(b'Q', b"commit\0"),
        ])
        .shows(&["C COMMIT", "C INSERT 0 1", "C COMMIT", "Z I"]),
        q("prepare transaction 'x'"),
        q("select id from items order by id"),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn markers_are_not_seen() {
    let cluster = routed().await;
    let node = cluster.node(1);
    let agent = node.agent_server();
    for name in ["markers_direct", "markers_routed"] {
        let tables = format!("create schema {name}; set search_path = {name}; {TABLES}");
        node.server().sql(&tables).await;
    }
    agent.sql(SLOT).await;
    let steps =
        [blocks_by_query(), blocks_by_batch(), outside_of_blocks(), names()].into_iter().flatten();
    let steps: Vec<Step> = steps.collect();
    let direct = ("markers_direct", node.server().clone());
    same_in(direct, ("markers_routed", cluster.write_endpoint()), &steps).await;
    let count = agent.value(COUNT).await;
    agent.sql("select pg_drop_replication_slot('markers')").await;
    assert_eq!(count, "17", "markers were written");
}
