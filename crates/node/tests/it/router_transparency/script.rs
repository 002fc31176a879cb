//! The same steps on a direct connection and through an endpoint, while others use the same pool between the steps
//! and leave behind what they can. What the server says must be the same.

use bytes::BytesMut;
use postgres_protocol::IsNull;
use postgres_protocol::message::frontend;
use synapsedb_dev::client::Server;
use tokio::time::{Duration, timeout};

use super::wire::Wire;
use crate::routed::{Way, database, routed};

/// How long the second of the others may wait for a connection: a subject that keeps one leaves them only one.
const SECOND: Duration = Duration::from_millis(200);

/// What the first of the others has set when the subject goes on.
const FIRST_SETS: &str =
    "set search_path = noise; set timezone = 'Pacific/Auckland'; set datestyle = 'German';
    set client_min_messages = error; set application_name = 'noise'; set statement_timeout = 54321;
    set extra_float_digits = 0; set bytea_output = 'escape'; set intervalstyle = 'iso_8601'";
/// What the second has set.
const SECOND_SETS: &str = "set default_transaction_read_only = on; set client_encoding = 'latin1';
    set role noise; set default_transaction_isolation = 'serializable'; set lock_timeout = 4321";
/// What the first finds of its own in the end.
const FIRST_SHOWS: &str = "select current_setting('search_path'), current_setting('timezone'),
    current_setting('client_min_messages'), current_setting('statement_timeout'), current_user";
/// What the second finds.
const SECOND_SHOWS: &str =
    "select current_setting('default_transaction_read_only'), current_setting('client_encoding'),
    current_setting('search_path'), current_setting('lock_timeout'), current_user";

/// What is sent at once, what ends the answer to it, and what must be in it.
pub struct Step {
    bytes: BytesMut,
    ends: Ends,
    expected: Vec<String>,
}

enum Ends {
    /// So many ReadyForQuery.
    Ready(usize),
    /// A message of this tag.
    Tag(u8),
}

impl Step {
    /// The answer must contain these lines in this order, not only be the same on both ways: the step means something.
    pub fn shows(mut self, expected: &[&str]) -> Self {
        self.expected = expected.iter().map(|line| (*line).to_owned()).collect();
        self
    }

    /// What a connection answers to it.
    pub async fn on(&self, wire: &mut Wire) -> Vec<String> {
        wire.send(&self.bytes).await;
        match self.ends {
            Ends::Ready(count) => wire.answer(count).await,
            Ends::Tag(tag) => wire.until(tag).await,
        }
    }
}

/// A simple query.
pub fn q(sql: &str) -> Step {
    let mut bytes = BytesMut::new();
    frontend::query(sql, &mut bytes).unwrap();
    Step { bytes, ends: Ends::Ready(1), expected: Vec::new() }
}

/// One message of the extended protocol.
pub struct Part(BytesMut);

fn part(write: impl FnOnce(&mut BytesMut)) -> Part {
    let mut bytes = BytesMut::new();
    write(&mut bytes);
    Part(bytes)
}

/// Parse.
pub fn parse(name: &str, sql: &str) -> Part {
    part(|bytes| frontend::parse(name, sql, [], bytes).unwrap())
}

/// Bind to the unnamed portal, with parameters in text format.
pub fn bind(statement: &str, values: &[&str]) -> Part {
    bind_to("", statement, values)
}

/// Bind to a portal.
pub fn bind_to(portal: &str, statement: &str, values: &[&str]) -> Part {
    part(|bytes| {
        let write = |value: &&str, out: &mut BytesMut| {
            out.extend_from_slice(value.as_bytes());
            Ok(IsNull::No)
        };
        let bound = frontend::bind(portal, statement, [], values.iter(), write, [0], bytes);
        assert!(bound.is_ok());
    })
}

/// Describe of a statement (`S`) or portal (`P`).
pub fn describe(kind: u8, name: &str) -> Part {
    part(|bytes| frontend::describe(kind, name, bytes).unwrap())
}

/// Execute of a portal; 0 rows are all.
pub fn execute(portal: &str, rows: i32) -> Part {
    part(|bytes| frontend::execute(portal, rows, bytes).unwrap())
}

/// Close of a statement (`S`) or portal (`P`).
pub fn close(kind: u8, name: &str) -> Part {
    part(|bytes| frontend::close(kind, name, bytes).unwrap())
}

/// Sync.
pub fn sync() -> Part {
    part(frontend::sync)
}

/// Any message.
pub fn raw(tag: u8, body: &[u8]) -> Part {
    part(|bytes| {
        bytes.extend_from_slice(&[tag]);
        bytes.extend_from_slice(&(body.len() as u32 + 4).to_be_bytes());
        bytes.extend_from_slice(body);
    })
}

/// Messages that are sent at once; the answer ends with the ReadyForQuery of the last Sync.
pub fn x(parts: impl IntoIterator<Item = Part>) -> Step {
    let mut bytes = BytesMut::new();
    let mut syncs = 0;
    for Part(message) in parts {
        syncs += usize::from(message[0] == b'S' || message[0] == b'Q' || message[0] == b'F');
        bytes.extend_from_slice(&message);
    }
    Step { bytes, ends: Ends::Ready(syncs.max(1)), expected: Vec::new() }
}

/// A prepared statement's name, its values, and what it shows: Bind, Execute, Sync.
pub fn run(statement: &str, values: &[&str]) -> Step {
    x([bind(statement, values), execute("", 0), sync()])
}

/// Messages whose answer ends with a message of this tag.
pub fn until(tag: u8, parts: impl IntoIterator<Item = Part>) -> Step {
    Step { ends: Ends::Tag(tag), ..x(parts) }
}

/// Two other clients.
struct Others {
    first: Wire,
    second: Wire,
    /// The search path of a session here that sets none.
    path: String,
    /// The second still waits for a connection.
    waiting: bool,
}

impl Others {
    async fn come(server: &Server) -> Self {
        let (mut first, _) = Wire::login(server, &[]).await;
        let (mut second, _) = Wire::login(server, &[]).await;
        let noise = x([parse("s1", "select 'noise'"), sync()]);
        for (wire, sets) in [(&mut first, FIRST_SETS), (&mut second, SECOND_SETS)] {
            let said = wire.query(sets).await;
            assert_eq!(said.last().map(String::as_str), Some("Z I"), "{said:?}");
            wire.send(&noise.bytes).await;
            assert_eq!(wire.answer(1).await, ["1", "Z I"]);
        }
        let path = second.query("select current_setting('search_path')").await.swap_remove(1);
        Self { first, second, path: path.replacen("D ", "", 1), waiting: false }
    }

    /// Both have a transaction, if there are connections at the same time, so that the subject's is used by them.
    async fn turn(&mut self) {
        begin(&mut self.first).await;
        if !self.waiting {
            let mut bytes = BytesMut::new();
            frontend::query("begin", &mut bytes).unwrap();
            self.second.send(&bytes).await;
        }
        let begun = timeout(SECOND, self.second.answer(1)).await.is_ok();
        assert_eq!(self.first.query("commit").await, ["C COMMIT", "Z I"]);
        self.waiting = !begun && timeout(SECOND, self.second.answer(1)).await.is_err();
        if !self.waiting {
            assert_eq!(self.second.query("commit").await, ["C COMMIT", "Z I"]);
        }
    }

    /// Both still have what they have set.
    async fn leave(mut self) {
        let said = self.first.query(FIRST_SHOWS).await;
        assert_eq!(said[1], "D noise|Pacific/Auckland|error|54321ms|synapsedb", "{said:?}");
        if !self.waiting {
            let said = self.second.query(SECOND_SHOWS).await;
            let own = format!("D on|LATIN1|{}|4321ms|noise", self.path);
            assert_eq!(said[1], own, "{said:?}");
        }
    }
}

async fn begin(wire: &mut Wire) {
    assert_eq!(wire.query("begin").await, ["C BEGIN", "Z T"]);
}

/// Plays steps directly and by the endpoints that write, and compares. `name` is that of the databases.
///
/// # Panics
/// When an answer is another one, with all that are.
pub async fn same(name: &str, startup: &[(&str, &str)], steps: &[Step]) {
    let cluster = routed().await;
    noise(&cluster.node(1).agent_server()).await;
    for (way, short) in [(Way::Write, "routed"), (Way::Split, "split")] {
        let direct = database(&cluster, &format!("{name}_of_{short}"), Way::Direct).await;
        let routed = database(&cluster, &format!("{name}_{short}"), way).await;
        compare(
            name,
            (&direct, startup, &direct.database),
            (&routed, startup, &routed.database),
            steps,
        )
        .await;
    }
}

/// [`same`] in the database that is replicated: each way with a schema of its own.
pub async fn same_in(direct: (&str, Server), routed: (&str, Server), steps: &[Step]) {
    let cluster = crate::routed::routed().await;
    noise(&cluster.node(1).agent_server()).await;
    let (of_direct, of_routed) = ([("search_path", direct.0)], [("search_path", routed.0)]);
    let direct = (&direct.1, &of_direct[..], direct.0);
    compare("replicated", direct, (&routed.1, &of_routed, routed.0), steps).await;
}

/// The role that the others take.
async fn noise(agent: &Server) {
    agent
        .sql(
            "do $$ begin create role noise; exception when duplicate_object then null; end $$;
              grant noise to synapsedb",
        )
        .await;
}

/// A place, the startup parameters there, and a name of which each place has its own.
type Place<'a> = (&'a Server, &'a [(&'a str, &'a str)], &'a str);

async fn compare(name: &str, direct: Place<'_>, routed: Place<'_>, steps: &[Step]) {
    let expected = play(direct, steps).await;
    for (number, (step, said)) in steps.iter().zip(&expected[1..]).enumerate() {
        contains(number, said, &step.expected);
    }
    let found = play(routed, steps).await;
    let mut different = String::new();
    for (number, (expected, found)) in expected.iter().zip(&found).enumerate() {
        if found != expected {
            let step = match number {
                0 => "the login".to_owned(),
                _ => format!("step {number}, {}", printable(&steps[number - 1].bytes)),
            };
            different += &format!("{step}\n  router {found:?}\n  direct {expected:?}\n");
        }
    }
    assert!(different.is_empty(), "{name}:\n{different}");
    assert_eq!(found.len(), expected.len());
}

/// The answers to the login and to every step.
async fn play((server, startup, own): Place<'_>, steps: &[Step]) -> Vec<Vec<String>> {
    let mut others = Others::come(server).await;
    let (mut wire, login) = Wire::login(server, startup).await;
    let mut answers = vec![login];
    for step in steps {
        if wire.status == b'I' {
            others.turn().await;
        }
        wire.send(&step.bytes).await;
        let answer = match step.ends {
            Ends::Ready(count) => wire.answer(count).await,
            Ends::Tag(tag) => wire.until(tag).await,
        };
        answers.push(answer);
    }
    others.leave().await;
    for line in answers.iter_mut().flatten() {
        *line = line.replace(own, "OWN");
    }
    answers
}

fn contains(number: usize, said: &[String], expected: &[String]) {
    let mut lines = said.iter();
    for wanted in expected {
        let found = lines.any(|line| line == wanted);
        assert!(found, "step {}: a direct connection must say {wanted:?}: {said:#?}", number + 1);
    }
}

/// What was sent, for people.
fn printable(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}
