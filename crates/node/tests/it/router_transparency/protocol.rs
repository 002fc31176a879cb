//! Messages of every kind, in and out of order.

use super::script::{bind, execute, parse, q, raw, same, sync, until, x};

#[tokio::test(flavor = "multi_thread")]
async fn answers_of_simple_queries() {
    same(
        "simple",
        &[],
        &[
            q("").shows(&["I", "Z I"]),
            q(" ; ").shows(&["I"]),
            q("select 1; select 'two' as b, null as c; insert into items values (9, 'nine')")
                .shows(&["D 1", "D two|NULL", "C INSERT 0 1", "Z I"]),
            q("select 1; select 1/0; select 2").shows(&["D 1", "Z I"]),
            q("selec 1"),
            q("select * from no_such_table"),
            q("do $$ begin raise notice 'said' using hint = 'a hint'; raise warning 'warned'; end $$")
                .shows(&["C DO"]),
            q("set client_min_messages = error"),
            q("do $$ begin raise notice 'not said'; end $$"),
            q("reset client_min_messages"),
            q("do $$ begin raise notice 'said again'; end $$"),
            q("commit").shows(&["N S=WARNING C=25P01 M=there is no transaction in progress"]),
            q("begin; begin; select 1").shows(&["Z T"]),
            q("select 1/0").shows(&["Z E"]),
            q("select 1").shows(&["Z E"]),
            q("commit and chain"),
            q("rollback"),
            q("begin; commit and chain").shows(&["Z T"]),
            q("rollback and chain").shows(&["Z T"]),
            q("abort").shows(&["Z I"]),
            q("select repeat('x', 100000)"),
        ],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_both_ways() {
    same(
        "copies",
        &[],
        &[
            q("copy items to stdout").shows(&["d 1\tone", "c", "C COPY 1"]),
            until(b'G', [raw(b'Q', b"copy items from stdin\0")]),
            x([raw(b'd', b"20\ttwenty\n21\ttwenty"), raw(b'd', b"-one\n"), raw(b'c', b"")])
                .shows(&["C COPY 2", "Z I"]),
            q("select v from items where id = 21").shows(&["D twenty-one"]),
            until(b'G', [raw(b'Q', b"copy items from stdin\0")]),
            x([raw(b'd', b"30\tthirty\n"), raw(b'f', b"changed my mind\0")]).shows(&["Z I"]),
            until(b'G', [raw(b'Q', b"copy items from stdin\0")]),
            // Sync and Flush within a copy are passed over.
            x([raw(b'H', b""), raw(b'd', b"31\tthirty-one\n"), raw(b'c', b"")])
                .shows(&["C COPY 1"]),
            until(b'G', [raw(b'Q', b"begin; copy items from stdin; select 'after'; commit\0")]),
            x([raw(b'd', b"32\tx\n"), raw(b'c', b"")]).shows(&["C COPY 1", "D after", "C COMMIT"]),
            until(b'G', [raw(b'Q', b"copy items from stdin\0")]),
            x([raw(b'd', b"not a number\tx\n"), raw(b'c', b"")]),
            // By the extended protocol.
            until(
                b'G',
                [parse("", "copy items from stdin"), bind("", &[]), execute("", 0), sync()],
            ),
            x([raw(b'd', b"40\tforty\n"), raw(b'c', b""), sync()]).shows(&["C COPY 1", "Z I"]),
            q("select id from items order by id").shows(&["D 40"]),
        ],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn function_calls() {
    // pg_catalog.int4pl by its number, with two text arguments and a text result.
    let mut call = Vec::new();
    call.extend_from_slice(&177u32.to_be_bytes());
    call.extend_from_slice(&[0, 0, 0, 2, 0, 0, 0, 1, b'2', 0, 0, 0, 1, b'3', 0, 0]);
    let mut unknown = call.clone();
    unknown[..4].copy_from_slice(&1u32.to_be_bytes());
    same(
        "calls",
        &[],
        &[
            x([raw(b'F', &call)]).shows(&["V [0, 0, 0, 1, 53]", "Z I"]),
            x([raw(b'F', &unknown)]).shows(&["Z I"]),
            q("begin"),
            x([raw(b'F', &call)]).shows(&["Z T"]),
            q("commit"),
        ],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_out_of_order_harm_nobody() {
    let unexpected: [(&str, u8, &[u8]); 6] = [
        ("out_copy_data", b'd', b"data\n"),
        ("out_copy_done", b'c', b""),
        ("out_copy_fail", b'f', b"why\0"),
        ("out_password", b'p', b"secret\0"),
        ("out_unknown", b'y', b"what"),
        ("out_broken_bind", b'B', b"\0"),
    ];
    for (name, tag, body) in unexpected {
        // A direct connection passes over what belongs to a copy, and ends at what it does not know.
        same(name, &[], &[q("select 1"), until(b'E', [raw(tag, body), sync()]), q("select 2")])
            .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_a_session_undoes_what_it_has_begun() {
    use super::wire::Wire;
    use crate::routed::{Way, database, routed};
    let cluster = routed().await;
    let server = database(&cluster, "left_open", Way::Write).await;
    for sudden in [false, true] {
        for _ in 0..4 {
            let (mut wire, _) = Wire::login(&server, &[]).await;
            wire.query("begin; set search_path = gone; insert into items values (50, 'x')").await;
            if !sudden {
                wire.send(&[b'X', 0, 0, 0, 4]).await;
            }
            drop(wire);
            let (mut next, _) = Wire::login(&server, &[]).await;
            let said = next.query("select count(*) from items where id = 50").await;
            assert_eq!(said[1..], ["D 0", "C SELECT 1", "Z I"]);
            assert_eq!(next.query("show search_path").await[1], "D \"$user\", public");
        }
    }
}
