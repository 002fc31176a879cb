//! LISTEN through a shared listener: every client hears what it would hear on a connection of its own.

use std::collections::BTreeMap;

use futures_util::{StreamExt as _, stream};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio_postgres::AsyncMessage;

use super::*;

/// A client, and what it has heard: process, channel, payload.
struct Listener {
    client: Client,
    heard: UnboundedReceiver<(i32, String, String)>,
    ended: tokio::task::JoinHandle<Option<tokio_postgres::Error>>,
}

async fn listener(running: &Running, endpoint: Endpoint) -> Listener {
    let mut config = tokio_postgres::Config::new();
    config.host("127.0.0.1").port(running.port(endpoint)).user(USER).password(PASSWORD);
    let (client, mut connection) = config.dbname("postgres").connect(NoTls).await.unwrap();
    let (sender, heard) = tokio::sync::mpsc::unbounded_channel();
    let ended = tokio::spawn(async move {
        let mut messages = stream::poll_fn(move |context| connection.poll_message(context));
        while let Some(message) = messages.next().await {
            match message {
                Ok(AsyncMessage::Notification(said)) => {
                    let (channel, payload) = (said.channel().to_owned(), said.payload().to_owned());
                    let _ = sender.send((said.process_id(), channel, payload));
                }
                Ok(_) => {}
                Err(error) => return Some(error),
            }
        }
        None
    });
    Listener { client, heard, ended }
}

impl Listener {
    async fn run(&self, sql: &str) {
        self.client.batch_execute(sql).await.unwrap();
    }

    /// The next that it hears, as `channel payload`.
    async fn next(&mut self) -> String {
        let next = tokio::time::timeout(Duration::from_secs(10), self.heard.recv()).await;
        let (_, channel, payload) = next.expect("it hears nothing").expect("it has ended");
        format!("{channel} {payload}")
    }

    /// That nothing was heard before a notification that comes now.
    async fn hears_nothing_but(&mut self, notifier: &Client, channel: &str) {
        notifier.batch_execute(&format!("notify {channel}, 'now'")).await.unwrap();
        assert_eq!(self.next().await, format!("{channel} now"));
    }

    /// What its server says that it listens to.
    async fn channels(&self) -> Vec<String> {
        let sql = "select channel from pg_listening_channels() as channel order by 1";
        let rows = self.client.query(sql, &[]).await.unwrap();
        rows.iter().map(|row| row.get(0)).collect()
    }

    /// The error that its session ended with.
    async fn end(self) -> tokio_postgres::Error {
        tokio::time::timeout(Duration::from_secs(20), self.ended).await.unwrap().unwrap().unwrap()
    }
}

async fn all_listen(which: &[Listener]) -> Vec<Result<(), tokio_postgres::Error>> {
    let asked = which.iter().map(|one| one.client.batch_execute("listen news; listen other"));
    futures_util::future::join_all(asked).await
}

fn small() -> Config {
    Config { pool_size: 2, workers: 1, ..config() }
}

/// Server sessions that listen for clients.
async fn hubs(client: &Client) -> Vec<i32> {
    let sql = "select pid from pg_stat_activity where application_name = 'synapsedb: LISTEN'";
    client.query(sql, &[]).await.unwrap().iter().map(|row| row.get(0)).collect()
}

/// Waits until a server works on what sleeps; a request is under way for the router, too, by then.
async fn sleeps(client: &Client) {
    let sql = "select count(*) from pg_stat_activity where state = 'active' and query like 'select pg_sleep%'";
    within("it sleeps", Duration::from_secs(20), async {
        while client.query_one(sql, &[]).await.unwrap().get::<_, i64>(0) == 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

/// Ends the server session that listens for all.
async fn kill_hub(client: &Client) {
    let pids = hubs(client).await;
    assert_eq!(pids.len(), 1);
    client.batch_execute(&format!("select pg_terminate_backend({})", pids[0])).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn many_listen_on_few_connections_and_each_hears_all_once_and_in_order() {
    let server = Server::start();
    let running = start(small(), &[server.address()], Some(1));
    let mut listeners = Vec::new();
    for _ in 0..200 {
        listeners.push(listener(&running, Endpoint::Write).await);
    }
    // Half of them come while others notify already.
    let (early, late) = listeners.split_at(100);
    assert!(all_listen(early).await.iter().all(Result::is_ok));
    let notifiers =
        [running.connect(Endpoint::Write).await, running.connect(Endpoint::Write).await];
    notifiers[0].batch_execute("create table noise (i int)").await.unwrap();
    let notify = async {
        for n in 0..300 {
            let sql = format!("begin; insert into noise values ({n}); notify news, '{n}'; commit");
            notifiers[n % 2].batch_execute(&sql).await.unwrap();
        }
    };
    let ((), came) = tokio::join!(notify, all_listen(late));
    assert!(came.iter().all(Result::is_ok));
    notifiers[0].batch_execute("notify news, '300'").await.unwrap();
    for (n, listener) in listeners.iter_mut().enumerate() {
        let mut got = Vec::new();
        while got.last() != Some(&300) {
            let text = listener.next().await;
            got.push(text.strip_prefix("news ").unwrap().parse::<i32>().unwrap());
        }
        let first = got[0];
        assert!(n >= 100 || first == 0, "client {n} begins with {first}");
        assert_eq!(got, (first..=300).collect::<Vec<_>>(), "client {n}");
    }
    // All of them on one connection beside the pool's two.
    assert_eq!(hubs(&notifiers[0]).await.len(), 1);
    let open: i64 = notifiers[0]
        .query_one(
            "select count(*) from pg_stat_activity where backend_type = 'client backend'",
            &[],
        )
        .await
        .unwrap()
        .get(0);
    assert!(open <= 4, "{open}");
    let counted = "synapsedb_router_listening 200";
    running.eventually("they are counted", |_| running.metrics().contains(counted)).await;
    // When all have gone, so does the connection.
    drop(listeners);
    within("the listener is closed", Duration::from_secs(20), async {
        while !hubs(&notifiers[0]).await.is_empty() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    running.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_transaction_says_of_channels_counts_when_it_commits() {
    let server = Server::start();
    let running = start(small(), &[server.address()], Some(1));
    let notifier = running.connect(Endpoint::Write).await;
    let mut one = listener(&running, Endpoint::Write).await;
    let all = ["a", "b", "c", "d"];
    // What is said, and what is listened to afterwards.
    for (at, (said, listened)) in [
        ("begin; listen a; rollback", &[][..]),
        ("listen a", &["a"]),
        ("begin; listen b; rollback", &["a"]),
        ("begin; unlisten a; rollback", &["a"]),
        ("begin; savepoint s; unlisten a; listen b; rollback to s; commit", &["a"]),
        ("begin; savepoint s; unlisten a; rollback to s; listen c; commit", &["a", "c"]),
        ("unlisten *; listen b", &["b"]),
        ("begin; listen d; unlisten d; listen c; commit", &["b", "c"]),
        ("listen b", &["b", "c"]),
        ("do $$ begin execute 'listen d'; end $$", &["b", "c", "d"]),
        ("unlisten b; select 1", &["c", "d"]),
        ("create temp table held (i int)", &["c", "d"]),
        ("unlisten c", &["d"]),
        ("drop table held; listen a", &["a", "d"]),
        ("discard all", &[]),
        ("listen c", &["c"]),
        ("unlisten *", &[]),
    ]
    .into_iter()
    .enumerate()
    {
        one.run(said).await;
        for channel in all {
            notifier.batch_execute(&format!("notify {channel}, '{at}'")).await.unwrap();
        }
        for channel in listened {
            assert_eq!(one.next().await, format!("{channel} {at}"), "{said}");
        }
        assert_eq!(one.channels().await, listened, "{said}");
        // Step by step, with others on the same two connections in between.
        for _ in 0..3 {
            notifier.batch_execute("select 1").await.unwrap();
        }
    }
    one.run("listen a").await;
    one.run("begin").await;
    one.run("unlisten a").await;
    one.run("savepoint s").await;
    one.run("listen b").await;
    one.run("rollback to s").await;
    one.run("listen c").await;
    notifier.batch_execute("notify a, 'still'").await.unwrap();
    one.run("commit").await;
    one.hears_nothing_but(&notifier, "c").await;
    assert_eq!(one.channels().await, ["c"]);
    // By the extended protocol.
    one.client.execute("listen d", &[]).await.unwrap();
    let unlisten = one.client.prepare("unlisten c").await.unwrap();
    one.client.execute(&unlisten, &[]).await.unwrap();
    notifier.batch_execute("notify c, 'not any more'").await.unwrap();
    one.hears_nothing_but(&notifier, "d").await;
    running.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn notifications_come_between_transactions_and_ones_own_are_known() {
    let server = Server::start();
    let running = start(small(), &[server.address()], Some(1));
    let notifier = running.connect(Endpoint::Write).await;
    let mut one = listener(&running, Endpoint::Write).await;
    one.run("listen a").await;
    // In a transaction nothing is heard, behind it all.
    one.run("begin; select 1").await;
    notifier.batch_execute("notify a, 'first'; notify a, 'second'").await.unwrap();
    one.run("select pg_sleep(0.1)").await;
    assert!(one.heard.try_recv().is_err());
    one.run("commit").await;
    assert_eq!([one.next().await, one.next().await], ["a first", "a second"]);
    // Its own come with the process that it was told of, before the answer is complete; others' do not.
    let mut pids = BTreeMap::new();
    for (sql, who) in [
        ("notify a, 'own'", "own"),
        ("select pg_notify('a', 'own too')", "own"),
        ("begin; notify a, 'own in a transaction'; commit", "own"),
    ] {
        one.run(sql).await;
        let (pid, ..) = one.heard.recv().await.unwrap();
        assert_eq!(*pids.entry(who).or_insert(pid), pid, "{sql}");
    }
    for _ in 0..5 {
        notifier.batch_execute("notify a, 'others'").await.unwrap();
        let (pid, ..) = one.heard.recv().await.unwrap();
        assert_ne!(pids["own"], pid);
    }
    // Long answers are not torn apart.
    let long = "select repeat('x', 100000) from generate_series(1, 50)";
    let (rows, ()) = tokio::join!(one.client.query(long, &[]), async {
        for n in 0..50 {
            notifier.batch_execute(&format!("notify a, '{n}'")).await.unwrap();
        }
    });
    assert_eq!(rows.unwrap().len(), 50);
    for n in 0..50 {
        assert_eq!(one.next().await, format!("a {n}"));
    }
    running.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_have_missed_something_is_told() {
    let server = Server::start();
    let config = Config { pool_size: 3, ..small() };
    let grace = Duration::from_millis(config.primary_change_grace_ms);
    let running = start(config, &[server.address()], Some(1));
    let notifier = running.connect(Endpoint::Write).await;
    let deaf = listener(&running, Endpoint::Write).await;
    let also = listener(&running, Endpoint::Read).await;
    deaf.run("listen a").await;
    also.run("listen b").await;
    let busy = listener(&running, Endpoint::Write).await;
    busy.run("listen a").await;
    let bystander = listener(&running, Endpoint::Write).await;
    bystander.run("listen a; unlisten a").await;
    // In a transaction block its channels are on its own connection.
    let mut inside = listener(&running, Endpoint::Write).await;
    inside.run("listen a").await;
    inside.run("begin; select 1").await;
    let sleeping = busy.client.batch_execute("select pg_sleep(2)");
    let killed = async {
        sleeps(&notifier).await;
        kill_hub(&notifier).await;
        Instant::now()
    };
    let (slept, killed) = tokio::join!(sleeping, killed);
    // What is under way comes to its end, however long it takes.
    slept.unwrap();
    assert!(killed.elapsed() > grace, "it has slept no longer than anything may");
    notifier.batch_execute("notify a, 'meanwhile'").await.unwrap();
    inside.run("commit").await;
    assert_eq!(inside.next().await, "a meanwhile");
    for listener in [deaf, also, busy] {
        let error = listener.end().await;
        assert_eq!(code(&error), Some(&SqlState::ADMIN_SHUTDOWN), "{error:?}");
        let said = error.as_db_error().unwrap();
        assert!(said.message().contains("that listens for it was lost"), "{said:?}");
        assert!(said.hint().unwrap().contains("LISTEN again"), "{said:?}");
    }
    bystander.run("select 1").await;
    inside.hears_nothing_but(&notifier, "a").await;
    // A new one takes its place.
    let mut next = listener(&running, Endpoint::Write).await;
    next.run("listen a").await;
    next.hears_nothing_but(&notifier, "a").await;
    let counted = r#"reason="deaf"} 3"#;
    running.eventually("they are counted", |_| running.metrics().contains(counted)).await;
    running.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_under_way_beside_a_lost_listener_ends_with_its_primary_and_by_an_operator() {
    let servers = [Server::start(), Server::start()];
    let addresses = servers.each_ref().map(Server::address);
    for by_operator in [true, false] {
        let running = start(small(), &addresses, Some(1));
        let notifier = running.connect(Endpoint::Write).await;
        let busy = listener(&running, Endpoint::Write).await;
        busy.run("listen a").await;
        let sleeping = busy.client.batch_execute("select pg_sleep(60)");
        let ended = async {
            sleeps(&notifier).await;
            kill_hub(&notifier).await;
            if by_operator {
                running.handle.shared.order(&super::super::console::holds::Order::Kill(None)).await;
            } else {
                running.appoint(Some(2));
            }
        };
        let begun = Instant::now();
        let (slept, ()) = tokio::join!(sleeping, ended);
        assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
        let error = slept.unwrap_err();
        assert_eq!(code(&error), Some(&SqlState::ADMIN_SHUTDOWN), "{error:?}");
        running.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn listeners_of_the_write_endpoint_end_with_their_primary() {
    let servers = [Server::start(), Server::start()];
    let addresses = servers.each_ref().map(Server::address);
    let running = start(small(), &addresses, Some(1));
    let old = listener(&running, Endpoint::Write).await;
    old.run("listen a").await;
    let mut reader = listener(&running, Endpoint::Read).await;
    reader.run("listen a").await;
    running.appoint(Some(2));
    let error = old.end().await;
    assert_eq!(code(&error), Some(&SqlState::ADMIN_SHUTDOWN), "{error:?}");
    let said = error.as_db_error().unwrap().message();
    assert!(said.contains("the primary is now node 2"), "{said}");
    let mut new = listener(&running, Endpoint::Write).await;
    new.run("listen a").await;
    assert_eq!(server_port(&new.client).await, servers[1].port);
    let here = server_port(&reader.client).await;
    new.hears_nothing_but(&new_notifier(&running).await, "a").await;
    // A reader listens where it reads, whatever the primary is.
    if here == servers[1].port {
        assert_eq!(reader.next().await, "a now");
    }
    reader.run("notify a, 'here'").await;
    assert_eq!(reader.next().await, "a here");
    running.end().await;
}

async fn new_notifier(running: &Running) -> Client {
    running.connect(Endpoint::Write).await
}

#[tokio::test(flavor = "multi_thread")]
async fn channels_and_what_waits_are_bounded() {
    let server = Server::start();
    let config = Config {
        listen_channels_max: 3,
        listener_channels_max: 4,
        notifications_bytes_max: 20_000,
        pool_size: 6,
        ..small()
    };
    let running = start(config, &[server.address()], Some(1));
    let notifier = running.connect(Endpoint::Write).await;
    // One that has too many keeps its connection, and hears all the same.
    let mut many = listener(&running, Endpoint::Write).await;
    many.run("listen a; listen b; listen c; listen d").await;
    many.hears_nothing_but(&notifier, "d").await;
    // With fewer it gives it back.
    many.run("unlisten d").await;
    many.hears_nothing_but(&notifier, "c").await;
    assert_eq!(many.channels().await, ["a", "b", "c"]);
    // The listener is full.
    let mut full = listener(&running, Endpoint::Write).await;
    full.run("listen x; listen y").await;
    full.hears_nothing_but(&notifier, "y").await;
    // Another encoding than the listener's.
    let mut latin = listener(&running, Endpoint::Write).await;
    latin.run("set client_encoding = 'latin1'; listen a").await;
    latin.run("set client_encoding = 'utf8'").await;
    latin.hears_nothing_but(&notifier, "a").await;
    many.next().await;
    // In a transaction nothing can be told: at some point there is too much.
    let slow = listener(&running, Endpoint::Write).await;
    slow.run("listen a").await;
    let sleeping = slow.client.batch_execute("select pg_sleep(30)");
    let much = async {
        sleeps(&notifier).await;
        for _ in 0..10 {
            let sql = "select pg_notify('a', repeat('x', 7000))";
            notifier.batch_execute(sql).await.unwrap();
        }
    };
    let (slept, ()) = tokio::join!(sleeping, much);
    let error = slept.unwrap_err();
    assert_eq!(code(&error).map(SqlState::code), Some("53400"), "{error:?}");
    let said = error.as_db_error().unwrap().message();
    assert!(said.contains("20000 bytes of notifications"), "{said}");
    running.end().await;
}
