//! A client that speaks the protocol itself and writes down everything that the server says, one line per message.

use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};
use postgres_protocol::authentication::sasl::{ChannelBinding, SCRAM_SHA_256, ScramSha256};
use postgres_protocol::message::frontend;
use synapsedb_dev::client::Server;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// How long an answer may take.
const LIMIT: Duration = Duration::from_secs(20);
/// The fields of errors and notices that clients see: severity, code, message, detail, hint, positions, context, names.
const FIELDS: &[u8] = b"SCMDHPpWstcdn";

/// A connection.
pub struct Wire {
    stream: TcpStream,
    buffer: BytesMut,
    /// The process id that it was given.
    pub pid: i32,
    /// What its cancel requests have to show.
    pub key: Bytes,
    /// The state of its last answer: `I`, `T` or `E`; 0 when it was refused or has ended.
    pub status: u8,
}

impl Wire {
    /// Logs in with these parameters beside user and database. Returns what was said: of authentication only that it
    /// has succeeded, the reported parameters in the order of their names.
    pub async fn login(server: &Server, parameters: &[(&str, &str)]) -> (Self, Vec<String>) {
        Self::login_by(0x3_0000, server, parameters).await
    }

    /// [`Self::login`] by this version of the protocol.
    pub async fn login_by(
        version: u32,
        server: &Server,
        parameters: &[(&str, &str)],
    ) -> (Self, Vec<String>) {
        let stream = TcpStream::connect(("127.0.0.1", server.port)).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let buffer = BytesMut::new();
        let mut wire = Self { stream, buffer, pid: 0, key: Bytes::new(), status: 0 };
        let own = [("user", server.user.as_str()), ("database", server.database.as_str())];
        let mut startup = BytesMut::new();
        let all = own.iter().chain(parameters).copied();
        frontend::startup_message(all, &mut startup).unwrap();
        startup[4..8].copy_from_slice(&version.to_be_bytes());
        wire.send(&startup).await;
        let mut lines = Vec::new();
        let mut scram = None;
        while let Some((tag, mut body)) = wire.message().await {
            if tag != b'R' {
                lines.push(wire.line(tag, body));
                if tag == b'Z' {
                    break;
                }
                continue;
            }
            match body.get_i32() {
                0 => lines.push("R ok".to_owned()),
                10 => scram = Some(wire.answer_sasl(&server.password).await),
                11 => {
                    let scram = scram.as_mut().unwrap();
                    scram.update(&body).unwrap();
                    let mut answer = BytesMut::new();
                    frontend::sasl_response(scram.message(), &mut answer).unwrap();
                    wire.send(&answer).await;
                }
                12 => scram.as_mut().unwrap().finish(&body).unwrap(),
                other => panic!("authentication {other} was asked for"),
            }
        }
        let mut reported = lines.clone();
        reported.retain(|line| line.starts_with("S "));
        reported.sort();
        lines.retain(|line| !line.starts_with("S "));
        lines.extend(reported);
        (wire, lines)
    }

    async fn answer_sasl(&mut self, password: &str) -> ScramSha256 {
        let scram = ScramSha256::new(password.as_bytes(), ChannelBinding::unsupported());
        let mut answer = BytesMut::new();
        frontend::sasl_initial_response(SCRAM_SHA_256, scram.message(), &mut answer).unwrap();
        self.send(&answer).await;
        scram
    }

    /// Sends bytes as they are. What has ended on the other side shows in the next answer.
    pub async fn send(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes).await;
    }

    /// Everything up to the `count`-th ReadyForQuery, or to the end of the connection.
    pub async fn answer(&mut self, count: usize) -> Vec<String> {
        self.lines(|tag, ready| tag == b'Z' && ready == count).await
    }

    /// Everything up to the first message with this tag, or to a ReadyForQuery.
    pub async fn until(&mut self, wanted: u8) -> Vec<String> {
        self.lines(|tag, _| tag == wanted || tag == b'Z').await
    }

    async fn lines(&mut self, ends: impl Fn(u8, usize) -> bool) -> Vec<String> {
        let (mut lines, mut ready) = (Vec::new(), 0);
        loop {
            let Some((tag, body)) = self.message().await else {
                lines.push("the end".to_owned());
                self.status = 0;
                return lines;
            };
            lines.push(self.line(tag, body));
            ready += usize::from(tag == b'Z');
            if ends(tag, ready) {
                return lines;
            }
        }
    }

    /// Runs statements in one simple query.
    pub async fn query(&mut self, sql: &str) -> Vec<String> {
        let mut bytes = BytesMut::new();
        frontend::query(sql, &mut bytes).unwrap();
        self.send(&bytes).await;
        self.answer(1).await
    }

    /// The next message; `None` when the connection has ended, or nothing came in time.
    pub async fn message(&mut self) -> Option<(u8, Bytes)> {
        loop {
            if self.buffer.len() >= 5 {
                let length = u32::from_be_bytes(self.buffer[1..5].try_into().unwrap()) as usize;
                if self.buffer.len() > length {
                    let mut whole = self.buffer.split_to(length + 1).freeze();
                    let tag = whole.get_u8();
                    whole.advance(4);
                    return Some((tag, whole));
                }
            }
            match tokio::time::timeout(LIMIT, self.stream.read_buf(&mut self.buffer)).await {
                Ok(Ok(1..)) => {}
                Ok(Ok(0) | Err(_)) => return None,
                Err(_) => panic!("no answer within {LIMIT:?}; so far {:?}", self.buffer),
            }
        }
    }

    /// A message as a line of text; process ids and keys are kept, not told.
    fn line(&mut self, tag: u8, mut body: Bytes) -> String {
        let text = match tag {
            b'K' => {
                self.pid = body.get_i32();
                self.key = body;
                return "K".to_owned();
            }
            b'Z' => {
                self.status = body[0];
                char::from(body[0]).to_string()
            }
            b'T' => row_description(body),
            b'D' => data_row(body),
            b'E' | b'N' => fields(body),
            b'S' => [string(&mut body), string(&mut body)].join("="),
            b't' => {
                let count = body.get_i16();
                (0..count).map(|_| body.get_u32().to_string()).collect::<Vec<_>>().join(",")
            }
            b'A' => {
                let who = if body.get_i32() == self.pid { "own" } else { "other" };
                [who.to_owned(), string(&mut body), string(&mut body)].join(" ")
            }
            b'G' | b'H' | b'W' | b'V' | b'v' => format!("{:?}", &body[..]),
            _ => String::from_utf8_lossy(&body).trim_end_matches('\0').to_owned(),
        };
        format!("{} {text}", char::from(tag)).trim_end().to_owned()
    }
}

fn string(body: &mut Bytes) -> String {
    let end = body.iter().position(|byte| *byte == 0).unwrap();
    let text = body.split_to(end);
    body.advance(1);
    String::from_utf8_lossy(&text).into_owned()
}

/// The columns as `name:type`, with `:binary` where a column is.
fn row_description(mut body: Bytes) -> String {
    let count = body.get_i16();
    let column = |_| {
        let name = string(&mut body);
        body.advance(6);
        let kind = body.get_u32();
        body.advance(6);
        let binary = if body.get_i16() == 1 { ":binary" } else { "" };
        format!("{name}:{kind}{binary}")
    };
    (0..count).map(column).collect::<Vec<_>>().join(",")
}

fn data_row(mut body: Bytes) -> String {
    let count = body.get_i16();
    let column = |_| match usize::try_from(body.get_i32()) {
        Ok(length) => String::from_utf8_lossy(&body.split_to(length)).into_owned(),
        Err(_) => "NULL".to_owned(),
    };
    (0..count).map(column).collect::<Vec<_>>().join("|")
}

fn fields(mut body: Bytes) -> String {
    let mut parts = Vec::new();
    while body.first().is_some_and(|kind| *kind != 0) {
        let kind = body.get_u8();
        let text = string(&mut body);
        if FIELDS.contains(&kind) {
            parts.push(format!("{}={text}", char::from(kind)));
        }
    }
    parts.join(" ")
}
