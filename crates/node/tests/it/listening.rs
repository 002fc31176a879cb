//! LISTEN through the shared listeners of three nodes: a notification is heard on the node where it was sent, what is
//! lost is told, and operators and DROP DATABASE are not held up.

use synapsedb_dev::client::Server;
use synapsedb_dev::{Cluster, Node, eventually};

use crate::routed::{Way, database, routed};
use crate::router_transparency::wire::Wire;
use crate::{NOTICED, binary, cluster, shared};

/// A client that listens, by the protocol itself: what comes unasked is read, too.
async fn listening(server: &Server, channel: &str) -> Wire {
    let mut wire = Wire::login(server, &[]).await.0;
    assert_eq!(wire.query(&format!("listen {channel}")).await, ["C LISTEN", "Z I"]);
    wire
}

async fn value(wire: &mut Wire, sql: &str) -> String {
    let said = wire.query(sql).await;
    let row = said.iter().find_map(|line| line.strip_prefix("D "));
    row.unwrap_or_else(|| panic!("{sql}: {said:?}")).to_owned()
}

/// What it hears next.
async fn next(wire: &mut Wire) -> String {
    wire.until(b'A').await.pop().unwrap()
}

/// The node at which a session is.
async fn node_of<'a>(cluster: &'a Cluster, wire: &mut Wire) -> &'a Node {
    let port = value(wire, "select current_setting('port')").await;
    let found = cluster.nodes().iter().find(|node| node.server().port.to_string() == port);
    found.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_notification_is_heard_on_the_node_where_it_was_sent() {
    let cluster = shared().await;
    cluster.node(1).sql("create table heard (id int primary key)").await;
    cluster.all_show("select count(*) from heard", &["0"]).await;
    let mut clients = Vec::new();
    for server in [cluster.write_endpoint(), cluster.split_endpoint()] {
        clients.push(listening(&server, "heard").await);
    }
    for _ in 0..6 {
        let mut reader = Wire::login(&cluster.read_endpoint(), &[]).await.0;
        reader.query("set synapsedb.consistency = eventual").await;
        assert_eq!(reader.query("listen heard").await, ["C LISTEN", "Z I"]);
        clients.push(reader);
    }
    let mut writer = Wire::login(&cluster.write_endpoint(), &[]).await.0;
    let primary = node_of(&cluster, &mut writer).await.number();
    let mut id = 0;
    for (which, client) in clients.iter_mut().enumerate() {
        // Whoever reads with a listener reads where it listens, also with `eventual`.
        let here = match which {
            0 | 1 => primary,
            _ => node_of(&cluster, client).await.number(),
        };
        for _ in 0..10 * usize::from(which > 1) {
            assert_eq!(node_of(&cluster, client).await.number(), here);
        }
        // First on the others, with a row that comes here: the row does, the notification does not.
        let others = cluster.nodes().iter().filter(|node| node.number() != here);
        for node in others {
            id += 1;
            let sql =
                format!("begin; insert into heard values ({id}); notify heard, 'of {id}'; commit");
            node.sql(&sql).await;
            cluster
                .all_show(&format!("select id from heard where id = {id}"), &[&id.to_string()])
                .await;
        }
        id += 1;
        let sql =
            format!("begin; insert into heard values ({id}); notify heard, 'here {id}'; commit");
        cluster.node(here).sql(&sql).await;
        let mut heard = Vec::new();
        while heard.last() != Some(&format!("A other heard here {id}")) {
            heard.push(next(client).await);
        }
        // Of those that were for the clients before it, it has heard what was sent here.
        let of = format!("of {}", id - 1);
        assert!(!heard.iter().any(|line| line.ends_with(&of)), "client {which}: {heard:?}");
        let of = format!("of {}", id - 2);
        assert!(!heard.iter().any(|line| line.ends_with(&of)), "client {which}: {heard:?}");
    }
}

/// That a session has ended: what it was told last, if anything.
async fn end(wire: &mut Wire) -> Option<String> {
    let said = wire.answer(usize::MAX).await;
    assert_eq!(said.last().map(String::as_str), Some("the end"), "{said:?}");
    let told = said.into_iter().find(|line| line.starts_with("E S=FATAL"));
    if let Some(told) = &told {
        assert!(told.contains("C=57P01"), "{told}");
    }
    told
}

/// A new listener at this endpoint hears what is sent where it is.
async fn hears_again(cluster: &Cluster, server: &Server) {
    eventually("a listener hears again", NOTICED, async || {
        let session = server.try_session().await.map_err(|error| format!("{error:#}"))?;
        session.rows("select 1").await.map_err(|error| error.to_string())?;
        Ok(())
    })
    .await;
    let mut wire = Wire::login(server, &[]).await.0;
    let said = wire.query("listen news").await;
    assert_eq!(said, ["C LISTEN", "Z I"]);
    // At 5001 it reads where it listens, at 5002 both are the primary.
    node_of(cluster, &mut wire).await.sql("notify news, 'again'").await;
    assert_eq!(next(&mut wire).await, "A other news again");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_listens_at_a_node_that_is_lost_is_told_and_hears_again() {
    let cluster = cluster(3).await;
    let write = cluster.write_endpoint();
    for by_agent in [false, true] {
        let mut writers = Vec::new();
        let mut readers = Vec::new();
        for _ in 0..8 {
            writers.push(listening(&write, "news").await);
            readers.push(listening(&cluster.read_endpoint(), "news").await);
        }
        let lost = node_of(&cluster, &mut writers[0]).await;
        let mut elsewhere = Vec::new();
        let mut there = Vec::new();
        for mut reader in readers {
            let node = node_of(&cluster, &mut reader).await.number();
            let place = if node == lost.number() { &mut there } else { &mut elsewhere };
            place.push((node, reader));
        }
        if by_agent {
            lost.kill_agent();
        } else {
            lost.kill_postgres();
        }
        // All are told, but for those whose own agent was killed: their connection breaks.
        let mut told = 0;
        for wire in &mut writers {
            told += usize::from(end(wire).await.is_some());
        }
        assert!(if by_agent { told > 0 } else { told == 8 }, "{told} of 8 were told");
        if !by_agent {
            for (_, wire) in &mut there {
                assert!(end(wire).await.is_some());
            }
        }
        hears_again(&cluster, &write).await;
        hears_again(&cluster, &cluster.read_endpoint()).await;
        // Who listens at another node, through another agent, has missed nothing.
        let mut heard = 0;
        for (node, mut wire) in elsewhere {
            cluster.node(node).sql("notify news, 'still'").await;
            loop {
                match wire.message().await {
                    Some((b'A', body)) if body.ends_with(b"still\0") => break heard += 1,
                    Some(_) => {}
                    None => {
                        assert!(by_agent, "it has ended beside a server that was lost elsewhere");
                        break;
                    }
                }
            }
        }
        assert!(by_agent || there.len() == 8 || heard > 0);
        // A server that was lost is started by its agent.
        if by_agent {
            lost.start();
        }
        cluster.wait_ready().await;
    }
}

async fn console(server: &Server, command: &str) {
    let mut server = server.clone();
    server.database = "synapsedb_admin".to_owned();
    server.rows(command).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn operators_and_drop_database_are_not_held_up() {
    let cluster = routed().await;
    let agent = cluster.node(1).agent_server();
    let server = database(&cluster, "listened", Way::Write).await;
    let direct = Server { port: cluster.node(1).server().port, ..server.clone() };
    let hubs = "select count(*) from pg_stat_activity where datname = 'listened'
        and application_name = 'synapsedb: LISTEN'";
    let (mut one, mut two) = (listening(&server, "a").await, listening(&server, "b").await);
    // The answer to LISTEN does not wait for it.
    eventually("a shared listener is open", NOTICED, async || {
        let found = agent.value(hubs).await;
        if found == "0" { Err(found) } else { Ok(()) }
    })
    .await;
    // RECONNECT takes nothing away, and what is listened to later comes, too.
    console(&server, "reconnect listened").await;
    assert_eq!(one.query("listen c").await, ["C LISTEN", "Z I"]);
    direct.sql("notify a, 'x'; notify b, 'x'; notify c, 'x'").await;
    assert_eq!([next(&mut one).await, next(&mut one).await], ["A other a x", "A other c x"]);
    assert_eq!(next(&mut two).await, "A other b x");
    // PAUSE ends although they listen, and they hear meanwhile.
    console(&server, "pause listened").await;
    direct.sql("notify b, 'in a pause'").await;
    assert_eq!(next(&mut two).await, "A other b in a pause");
    console(&server, "resume listened").await;
    assert_eq!(value(&mut one, "select 1").await, "1");
    assert_eq!(two.query("unlisten b").await, ["C UNLISTEN", "Z I"]);
    // A database with clients that listen is in use, as PostgreSQL says it of any other session.
    let elsewhere = cluster.write_endpoint();
    assert_eq!(elsewhere.sqlstate("drop database listened").await, "55006");
    direct.sql("notify a, 'still there'").await;
    assert_eq!(next(&mut one).await, "A other a still there");
    // WITH (FORCE) ends them, and they are told.
    let forced = database(&cluster, "forced", Way::Write).await;
    let mut third = listening(&forced, "a").await;
    elsewhere.sql("drop database forced with (force)").await;
    assert!(end(&mut third).await.is_some());
    // Without clients it is dropped, also right behind the last of them.
    for wire in [&mut one, &mut two] {
        wire.send(&[b'X', 0, 0, 0, 4]).await;
        assert_eq!(wire.answer(1).await, ["the end"]);
    }
    elsewhere.sql("drop database listened").await;
    assert_eq!(agent.value(hubs).await, "0");
}

/// A node falls behind: new clients read elsewhere, who listens there stays, hears, and may listen to more.
#[tokio::test(flavor = "multi_thread")]
async fn who_listens_on_a_node_that_falls_behind_stays_there() {
    let cluster = binary().lay_out(3);
    for node in cluster.nodes() {
        node.configure("replication.probe_interval_ms", 500);
        node.configure("router.read_lag_max_ms", 1000);
    }
    cluster.start().await;
    cluster.node(1).sql("create table gate (id int primary key)").await;
    cluster.all_show("select count(*) from gate", &["0"]).await;
    let mut client = listening(&cluster.read_endpoint(), "behind").await;
    let here = node_of(&cluster, &mut client).await;
    let gate = here.session().await;
    gate.batch_execute("begin; lock table gate in share mode").await.unwrap();
    let others = cluster.nodes().iter().filter(|node| node.number() != here.number());
    for node in others {
        node.sql(&format!("insert into gate values ({})", node.number())).await;
    }
    eventually("new clients read elsewhere", NOTICED, async || {
        let mut client = Wire::login(&cluster.read_endpoint(), &[]).await.0;
        let there = node_of(&cluster, &mut client).await.number();
        if there == here.number() { Err("a new client reads there".to_owned()) } else { Ok(()) }
    })
    .await;
    assert_eq!(node_of(&cluster, &mut client).await.number(), here.number());
    here.sql("notify behind, 'still heard'").await;
    assert!(next(&mut client).await.ends_with("behind still heard"));
    assert_eq!(client.query("listen more").await, ["C LISTEN", "Z I"]);
    here.sql("notify more, 'heard too'").await;
    assert!(next(&mut client).await.ends_with("more heard too"));
    gate.batch_execute("commit").await.unwrap();
    cluster.all_show("select count(*) from gate", &["2"]).await;
}
