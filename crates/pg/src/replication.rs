//! Logical replication: slots, and the stream of one slot.
//!
//! A [`Stream`] must be read and confirmed all the time it lives: a server that shuts down waits until its walsenders'
//! clients have confirmed what they were sent, and one that hears nothing for `wal_sender_timeout` hangs up.

use std::time::{SystemTime, UNIX_EPOCH};

use bytes::{Buf, BufMut, Bytes};
use synapsedb_core::lsn::Lsn;
use synapsedb_core::time::Timestamp;

use crate::config::Config;
use crate::conn::{CancelToken, Connection, Reader, Writer};
use crate::error::{Error, ErrorKind, Result};
use crate::quote;
use crate::wire::backend::{self, Row, ServerError};
use crate::wire::frontend;

/// Settings that make the text form of values exact and the same on every server.
const VALUE_SETTINGS: [(&str, &str); 4] = [
    ("datestyle", "ISO"),
    ("intervalstyle", "postgres"),
    ("extra_float_digits", "3"),
    ("bytea_output", "hex"),
];

/// Who a server is (`IDENTIFY_SYSTEM`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SystemIdentity {
    /// The number made by initdb, which all copies of the data directory share.
    pub system_identifier: String,
    /// The timeline, which changes with promotion and point-in-time recovery.
    pub timeline: u32,
    /// The end of the flushed WAL.
    pub lsn: Lsn,
}

/// Asks a server who it is.
pub async fn identify(config: &Config) -> Result<SystemIdentity> {
    let mut connection = Connection::connect(config, true).await?;
    let identity = identify_on(&mut connection).await;
    connection.close().await;
    identity
}

async fn identify_on(connection: &mut Connection) -> Result<SystemIdentity> {
    let rows = connection.query("IDENTIFY_SYSTEM").await;
    let row = only_row("identify the server", rows)?;
    let read = || {
        Some(SystemIdentity {
            system_identifier: row.text(0)?.to_owned(),
            timeline: row.text(1)?.parse().ok()?,
            lsn: row.text(2)?.parse().ok()?,
        })
    };
    read().ok_or_else(|| Error::protocol("IDENTIFY_SYSTEM gave an unknown answer"))
}

/// Makes a permanent logical slot for pgoutput and returns its consistent point: everything committed later is in its
/// stream. Waits for the transactions that run at the moment, without a limit of its own.
///
/// Errors with 42710 when the slot exists and 53400 when `max_replication_slots` is reached.
pub async fn create_slot(config: &Config, name: &str) -> Result<Lsn> {
    let mut connection = Connection::connect(config, true).await?;
    let slot = quote::ident(name);
    let sql = format!("CREATE_REPLICATION_SLOT {slot} LOGICAL pgoutput NOEXPORT_SNAPSHOT");
    let rows = connection.query(&sql).await;
    connection.close().await;
    let row = only_row(&format!("create replication slot {slot}"), rows)?;
    let point = row.text(1).and_then(|text| text.parse().ok());
    point.ok_or_else(|| Error::protocol("CREATE_REPLICATION_SLOT gave an unknown answer"))
}

/// Drops a slot and lets go of the WAL it holds.
///
/// Errors with 42704 when there is none and 55006 (transient) while it is being streamed.
pub async fn drop_slot(config: &Config, name: &str) -> Result<()> {
    let mut connection = Connection::connect(config, true).await?;
    let slot = quote::ident(name);
    let dropped = connection.query(&format!("DROP_REPLICATION_SLOT {slot}")).await;
    connection.close().await;
    dropped.map_err(|error| error.while_doing(&format!("drop replication slot {slot}")))?;
    Ok(())
}

fn only_row(doing: &str, rows: Result<Vec<Row>>) -> Result<Row> {
    let mut rows = rows.map_err(|error| error.while_doing(doing))?;
    rows.pop().ok_or_else(|| Error::protocol(format!("{doing}: the server answered nothing")))
}

/// What comes out of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// One message of the output plugin.
    Data {
        /// Where the message's WAL begins; for Begin where its transaction began, zero for some kinds.
        wal_start: Lsn,
        /// How far the server has read.
        wal_end: Lsn,
        /// The message, for [`crate::pgoutput`]: a slice of the read buffer.
        body: Bytes,
    },
    /// A sign of life.
    Keepalive {
        /// How far the server has read and sent: with nothing in flight, this can be confirmed.
        wal_end: Lsn,
        /// Whether the server wants a [`Stream::confirm`] at once.
        reply_requested: bool,
    },
}

/// The stream of one logical slot.
pub struct Stream {
    reader: Reader,
    writer: Writer,
    cancel: CancelToken,
    identity: SystemIdentity,
}

impl Stream {
    /// Starts streaming a slot after `from` (or after what the slot has confirmed, if that is later; zero means the
    /// latter), for a publication, with logical messages if `messages`. Protocol version 1, values in text form,
    /// transactions of all origins.
    ///
    /// Errors with 42704 when there is no such slot, 55006 (transient) while another session streams it and
    /// 55000 when the server has removed WAL that the slot needs.
    pub async fn start(
        config: &Config,
        slot: &str,
        from: Lsn,
        publication: &str,
        messages: bool,
    ) -> Result<Self> {
        let mut config = config.clone();
        let fixed = VALUE_SETTINGS.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let own =
            |name: &str| !VALUE_SETTINGS.iter().any(|(fixed, _)| fixed.eq_ignore_ascii_case(name));
        config.options.retain(|(name, _)| own(name));
        config.options.extend(fixed);
        let mut connection = Connection::connect(&config, true).await?;
        let identity = identify_on(&mut connection).await?;
        let sql = format!(
            "START_REPLICATION SLOT {} LOGICAL {from} (proto_version '1', publication_names {}{})",
            quote::ident(slot),
            // The replication grammar knows plain literals only.
            format_args!("'{}'", quote::ident(publication).replace('\'', "''")),
            if messages { ", messages 'true'" } else { "" }
        );
        let cancel = connection.cancel_token();
        let (mut reader, mut writer) = connection.split();
        frontend::query(writer.buffer(), &sql)?;
        writer.flush().await?;
        loop {
            let (tag, body) = reader.next().await?;
            match tag {
                backend::COPY_BOTH_RESPONSE => {
                    return Ok(Self { reader, writer, cancel, identity });
                }
                backend::ERROR_RESPONSE => {
                    let doing = format!("stream replication slot \"{slot}\" from {from}");
                    return Err(Error::server(doing, ServerError::parse(&body)));
                }
                backend::NOTICE_RESPONSE | backend::PARAMETER_STATUS => {}
                tag => return Err(unexpected(tag)),
            }
        }
    }

    /// Who the server was when the stream began.
    pub fn identity(&self) -> &SystemIdentity {
        &self.identity
    }

    /// The right to end the stream from elsewhere.
    pub fn cancel_token(&self) -> CancelToken {
        self.cancel.clone()
    }

    /// The next event. Cancel safe.
    ///
    /// Errors when the server ends the stream or the connection breaks; the stream is then over, and a new one from
    /// the last confirmed position repeats what was not confirmed.
    #[inline]
    pub async fn next(&mut self) -> Result<Event> {
        loop {
            let (tag, body) = self.reader.next().await?;
            if let Some(event) = read_event(tag, body)? {
                return Ok(event);
            }
        }
    }

    /// The next event if it is here as a whole, without a system call.
    ///
    /// Errors as [`Stream::next`].
    #[inline]
    pub fn try_next(&mut self) -> Result<Option<Event>> {
        while let Some((tag, body)) = self.reader.try_next()? {
            if let Some(event) = read_event(tag, body)? {
                return Ok(Some(event));
            }
        }
        Ok(None)
    }

    /// Tells that nothing will be read for a while: until the next event is asked for, what arrives wakes nobody. The
    /// server sends message by message, and each would.
    ///
    /// Errors when the system does not let go of the socket; the stream is then over.
    pub fn rest(&mut self) -> Result<()> {
        self.reader.rest()
    }

    /// Tells the server what was written, flushed and applied; it forgets the WAL before `flushed`. Cancel safe in
    /// so far as the message is sent as a whole, by this call or the next one.
    pub async fn confirm(&mut self, written: Lsn, flushed: Lsn, applied: Lsn) -> Result<()> {
        let buffer = self.writer.buffer();
        buffer.put_slice(b"d\0\0\0\x26r");
        for position in [written, flushed, applied] {
            buffer.put_u64(position.0);
        }
        buffer.put_i64(now().0);
        buffer.put_u8(0);
        self.writer.flush().await
    }

    /// Ends the stream: the slot is free as soon as the server has seen it.
    pub async fn close(mut self) {
        frontend::copy_done(self.writer.buffer());
        self.writer.close().await;
    }
}

/// The local clock, which a status update carries for the server's statistics.
fn now() -> Timestamp {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_unix_us(i64::try_from(since_epoch.as_micros()).unwrap_or(i64::MAX))
}

/// Reads a message of the stream; `None` for those that mean nothing here.
fn read_event(tag: u8, mut body: Bytes) -> Result<Option<Event>> {
    match tag {
        backend::COPY_DATA => {}
        backend::ERROR_RESPONSE => {
            return Err(Error::server("replication stream", ServerError::parse(&body)));
        }
        backend::COPY_DONE | backend::COMMAND_COMPLETE => {
            let text = "the server has ended the replication stream (it shuts down)";
            return Err(Error::new(ErrorKind::Closed, text));
        }
        backend::NOTICE_RESPONSE | backend::PARAMETER_STATUS => return Ok(None),
        tag => return Err(unexpected(tag)),
    }
    // Data: kind, start, end, clock. Keepalive: kind, end, clock, whether a reply is wanted.
    match body.first() {
        Some(b'w') if body.len() >= 25 => {
            body.advance(1);
            let (wal_start, wal_end) = (Lsn(body.get_u64()), Lsn(body.get_u64()));
            body.advance(8);
            Ok(Some(Event::Data { wal_start, wal_end, body }))
        }
        Some(b'k') if body.len() == 18 => {
            let reply_requested = body[17] != 0;
            body.advance(1);
            Ok(Some(Event::Keepalive { wal_end: Lsn(body.get_u64()), reply_requested }))
        }
        _ => Err(Error::protocol("the replication stream holds a malformed message")),
    }
}

fn unexpected(tag: u8) -> Error {
    let tag = tag.escape_ascii();
    Error::protocol(format!("the server sent message '{tag}' in a replication stream"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn keepalives() {
        let body = Bytes::from_static(b"k\0\0\0\0\0\0\0\x07\0\0\0\0\0\0\0\0\x01");
        let event = read_event(b'd', body).unwrap().unwrap();
        assert_eq!(event, Event::Keepalive { wal_end: Lsn(7), reply_requested: true });
    }

    proptest! {
        #[test]
        fn nothing_panics(tag: u8, body: Vec<u8>, kind in "[wk]") {
            let _ = read_event(tag, body.clone().into());
            let _ = read_event(b'd', [kind.as_bytes(), &body].concat().into());
        }

        #[test]
        fn data_round_trips(start: u64, end: u64, content: Vec<u8>) {
            let mut body = vec![b'w'];
            [start, end, 0].iter().for_each(|number| body.extend(number.to_be_bytes()));
            body.extend(&content);
            let expected =
                Event::Data { wal_start: Lsn(start), wal_end: Lsn(end), body: content.into() };
            assert_eq!(read_event(b'd', body.into()).unwrap(), Some(expected));
        }
    }
}
