//! The settings that are the router's own look like a server's, in both protocols; and a token that is asked for comes
//! with each write.

use super::script::{bind, bind_to, close, describe, execute, parse, q, sync, x};
use super::wire::Wire;
use crate::routed::{Way, database, routed};

const TEXT: u32 = 25;

#[tokio::test(flavor = "multi_thread")]
async fn own_settings_by_the_extended_protocol() {
    let cluster = routed().await;
    let server = database(&cluster, "own_settings", Way::Read).await;
    let (mut wire, _) = Wire::login(&server, &[("synapsedb.consistency", "eventual")]).await;
    let row = format!("T synapsedb.consistency:{TEXT}");
    // Unnamed, as most drivers do it: with Describe of the statement, or of the portal.
    let show = "show synapsedb.consistency";
    let asked = x([
        parse("", show),
        describe(b'S', ""),
        bind("", &[]),
        describe(b'P', ""),
        execute("", 0),
        sync(),
    ]);
    let said = asked.on(&mut wire).await;
    let all = ["1", "t", &row, "2", &row, "D eventual", "C SELECT 1", "Z I"];
    assert_eq!(said, all, "the startup packet sets it");

    // By name: prepared once, and each answer is that of its moment, also in a transaction.
    let prepared =
        x([parse("shows", show), parse("sets", "set synapsedb.consistency = session"), sync()]);
    assert_eq!(prepared.on(&mut wire).await, ["1", "1", "Z I"]);
    let run = |name: &str| x([bind(name, &[]), execute("", 0), sync()]);
    assert_eq!(run("shows").on(&mut wire).await, ["2", "D eventual", "C SELECT 1", "Z I"]);
    assert_eq!(run("sets").on(&mut wire).await, ["2", "C SET", "Z I"]);
    assert_eq!(run("shows").on(&mut wire).await, ["2", "D session", "C SELECT 1", "Z I"]);
    assert_eq!(q("begin").on(&mut wire).await, ["C BEGIN", "Z T"]);
    let both = x([
        bind_to("a", "shows", &[]),
        bind_to("b", "shows", &[]),
        execute("a", 0),
        execute("b", 0),
        close(b'S', "shows"),
        sync(),
    ]);
    let twice = ["2", "2", "D session", "C SELECT 1", "D session", "C SELECT 1", "3", "Z T"];
    assert_eq!(both.on(&mut wire).await, twice);
    assert_eq!(q("commit").on(&mut wire).await, ["C COMMIT", "Z I"]);
    let gone = run("shows").on(&mut wire).await;
    assert!(gone[0].contains("C=26000") && gone[0].contains("\"shows\""), "{gone:?}");
    // Back to what the startup packet said; by the simple protocol it is the same.
    let reset =
        x([parse("", "reset synapsedb.consistency"), bind("", &[]), execute("", 0), sync()]);
    assert_eq!(reset.on(&mut wire).await, ["1", "2", "C RESET", "Z I"]);
    assert_eq!(q(show).on(&mut wire).await, [&row, "D eventual", "C SELECT 1", "Z I"]);

    // What cannot be set is an error of the statement, in a pipeline as well.
    let wrong = "set synapsedb.consistency = nonsense";
    let refused = x([
        parse("", wrong),
        bind("", &[]),
        execute("", 0),
        sync(),
        parse("", show),
        bind("", &[]),
        execute("", 0),
        sync(),
    ]);
    let said = refused.on(&mut wire).await;
    assert!(said[2].contains("C=22023") && said[2].contains("nonsense"), "{said:?}");
    assert_eq!(said[3..], ["Z I", "1", "2", "D eventual", "C SELECT 1", "Z I"], "{said:?}");
    let token = x([parse("", "show synapsedb.token"), bind("", &[]), execute("", 0), sync()]);
    let said = token.on(&mut wire).await;
    assert!(said[2].starts_with("D 1="), "{said:?}");

    let (_, refused) = Wire::login(&server, &[("synapsedb.consistency", "nonsense")]).await;
    assert!(refused.iter().any(|line| line.contains("C=22023")), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_reported_to_those_who_ask_before_the_server_is_ready() {
    let cluster = routed().await;
    for (way, name) in [(Way::Write, "told_write"), (Way::Read, "told_read")] {
        let server = database(&cluster, name, way).await;
        let (mut wire, _) =
            Wire::login(&server, &[("options", "-c synapsedb.report_token=on")]).await;
        // Nothing was written, so there is nothing to tell.
        assert_eq!(wire.query("select 1").await.len(), 4);
        let mut last = String::new();
        let insert = |id: u32| format!("insert into items values ({id}, 'x')");
        for id in 10..13 {
            let said = wire.query(&insert(id)).await;
            assert_eq!((said[0].as_str(), said[2].as_str()), ("C INSERT 0 1", "Z I"), "{said:?}");
            let token = said[1].strip_prefix("S synapsedb.token=1=").unwrap().to_owned();
            assert!(token != last && token.contains('/'), "{said:?}");
            last = token;
        }
        // At the end of a transaction; in a pipeline with the last answer; on a connection that the client keeps.
        assert_eq!(wire.query("begin").await, ["C BEGIN", "Z T"]);
        assert_eq!(wire.query(&insert(20)).await, ["C INSERT 0 1", "Z T"]);
        let said = wire.query("commit").await;
        assert!(said[1].starts_with("S synapsedb.token=1=") && said.len() == 3, "{said:?}");
        let piped = x([
            parse("", &insert(21)),
            bind("", &[]),
            execute("", 0),
            sync(),
            parse("", "select 1"),
            bind("", &[]),
            execute("", 0),
            sync(),
        ]);
        let said = piped.on(&mut wire).await;
        let told = said.iter().filter(|line| line.starts_with("S synapsedb.token=")).count();
        assert!(told >= 1 && said.last().unwrap() == "Z I", "{said:?}");
        wire.query("create temp table mine (v text)").await;
        let said = wire.query(&insert(22)).await;
        assert!(said[1].starts_with("S synapsedb.token=1=") && said.len() == 3, "{said:?}");
        assert_eq!(wire.query("select v from mine").await.last().unwrap(), "Z I");
        // A write that failed has written nothing that must be seen, and its error is told as ever.
        let said = wire.query(&insert(22)).await;
        assert!(said[0].contains("C=23505") && said.last().unwrap() == "Z I", "{said:?}");
        wire.query("set synapsedb.report_token = off").await;
        assert_eq!(wire.query(&insert(23)).await, ["C INSERT 0 1", "Z I"]);
        wire.query("drop table mine").await;
    }
}

/// A session that keeps its server connection has no choice of a node, and the promise holds all the same.
#[tokio::test(flavor = "multi_thread")]
async fn global_reads_on_a_connection_that_is_kept() {
    let cluster = routed().await;
    let server = database(&cluster, "kept_global", Way::Read).await;
    let (mut wire, _) = Wire::login(&server, &[]).await;
    wire.query("create temp table mine (v text)").await;
    assert_eq!(wire.query("set synapsedb.consistency = global").await, ["C SET", "Z I"]);
    for _ in 0..3 {
        assert_eq!(wire.query("select count(*) from mine").await[1], "D 0");
    }
    // A pipeline of transactions, one of which takes data.
    let piped = x([
        parse("", "insert into mine values ('a')"),
        bind("", &[]),
        execute("", 0),
        sync(),
        parse("", "select count(*) from mine"),
        bind("", &[]),
        execute("", 0),
        sync(),
    ]);
    let said = piped.on(&mut wire).await;
    assert!(said.contains(&"D 1".to_owned()), "{said:?}");
    // A position that is not there yet: refused, and the session goes on.
    wire.query("set synapsedb.token = '1=FFFFFF/0'").await;
    let said = wire.query("select 1").await;
    assert!(said[0].contains("C=SY002") && said[1] == "Z I", "{said:?}");
    let batch = x([parse("", "select 1"), bind("", &[]), execute("", 0), sync()]);
    let said = batch.on(&mut wire).await;
    assert!(said[0].contains("C=SY002") && said[1] == "Z I" && said.len() == 2, "{said:?}");
    // Who may not read may ask why, and read otherwise; what comes along with that is not let through with it.
    let route = wire.query("show synapsedb.last_route").await;
    assert!(route[1].contains("global"), "{route:?}");
    let both = x([
        parse("", "show synapsedb.token"),
        parse("", "select 1"),
        bind("", &[]),
        execute("", 0),
        sync(),
    ]);
    let said = both.on(&mut wire).await;
    assert!(said[0].contains("C=SY002"), "{said:?}");
    let set = "set synapsedb.consistency = eventual";
    let otherwise = x([parse("", set), bind("", &[]), execute("", 0), sync()]);
    assert_eq!(otherwise.on(&mut wire).await, ["1", "2", "C SET", "Z I"]);
    assert_eq!(wire.query("select count(*) from mine").await[1], "D 1");
    // The same without a connection of its own; the read comes close behind.
    let (mut wire, _) = Wire::login(&server, &[("synapsedb.token", "1=FFFFFF/0")]).await;
    assert!(wire.query("select 1").await[0].contains("C=SY002"));
    let piped = x([
        parse("", "show synapsedb.consistency"),
        bind("", &[]),
        execute("", 0),
        sync(),
        parse("", "select 1"),
        bind("", &[]),
        execute("", 0),
        sync(),
    ]);
    let said = piped.on(&mut wire).await;
    assert!(said[0].contains("C=SY002"), "{said:?}");
    assert_eq!(wire.query("show synapsedb.consistency").await[1], "D session");
    assert_eq!(wire.query(set).await, ["C SET", "Z I"]);
    assert_eq!(wire.query("select 1").await[1], "D 1");
}
