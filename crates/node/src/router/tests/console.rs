//! The console and the statistics, as operators and their programs see them.

use super::*;

async fn console_as(running: &Running, user: &str) -> Result<Client, tokio_postgres::Error> {
    let mut config = tokio_postgres::Config::new();
    config.host("127.0.0.1").port(running.port(Endpoint::Write)).user(user).password(PASSWORD);
    let (client, connection) = config.dbname("synapsedb_admin").connect(NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

pub(super) async fn console(running: &Running) -> Client {
    console_as(running, USER).await.unwrap()
}

/// The value in the row whose first columns are these.
pub(super) async fn field(
    client: &Client,
    show: &str,
    row: &[&str],
    column: &str,
) -> Option<String> {
    let messages = client.simple_query(show).await.unwrap();
    messages.into_iter().find_map(|message| match message {
        tokio_postgres::SimpleQueryMessage::Row(found) => {
            let same =
                row.iter().enumerate().all(|(place, value)| found.get(place) == Some(*value));
            same.then(|| found.get(column).unwrap_or_default().to_owned())
        }
        _ => None,
    })
}

pub(super) fn error_code(error: &tokio_postgres::Error) -> &str {
    error.code().map_or("", SqlState::code)
}

/// Columns as PgBouncer 1.25 has them, and ours behind them.
const COLUMNS: [(&str, &str); 8] = [
    (
        "show pools",
        "database,user,cl_active,cl_waiting,cl_active_cancel_req,cl_waiting_cancel_req,sv_active,sv_active_cancel,\
         sv_being_canceled,sv_idle,sv_used,sv_tested,sv_login,maxwait,maxwait_us,pool_mode,load_balance_hosts,\
         pinned,nodes",
    ),
    (
        "show clients",
        "type,user,database,replication,state,addr,port,local_addr,local_port,connect_time,request_time,wait,\
         wait_us,close_needed,ptr,link,remote_pid,tls,application_name,prepared_statements,id,node,\
         endpoint,pinned,channels",
    ),
    (
        "show databases",
        "name,host,port,database,force_user,pool_size,min_pool_size,reserve_pool_size,server_lifetime,pool_mode,\
         load_balance_hosts,max_connections,current_connections,max_client_connections,current_client_connections,\
         paused,disabled",
    ),
    (
        "show stats_totals",
        "database,server_assignment_count,xact_count,query_count,bytes_received,bytes_sent,xact_time,query_time,\
         wait_time,client_parse_count,server_parse_count,bind_count",
    ),
    ("show lists", "list,items"),
    ("show config", "key,value,default,changeable"),
    ("show mem", "name,size,used,free,memtotal"),
    ("show version", "version"),
];

#[tokio::test(flavor = "multi_thread")]
async fn the_console_shows_what_pgbouncers_readers_expect() {
    let server = Server::start();
    let running = start(config(), &[server.address()], Some(1));
    let client = running.connect(Endpoint::Write).await;
    for _ in 0..10 {
        client.query_one("select 1", &[]).await.unwrap();
    }
    let admin = console(&running).await;
    // The extended protocol, with numbers in binary, is what most drivers speak.
    for (show, expected) in COLUMNS {
        let statement = admin.prepare(show).await.unwrap();
        let names: Vec<&str> = statement.columns().iter().map(|column| column.name()).collect();
        assert_eq!(names.join(","), expected, "{show}");
        assert!(!admin.query(&statement, &[]).await.unwrap().is_empty(), "{show}");
    }
    let totals = admin.query("show stats", &[]).await.unwrap();
    let of_postgres =
        totals.iter().find(|row| row.get::<_, &str>("database") == "postgres").unwrap();
    assert!(of_postgres.get::<_, i64>("total_xact_count") >= 10);
    assert!(of_postgres.get::<_, i64>("total_received") > 0);
    for show in [
        "help",
        "state",
        "servers",
        "sockets",
        "active_sockets",
        "stats_averages",
        "totals",
        "users",
        "peers",
        "dns_zones",
        "client_encoding",
    ] {
        admin.simple_query(&format!("SHOW {show};")).await.unwrap();
    }
    shows_who_has_what(&admin, &client).await;
    refuses_what_it_does_not_know(&admin).await;
    let extra = format!("dbname=synapsedb_admin password='{PASSWORD}'");
    let (done, said) = running.psql(Endpoint::Read, &extra, "show version").await;
    assert!(done && said.contains("PgBouncer 1.25"), "{said}");
    rights(&client, &running).await;
    statistics(&running).await;
    running.end().await;
}

async fn shows_who_has_what(admin: &Client, client: &Client) {
    let row = ["postgres", USER];
    // The client has its answer before its connection is back in the pool.
    within("the connection is idle", Duration::from_secs(5), async {
        while field(admin, "show pools", &row, "sv_idle").await.as_deref() != Some("1") {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    let server_row = ["S", USER, "postgres"];
    let idle = field(admin, "show servers", &server_row, "state").await;
    assert_eq!(idle.as_deref(), Some("idle"));
    client.batch_execute("begin").await.unwrap();
    let lent = field(admin, "show servers", &server_row, "link").await.unwrap();
    let holder = field(admin, "show clients", &["C", USER, "postgres"], "ptr").await.unwrap();
    assert_eq!(lent, holder);
    client.batch_execute("create temp table mine (i int); commit").await.unwrap();
    // The router looks at what is left on the connection after the client has got its answer.
    within("the client is pinned", Duration::from_secs(5), async {
        let row = ["C", USER, "postgres"];
        while field(admin, "show clients", &row, "pinned").await == Some(String::new()) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

async fn refuses_what_it_does_not_know(admin: &Client) {
    // What it does not know is an error, and the session goes on.
    let error = admin.simple_query("show everything").await.unwrap_err();
    assert_eq!(error_code(&error), "42601");
    let error = admin.query("select $1::int", &[&1]).await.unwrap_err();
    assert_eq!(error_code(&error), "42601");
    for refused in ["shutdown", "suspend", "set default_pool_size = 5"] {
        assert_eq!(
            error_code(&admin.simple_query(refused).await.unwrap_err()),
            "0A000",
            "{refused}"
        );
    }
}

async fn rights(client: &Client, running: &Running) {
    let verifier = synapsedb_pg::scram::verifier(PASSWORD, [9; 16], 4096);
    for sql in [
        format!("create role watcher login password '{verifier}' in role pg_monitor"),
        format!("create role nobody login password '{verifier}'"),
    ] {
        client.batch_execute(&sql).await.unwrap();
    }
    let watcher = console_as(running, "watcher").await.unwrap();
    watcher.simple_query("show pools").await.unwrap();
    let error = watcher.simple_query("pause").await.unwrap_err();
    assert_eq!(error_code(&error), "42501");
    let error = console_as(running, "nobody").await.err().unwrap();
    assert_eq!(error_code(&error), "42501");
}

/// The values of one line of the CSV.
fn line<'a>(body: &'a str, endpoint: &str, name: &str) -> Vec<&'a str> {
    let start = format!("{endpoint},{name},");
    let line = body.lines().find(|line| line.starts_with(&start));
    line.unwrap_or_else(|| panic!("{start}: {body}")).split(',').collect()
}

/// `/stats`, `/stats;csv` and the metrics.
async fn statistics(running: &Running) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let routes = stats::routes(running.handle.clone());
    let serving = tokio::spawn(async move { axum::serve(listener, routes).await });
    let ask = async |path: &str| {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    };
    let csv = ask("/stats;csv").await;
    let body = csv.split_once("\r\n\r\n").unwrap().1;
    let mut lines = body.lines();
    let heading: Vec<&str> = lines.next().unwrap().trim_start_matches("# ").split(',').collect();
    let place = |name: &str| heading.iter().position(|column| *column == name).unwrap();
    let find = |endpoint, name| line(body, endpoint, name);
    assert_eq!(heading[..5], ["pxname", "svname", "qcur", "qmax", "scur"]);
    let node = find("write", "node1");
    assert_eq!(node[place("status")], "UP");
    assert!(node[place("stot")].parse::<u64>().unwrap() >= 10);
    assert!(node[place("bin")].parse::<u64>().unwrap() > 0);
    assert_eq!(find("read", "FRONTEND")[place("status")], "OPEN");
    assert_eq!(find("write", "BACKEND")[place("act")], "1");
    let page = ask("/stats").await;
    assert!(page.contains("text/html") && page.contains("node1") && page.contains("UP"), "{page}");
    well_formed(page.split_once("\r\n\r\n").unwrap().1);
    serving.abort();
    let metrics = running.metrics();
    for expected in [
        "synapsedb_router_transaction_duration_seconds_bucket{",
        "le=\"0.001024\"",
        "synapsedb_router_wait_duration_seconds_count{endpoint=\"read\"}",
        "pgbouncer_pools_server_idle_connections{database=\"postgres\",user=\"app\"}",
        "pgbouncer_stats_sql_transactions_pooled_total{database=\"postgres\"}",
    ] {
        assert!(metrics.contains(expected), "{expected}: {metrics}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn operators_hold_transactions_back_and_end_sessions() {
    let server = Server::start();
    let running = start(Config { workers: 2, ..config() }, &[server.address()], Some(1));
    let a = running.connect(Endpoint::Write).await;
    let b = running.connect(Endpoint::Read).await;
    let admin = console(&running).await;
    a.batch_execute("begin").await.unwrap();

    // PAUSE waits for the transaction, and what begins meanwhile waits for RESUME.
    let pause = admin.batch_execute("pause");
    let others = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        a.batch_execute("select 1").await.unwrap();
        let held = tokio::time::timeout(Duration::from_millis(100), b.batch_execute("select 1"));
        assert!(held.await.is_err(), "a transaction began while all was paused");
        a.batch_execute("commit").await.unwrap();
    };
    let (paused, ()) = tokio::join!(pause, others);
    paused.unwrap();
    let sessions = "select count(*) from pg_stat_activity where application_name <> 'synapsedb router' \
                    and backend_type = 'client backend'";
    within("the server connections end", Duration::from_secs(5), async {
        // The one that asks is there.
        while direct(&server, sessions).await.1 != "1" {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    assert_eq!(error_code(&admin.batch_execute("pause").await.unwrap_err()), "55000");
    let (state, other) = (["paused"], console(&running).await);
    assert_eq!(field(&other, "show state", &state, "value").await.as_deref(), Some("yes"));
    let begun = Instant::now();
    let resume = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        other.batch_execute("resume").await.unwrap();
    };
    let (held, ()) = tokio::join!(a.batch_execute("select 1"), resume);
    held.unwrap();
    assert!(begun.elapsed() >= Duration::from_millis(50));
    b.batch_execute("select 1").await.unwrap();

    ends_sessions(&running, &admin, a, b).await;
    running.end().await;
}

/// RECONNECT, DISABLE, KILL_CLIENT and KILL.
async fn ends_sessions(running: &Running, admin: &Client, a: Client, b: Client) {
    let pid = backend_pid(&a).await;
    assert_eq!(backend_pid(&a).await, pid);
    admin.batch_execute("reconnect postgres").await.unwrap();
    assert_ne!(backend_pid(&a).await, pid);

    admin.batch_execute("disable postgres").await.unwrap();
    let refused = running.try_connect(Endpoint::Write).await.err().unwrap();
    assert_eq!(error_code(&refused), "55000");
    a.batch_execute("select 1").await.unwrap();
    admin.batch_execute("enable postgres").await.unwrap();
    drop(running.connect(Endpoint::Write).await);

    let row = ["C", USER, "postgres"];
    a.batch_execute("set application_name = 'a'").await.unwrap();
    drop(b);
    running.eventually("one client is left", |status| status.clients == 3).await;
    let id = field(admin, "show clients", &row, "id").await.unwrap();
    assert_eq!(error_code(&admin.batch_execute("kill_client 1").await.unwrap_err()), "42704");
    admin.batch_execute(&format!("kill_client {id}")).await.unwrap();
    within("the client is gone", Duration::from_secs(5), async {
        while !a.is_closed() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;

    let c = running.connect(Endpoint::Write).await;
    let killed = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        admin.batch_execute("kill postgres").await.unwrap();
    };
    let (error, ()) = tokio::join!(c.batch_execute("select pg_sleep(60)"), killed);
    error.unwrap_err();
    admin.batch_execute("resume postgres").await.unwrap();
    running.connect(Endpoint::Write).await.batch_execute("select 1").await.unwrap();
}

/// psql past the router.
async fn direct(server: &Server, sql: &str) -> (bool, String) {
    let (port, sql) = (server.port, sql.to_owned());
    let extra = format!("dbname=postgres password='{PASSWORD}'");
    let output = tokio::task::spawn_blocking(move || server::psql_with(port, &extra, &sql));
    let output = output.await.unwrap();
    (output.status.success(), String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_can_be_dropped_though_its_connections_are_pooled() {
    let server = Server::start();
    let running = start(config(), &[server.address()], Some(1));
    let client = running.connect(Endpoint::Write).await;
    client.batch_execute("create database \"Doomed\"").await.unwrap();
    let mut of_doomed = tokio_postgres::Config::new();
    of_doomed.host("127.0.0.1").port(running.port(Endpoint::Write)).user(USER).password(PASSWORD);
    let (other, connection) = of_doomed.dbname("Doomed").connect(NoTls).await.unwrap();
    tokio::spawn(connection);
    other.batch_execute("select 1").await.unwrap();
    let open = "select count(*) from pg_stat_activity where datname = 'Doomed'";
    assert_eq!(direct(&server, open).await.1, "1", "no connection is pooled");
    within("the drop", Duration::from_secs(4), async {
        client.batch_execute("drop database \"Doomed\"").await.unwrap();
    })
    .await;
    // Whoever is still connected to it is told by the server.
    let error = other.batch_execute("select 1").await.unwrap_err();
    assert!(format!("{error:?}").contains("Doomed"), "{error:?}");
    running.end().await;
}

/// That every element of a page ends where it must, and what is left without them and their attributes.
fn well_formed(page: &str) -> String {
    let (mut open, mut text) = (Vec::new(), String::new());
    let mut rest = page.strip_prefix("<!doctype html>").unwrap();
    while let Some((before, behind)) = rest.split_once('<') {
        if open.last() != Some(&"style") {
            assert!(!before.contains('>'), "{before}");
        }
        text.push_str(before);
        text.push('\n');
        // No value of an attribute has a `>` that is not written as an entity.
        let (tag, behind) = behind.split_once('>').unwrap();
        assert!(!tag.contains('<') && tag.matches('"').count() % 2 == 0, "{tag}");
        match tag.strip_prefix('/') {
            Some(name) => assert_eq!(open.pop(), Some(name), "{page}"),
            None => {
                let name = tag.split(' ').next().unwrap();
                assert!(name.bytes().all(|byte| byte.is_ascii_alphanumeric()), "{tag}");
                if name != "meta" {
                    open.push(name);
                }
            }
        }
        rest = behind;
    }
    assert!(open.is_empty() && rest.trim().is_empty(), "{open:?} {rest}");
    text
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_shows_all_endpoints_and_nodes_and_no_name_as_markup() {
    let odd = r#"<script>alert("1 & 2")</script>:5432"#.to_owned();
    let servers = ["127.0.0.1:1".to_owned(), odd, "127.0.0.1:2".to_owned()];
    let running = start(config(), &servers, Some(1));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let routes = stats::routes(running.handle.clone());
    let serving = tokio::spawn(async move { axum::serve(listener, routes).await });
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = b"GET /stats HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n";
    stream.write_all(request).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    serving.abort();
    let page = answer.split_once("\r\n\r\n").unwrap().1;
    let text = well_formed(page);
    let parts: Vec<&str> = page.split("<h2>").skip(1).collect();
    let names = parts.iter().map(|part| part.split(' ').next().unwrap());
    assert_eq!(names.collect::<Vec<_>>(), ["read", "write", "split"]);
    for part in parts {
        for name in ["FRONTEND", "node1", "node2", "node3", "BACKEND"] {
            assert_eq!(part.matches(&format!(">{name}</th>")).count(), 1, "{name}: {part}");
        }
    }
    assert!(!page.contains("<script") && page.contains("&lt;script&gt;"), "{page}");
    assert!(text.contains("not the primary"), "{text}");
    running.end().await;
}
