//! The extended protocol on the console: commands have no parameters, so each message has one simple answer.

use std::collections::HashMap;

use bytes::{Buf as _, BufMut as _, BytesMut};
use synapsedb_pg::wire::startup as wire;

use super::command::Command;
use super::run::{self, Reply};
use super::table::{Formats, message};
use super::{Console, show};
use crate::router::metrics::EndedBy;
use crate::router::startup::Failure;
use crate::router::upstream::violation;

/// Statements and portals that a session may have by name, of each.
const NAMES_MAX: usize = 100;

/// What a session has prepared.
#[derive(Default)]
pub(super) struct Extended {
    statements: HashMap<String, Command>,
    portals: HashMap<String, (Command, Formats)>,
    /// It was told of an error: all up to the next Sync is skipped.
    skipping: bool,
}

fn refused(sqlstate: &'static str, message: String) -> Failure {
    Failure { sqlstate, message, hint: String::new() }
}

/// A text up to its end.
fn string(body: &mut &[u8]) -> Result<String, Failure> {
    let end = body.iter().position(|&byte| byte == 0);
    let end = end.ok_or_else(|| violation("invalid string in message".to_owned()))?;
    let text = String::from_utf8_lossy(&body[..end]).into_owned();
    body.advance(end + 1);
    Ok(text)
}

fn codes(body: &mut &[u8]) -> Result<Vec<u16>, Failure> {
    let cut = |_| violation("a message is cut off".to_owned());
    let count = body.try_get_u16().map_err(cut)?;
    (0..count).map(|_| body.try_get_u16().map_err(cut)).collect()
}

impl Console {
    /// Answers a message of the extended protocol.
    pub(super) async fn extended_message(
        &mut self,
        tag: u8,
        body: &[u8],
        out: &mut BytesMut,
    ) -> Result<(), (EndedBy, Option<Failure>)> {
        if tag == b'S' {
            self.extended.skipping = false;
            self.extended.portals.clear();
            wire::ready_for_query(out, b'I');
            return Ok(());
        }
        if self.extended.skipping || tag == b'H' {
            return Ok(());
        }
        let mut body = body;
        let outcome = match tag {
            b'P' => self.extended.parse(&mut body, out),
            b'B' => self.extended.bind(&mut body, out),
            b'C' => self.extended.close(&mut body, out),
            b'D' => self.describe(&mut body, out).await,
            b'E' => match string(&mut body).and_then(|name| self.extended.portal(&name)) {
                Ok((command, formats)) => match self.carry_out_parsed(command).await? {
                    Ok(reply) => {
                        reply.put(false, &formats, out);
                        Ok(())
                    }
                    Err(failure) => Err(failure),
                },
                Err(failure) => Err(failure),
            },
            other => {
                let failure = violation(format!("invalid frontend message type {other}"));
                return Err((EndedBy::Client, Some(failure)));
            }
        };
        if let Err(failure) = outcome {
            out.extend_from_slice(&failure.error());
            self.extended.skipping = true;
        }
        Ok(())
    }

    async fn describe(&mut self, body: &mut &[u8], out: &mut BytesMut) -> Result<(), Failure> {
        let kind = body.try_get_u8().unwrap_or_default();
        let name = string(body)?;
        let (command, formats) = if kind == b'S' {
            message(out, b't', |out| out.put_u16(0));
            (self.extended.statement(&name)?, Formats::default())
        } else {
            self.extended.portal(&name)?
        };
        if let Command::Show(what) = command
            && let Reply::Table(table) = show::show(&self.worker, what).await
        {
            table.describe(&formats, out);
        } else {
            message(out, b'n', |_| ());
        }
        Ok(())
    }
}

impl Extended {
    fn statement(&self, name: &str) -> Result<Command, Failure> {
        let found = self.statements.get(name).cloned();
        found.ok_or_else(|| {
            refused("26000", format!("prepared statement \"{name}\" does not exist"))
        })
    }

    fn portal(&self, name: &str) -> Result<(Command, Formats), Failure> {
        let found = self.portals.get(name).cloned();
        found.ok_or_else(|| refused("34000", format!("portal \"{name}\" does not exist")))
    }

    fn parse(&mut self, body: &mut &[u8], out: &mut BytesMut) -> Result<(), Failure> {
        let name = string(body)?;
        let command = run::parse(&string(body)?)?;
        if self.statements.len() >= NAMES_MAX {
            let message = format!("the console keeps at most {NAMES_MAX} prepared statements");
            return Err(refused("54000", message));
        }
        self.statements.insert(name, command);
        message(out, b'1', |_| ());
        Ok(())
    }

    fn bind(&mut self, body: &mut &[u8], out: &mut BytesMut) -> Result<(), Failure> {
        let (portal, name) = (string(body)?, string(body)?);
        let command = self.statement(&name)?;
        codes(body)?;
        if body.try_get_u16() != Ok(0) {
            let message = "the console's commands take no parameters".to_owned();
            return Err(refused("0A000", message));
        }
        let formats = Formats::new(codes(body)?);
        if self.portals.len() >= NAMES_MAX {
            return Err(refused("54000", format!("the console keeps at most {NAMES_MAX} portals")));
        }
        self.portals.insert(portal, (command, formats));
        message(out, b'2', |_| ());
        Ok(())
    }

    fn close(&mut self, body: &mut &[u8], out: &mut BytesMut) -> Result<(), Failure> {
        let kind = body.try_get_u8().unwrap_or_default();
        let name = string(body)?;
        if kind == b'S' {
            self.statements.remove(&name);
        } else {
            self.portals.remove(&name);
        }
        message(out, b'3', |_| ());
        Ok(())
    }
}
