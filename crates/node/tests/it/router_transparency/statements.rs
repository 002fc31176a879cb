//! Prepared statements and portals.

use super::script::{bind, bind_to, close, describe, execute, parse, q, run, same, sync, until, x};

#[tokio::test(flavor = "multi_thread")]
async fn statements_prepared_by_the_protocol_are_kept() {
    same(
        "by_protocol",
        &[],
        &[
            x([parse("s1", "select v || $1 from items where id = $2"), sync()])
                .shows(&["1", "Z I"]),
            run("s1", &["!", "1"]).shows(&["2", "D one!", "C SELECT 1"]),
            x([describe(b'S', "s1"), sync()]).shows(&["t 25,23"]),
            q("begin"),
            run("s1", &["?", "1"]).shows(&["D one?"]),
            q("commit"),
            // A name that is taken.
            x([parse("s1", "select 2"), sync()]),
            run("s1", &["!", "1"]).shows(&["D one!"]),
            x([close(b'S', "s1"), parse("s1", "select 'again'"), sync()]).shows(&["3", "1"]),
            run("s1", &[]).shows(&["D again"]),
            run("no_such", &[]),
            x([describe(b'S', "no_such"), sync()]),
            x([close(b'S', "no_such"), sync()]).shows(&["3"]),
            // A statement that is refused is not there.
            x([parse("bad", "selec 1"), sync()]),
            run("bad", &[]),
            // Prepared in a transaction that is undone: it stays, as PostgreSQL keeps it.
            q("begin"),
            x([parse("inside", "select 'inside'"), sync()]),
            q("rollback"),
            run("inside", &[]).shows(&["D inside"]),
        ],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_unnamed_statement_is_kept() {
    same(
        "unnamed",
        &[],
        &[
            x([parse("", "select $1::int + 1"), sync()]),
            run("", &["1"]).shows(&["D 2"]),
            run("", &["2"]).shows(&["D 3"]),
            x([describe(b'S', ""), sync()]).shows(&["t 23"]),
            // A simple query ends it.
            q("select 1"),
            run("", &["3"]),
            x([parse("", "select 1"), bind("", &[]), describe(b'P', ""), execute("", 0), sync()])
                .shows(&["1", "2", "D 1", "C SELECT 1"]),
            // A failed one leaves none.
            x([parse("", "selec"), sync()]),
            run("", &[]),
        ],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn statements_prepared_by_sql_are_kept() {
    same(
        "by_sql",
        &[],
        &[
            q("prepare p (int) as select $1 + 1"),
            q("execute p (1)").shows(&["D 2"]),
            q("begin; execute p (2); commit").shows(&["D 3"]),
            q("prepare p as select 1"),
            q("select name, from_sql from pg_prepared_statements").shows(&["D p|t"]),
            q("deallocate p"),
            q("execute p (1)"),
            q("deallocate no_such"),
        ],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn deallocate_and_discard_forget_everything_at_once() {
    let both = || x([parse("s", "select 's'"), parse("t", "select 't'"), sync()]);
    same(
        "deallocate",
        &[],
        &[
            both(),
            q("deallocate all"),
            run("s", &[]),
            both().shows(&["1", "1", "Z I"]),
            q("discard all"),
            run("t", &[]),
            both().shows(&["1", "1", "Z I"]),
            q("discard plans"),
            run("s", &[]).shows(&["D s"]),
            x([parse("", "deallocate all"), bind("", &[]), execute("", 0), sync()]),
            run("s", &[]),
            both().shows(&["1", "1", "Z I"]),
            q("deallocate s"),
            run("s", &[]),
            run("t", &[]).shows(&["D t"]),
        ],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "not transparent by transaction: docs/TECHNICAL_SPECIFICATIONS.md, Router"]
async fn sql_and_protocol_share_one_name_space() {
    same(
        "name_space",
        &[],
        &[
            q("prepare p (int) as select $1 + 1"),
            run("p", &["5"]).shows(&["D 6"]),
            x([describe(b'S', "p"), sync()]).shows(&["t 23"]),
            x([parse("p", "select 'taken'"), sync()]),
            x([close(b'S', "p"), sync()]).shows(&["3"]),
            q("execute p (1)"),
            x([parse("q", "select 'by protocol'"), sync()]),
            q("prepare q as select 'taken'"),
            q("execute q").shows(&["D by protocol"]),
            q("begin; execute q; commit").shows(&["D by protocol"]),
            q("create table made as execute q").shows(&["C SELECT 1"]),
            q("deallocate q"),
            run("q", &[]),
        ],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "not transparent by transaction: docs/TECHNICAL_SPECIFICATIONS.md, Router"]
async fn deallocate_is_seen_among_other_statements() {
    same(
        "among_others",
        &[],
        &[
            x([parse("s", "select 's'"), parse("t", "select 't'"), sync()]),
            q("begin; deallocate s; rollback"),
            run("s", &[]),
            run("t", &[]).shows(&["D t"]),
            q("begin; deallocate all; select 1/0; commit"),
            q("rollback"),
            run("t", &[]),
        ],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "not transparent by transaction: docs/TECHNICAL_SPECIFICATIONS.md, Router"]
async fn the_view_of_prepared_statements_is_the_clients_own() {
    same(
        "view",
        &[],
        &[
            x([parse("s", "select 's'"), parse("t", "select 't'"), sync()]),
            run("s", &[]).shows(&["D s"]),
            x([close(b'S', "t"), sync()]),
            q("select name, statement, from_sql from pg_prepared_statements order by 1")
                .shows(&["D s|select 's'|f"]),
        ],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schema_change_under_a_plan_is_an_error_once() {
    same(
        "cached_plan",
        &[],
        &[
            x([parse("all", "select * from items"), sync()]),
            run("all", &[]).shows(&["D 1|one"]),
            q("alter table items add column more int default 7"),
            run("all", &[]).shows(&["E S=ERROR C=0A000 M=cached plan must not change result type"]),
            // What drivers do then.
            x([close(b'S', "all"), parse("all", "select * from items"), sync()]),
            run("all", &[]).shows(&["D 1|one|7"]),
            q("alter table items drop column more"),
            x([close(b'S', "all"), sync()]),
            x([parse("other", "select * from items"), sync()]),
            run("other", &[]).shows(&["D 1|one"]),
            q("alter table items alter column v type varchar(20)"),
            x([close(b'S', "other"), parse("other", "select * from items"), sync()]),
            run("other", &[]).shows(&["D 1|one"]),
        ],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_text_means_what_the_search_path_says() {
    same(
        "meaning",
        &[],
        &[
            q("create schema a; create schema b"),
            q("create table a.t as select 'a' as v; create table b.t as select 'b' as v"),
            q("set search_path = a"),
            x([parse("t", "select v from t"), sync()]),
            run("t", &[]).shows(&["D a"]),
            q("set search_path = b"),
            run("t", &[]).shows(&["D b"]),
            x([parse("u", "select v from t"), sync()]),
            q("set search_path = a"),
            run("u", &[]).shows(&["D a"]),
        ],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn portals_live_as_long_as_their_transaction() {
    let series = || parse("series", "select generate_series(1, 5)");
    same(
        "portals",
        &[],
        &[
            x([series(), sync()]),
            q("begin"),
            x([bind_to("p", "series", &[]), execute("p", 2), sync()]).shows(&["D 2", "s", "Z T"]),
            x([execute("p", 2), sync()]).shows(&["D 3", "D 4", "s"]),
            x([describe(b'P', "p"), sync()]).shows(&["T generate_series:23"]),
            x([bind_to("p", "series", &[]), sync()]),
            q("rollback"),
            q("begin"),
            x([bind_to("q", "series", &[]), execute("q", 1), sync()]).shows(&["D 1"]),
            q("fetch 2 from q").shows(&["D 2", "D 3"]),
            x([close(b'P', "q"), sync()]).shows(&["3"]),
            x([execute("q", 1), sync()]),
            q("commit"),
            x([bind_to("r", "series", &[]), sync()]).shows(&["2", "Z I"]),
            // Its transaction has ended with the Sync.
            x([execute("r", 0), sync()]),
            x([bind_to("", "series", &[]), execute("", 2), sync()]).shows(&["D 2", "s", "Z I"]),
            x([execute("", 2), sync()]),
        ],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pipelines_stop_at_an_error_until_the_next_sync() {
    same(
        "pipelines",
        &[],
        &[
            x([
                parse("", "insert into items values (10, 'ten')"),
                bind("", &[]),
                execute("", 0),
                parse("", "select 1/0"),
                bind("", &[]),
                execute("", 0),
                parse("", "select 'not run'"),
                bind("", &[]),
                execute("", 0),
                sync(),
                parse("s", "select 'after'"),
                bind("s", &[]),
                execute("", 0),
                sync(),
                bind("s", &[]),
                execute("", 0),
                sync(),
            ])
            .shows(&["C INSERT 0 1", "Z I", "D after", "Z I", "D after", "Z I"]),
            // One transaction until the Sync: the insert is undone.
            q("select count(*) from items where id = 10").shows(&["D 0"]),
            x([
                parse("b", "begin"),
                bind("b", &[]),
                execute("", 0),
                sync(),
                parse("", "insert into items values (11, 'eleven')"),
                bind("", &[]),
                execute("", 0),
                sync(),
                parse("c", "commit"),
                bind("c", &[]),
                execute("", 0),
                sync(),
            ])
            .shows(&["C BEGIN", "Z T", "C INSERT 0 1", "Z T", "C COMMIT", "Z I"]),
            q("select count(*) from items where id = 11").shows(&["D 1"]),
            x([sync(), sync(), sync()]).shows(&["Z I", "Z I", "Z I"]),
            // Named in one pipeline with its first use, after an error before it in the same one.
            x([parse("x", "selec"), parse("y", "select 1"), sync(), bind("y", &[]), sync()]),
        ],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn flushes_are_answered_without_a_sync() {
    use super::script::raw;
    same(
        "flushes",
        &[],
        &[
            until(b'1', [parse("f", "select 'flushed'"), raw(b'H', b"")]).shows(&["1"]),
            until(b'C', [bind("f", &[]), execute("", 0), raw(b'H', b"")]).shows(&["D flushed"]),
            x([sync()]).shows(&["Z I"]),
            until(b'2', [bind("f", &[]), raw(b'H', b"")]).shows(&["2"]),
            x([execute("", 0), sync()]).shows(&["D flushed", "Z I"]),
        ],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn more_statements_than_a_pool_remembers() {
    let mut steps = Vec::new();
    for batch in 0..4 {
        let names: Vec<_> = (0..150).map(|n| format!("s{}", batch * 150 + n)).collect();
        let mut parts: Vec<_> =
            names.iter().map(|name| parse(name, &format!("select '{name}'"))).collect();
        parts.push(sync());
        steps.push(x(parts));
    }
    for n in [0, 149, 150, 451, 599, 0] {
        steps.push(run(&format!("s{n}"), &[]).shows(&[&format!("D s{n}")]));
    }
    same("many", &[], &steps).await;
}
