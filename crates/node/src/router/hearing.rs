//! How a client's channels come to a shared listener when its transaction has ended, and back to the server connection
//! that it is lent when it says something about them.
//!
//! What LISTEN, UNLISTEN, DISCARD and a ROLLBACK of them come to, PostgreSQL itself says: the transaction runs on a
//! connection that listens to all of the client's channels, and what that listens to in the end, the client listens to.

use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use synapsedb_core::ids::NodeId;
use synapsedb_pg::sql::traits::{Flags, Traits};
use tokio::time::timeout;

use super::channels::{self, split_at};
use super::ear::{self, Ear};
use super::hub::{Hub, NotShared};
use super::loss::Aborted;
use super::metrics::EndedBy;
use super::server::{AskError, Server};
use super::session::{Ended, Lent, Session};
use super::startup::second_text;
use super::upstream::{HEADER_BYTES, header};

/// Why a session keeps its connection for the transaction at hand.
pub(super) const BORROWED: &str = "LISTEN, for this transaction";
/// Why a session keeps its connection that listens to what a shared listener is not for.
const OTHER_ENCODING: &str = "LISTEN in another client_encoding than the database's";
const TOO_MANY: &str = "LISTEN to more channels than router.listen_channels_max";
const FULL: &str = "LISTEN, for the shared listener has router.listener_channels_max channels";
const NO_HUB: &str = "LISTEN, for a shared listener cannot be opened";

/// What becomes of a connection that listens for the client.
enum Place {
    /// Nothing on it is the client's any more.
    Shared,
    /// It stays with the client.
    Kept(&'static str),
}

/// A transaction of these traits must run where its client's channels are.
fn needs_channels(flags: Flags) -> bool {
    flags.has(Flags::BEGIN.with(Flags::CHANNELS))
}

impl Session {
    /// Whether the request at hand needs the client's channels on the connection that it was just lent.
    pub(super) fn must_take_channels(&self) -> bool {
        let Some(ear) = self.entry.ear.get() else { return false };
        ear.passed.set(false);
        if !ear.is_shared() || self.keeps_server() {
            return false;
        }
        let mut rest = &self.inbox[..];
        while let Ok(Some((tag, length))) = header(rest) {
            let whole = HEADER_BYTES + length;
            let body = rest.get(HEADER_BYTES..whole);
            if self.needs_channels(tag, length, body) {
                return true;
            }
            rest = rest.get(whole..).unwrap_or_default();
        }
        false
    }

    /// Whether a message, as far as it is there, needs the client's channels.
    fn needs_channels(&self, tag: u8, length: usize, body: Option<&[u8]>) -> bool {
        if matches!(tag, b'Q' | b'P') && length > self.worker.shared.config().query_bytes_max {
            return true;
        }
        let Some(body) = body else { return false };
        match tag {
            b'Q' => needs_channels(Traits::of(body.strip_suffix(b"\0").unwrap_or(body)).flags),
            b'P' => second_text(body).is_some_and(|text| needs_channels(Traits::of(text).flags)),
            b'B' => second_text(body).is_some_and(|name| match self.prepared.get(name) {
                Some(statement) => needs_channels(statement.traits),
                None => name.is_empty() && needs_channels(self.unnamed_traits),
            }),
            _ => false,
        }
    }

    /// Whether a message must wait for a transaction of its own, in which the client's channels are where it runs.
    pub(super) fn must_wait(
        &self,
        ear: &Ear,
        server: &Server,
        (tag, length): (u8, usize),
        body: Option<&[u8]>,
    ) -> bool {
        if !ear.is_shared() || ear.passed.get() || !self.needs_channels(tag, length, body) {
            return false;
        }
        let is_between = self.is_between_requests(server) && !server.expected.is_copying();
        // Else it is in the middle of something that it must not be kept from.
        let waits = is_between && server.expected.cycles() > 0;
        ear.passed.set(!waits);
        waits
    }

    /// Has the connection that the client is lent listen to the client's channels.
    ///
    /// # Errors
    /// The connection was lost on the way: what was notified meanwhile may be, too.
    pub(super) async fn take_channels(&mut self, mut lent: Lent) -> Result<Lent, Ended> {
        let Some((ear, hub)) = self.ear_and_hub() else { return Ok(lent) };
        if lent.server.node() != hub.node() {
            ear.passed.set(true);
            return Ok(lent);
        }
        match self.channels_to(&mut lent.server, &ear, &hub).await {
            Ok(true) => {
                self.entry.pin.set(Some(BORROWED));
                Ok(lent)
            }
            Ok(false) => Ok(lent),
            Err(why) => {
                let failure = ear::lost(lent.server.node(), &why);
                self.end_lent(lent);
                Err(Ended::telling(EndedBy::Deaf, &failure))
            }
        }
    }

    fn ear_and_hub(&self) -> Option<(Rc<Ear>, Rc<Hub>)> {
        let ear = self.entry.ear.get()?;
        Some((Rc::clone(ear), ear.hub()?))
    }

    /// Hands the client's channels from the shared listener to a connection; whether that was done.
    async fn channels_to(
        &mut self,
        server: &mut Server,
        ear: &Rc<Ear>,
        hub: &Rc<Hub>,
    ) -> Result<bool, String> {
        let (member, token) = (ear.pid(), hub.token());
        let channels = hub.channels_of(member);
        let ended = hub.end_at(member, token);
        let only_here = |body: &bytes::Bytes| {
            channels::parse(body).is_none_or(|(_, channel, _)| !channels.contains(channel))
        };
        match server.ask(&hub.handover(token, &channels)).await {
            Ok(_) => {}
            Err(AskError::Refused(why)) => {
                // Nothing has changed: the client goes on to hear what it hears.
                tracing::debug!(pid = member, "channels stay with the shared listener: {why}");
                hub.end_not_at(member, token);
                ear.passed.set(true);
                return Ok(false);
            }
            Err(error) => return Err(error.to_string()),
        }
        let patience = Duration::from_millis(self.worker.shared.config().connect_timeout_ms);
        match timeout(patience, ended).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return Err("it ended".to_owned()),
            Err(_) => return Err(format!("no answer within {patience:?}")),
        }
        ear.set_hub(None);
        ear.take_all(&mut self.unsent);
        let heard = std::mem::take(&mut server.heard);
        let (before, behind) = split_at(heard, &hub.post, token).ok_or("it heard no token")?;
        let unlisten = format!("unlisten {}", synapsedb_pg::quote::ident(&hub.post));
        server.ask(&unlisten).await.map_err(|error| error.to_string())?;
        // Others' tokens came meanwhile, and what was notified.
        let more = std::mem::take(&mut server.heard);
        let no_token = |body: &bytes::Bytes| {
            channels::parse(body).is_none_or(|(_, channel, _)| channel != hub.post)
        };
        let before = before.into_iter().filter(only_here);
        server.heard = before.chain(behind).chain(more).filter(no_token).collect();
        self.pass_on_heard(server);
        Ok(true)
    }

    /// A transaction has ended on a connection that listens to `found` in the end; `pin` keeps it with the client
    /// anyway. What keeps it now.
    ///
    /// # Errors
    /// A connection was lost on the way, or the session would have to listen on two nodes.
    pub(super) async fn place_channels(
        &mut self,
        lent: &mut Lent,
        found: BTreeSet<String>,
        pin: Option<&'static str>,
    ) -> Result<Option<&'static str>, Ended> {
        let shared = self.ear_and_hub();
        if found.is_empty() && (shared.is_none() || pin.is_none() && self.fits_encoding(&shared)) {
            self.reading.listens = shared.is_some();
            return Ok(pin);
        }
        let deaf = |ear: &Ear, node, why: &str| {
            let failure = ear::lost(node, why);
            ear.end(EndedBy::Deaf, failure);
            ear.ended()
        };
        let (node, server) = (lent.server.node(), &mut lent.server);
        if let Some((ear, hub)) = &shared {
            if hub.node() != node {
                ear.end(EndedBy::Deaf, ear::elsewhere(hub.node(), node));
                return Err(ear.ended());
            }
            if pin.is_some() || !self.fits_encoding(&shared) {
                // It stays with the client, and so do the channels.
                return match self.channels_to(server, ear, hub).await {
                    Ok(true) => Ok(pin.or(Some(OTHER_ENCODING))),
                    Ok(false) => Err(deaf(ear, node, "its channels could not be taken over")),
                    Err(why) => Err(deaf(ear, node, &why)),
                };
            }
        }
        if pin.is_some() {
            return Ok(pin);
        }
        let max = self.worker.shared.config().notifications_bytes_max;
        let ear = Rc::clone(self.entry.ear.get_or_init(|| Ear::new(&self.entry, max)));
        match self.share_channels(&mut lent.server, &ear, found, lent.pool.is_some()).await {
            Ok(Place::Shared) => {
                self.reading.listens = true;
                Ok(None)
            }
            Ok(Place::Kept(why)) => match self.ear_and_hub() {
                None => Ok(Some(why)),
                Some((ear, hub)) => match self.channels_to(&mut lent.server, &ear, &hub).await {
                    Ok(true) => Ok(Some(why)),
                    Ok(false) => Err(deaf(&ear, node, "its channels could not be taken over")),
                    Err(why) => Err(deaf(&ear, node, &why)),
                },
            },
            Err(why) => Err(deaf(&ear, node, &why)),
        }
    }

    /// Whether what a shared listener hears is in the encoding of the client.
    fn fits_encoding(&self, shared: &Option<(Rc<Ear>, Rc<Hub>)>) -> bool {
        shared.as_ref().is_none_or(|(_, hub)| hub.encoding.as_ref() == self.encoding())
    }

    fn encoding(&self) -> Option<&String> {
        self.reported.get("client_encoding")
    }

    /// Hands channels from a connection to the shared listener.
    async fn share_channels(
        &mut self,
        server: &mut Server,
        ear: &Rc<Ear>,
        found: BTreeSet<String>,
        pooled: bool,
    ) -> Result<Place, String> {
        let config = &self.worker.shared.config();
        if found.len() + ear.channels() > config.listen_channels_max {
            return Ok(Place::Kept(TOO_MANY));
        }
        // A name that is not in UTF-8 is not known well enough to be asked for again.
        if !pooled || found.iter().any(|name| name.contains('\u{fffd}')) {
            return Ok(Place::Kept(OTHER_ENCODING));
        }
        let pool = self.account.pool(&self.worker, &server.cancel.address);
        let Ok(hub) = pool.hub(&self.worker, &self.account).await else {
            return Ok(Place::Kept(NO_HUB));
        };
        if hub.encoding.as_ref() != self.encoding() {
            return Ok(Place::Kept(OTHER_ENCODING));
        }
        if ear.hub().is_some_and(|other| !Rc::ptr_eq(&other, &hub)) {
            return Err("another has taken its place".to_owned());
        }
        let (member, token) = (ear.pid(), hub.token());
        let had = hub.channels_of(member);
        match hub.join(ear, &found, token).await {
            Ok(()) => {}
            Err(NotShared::Full) => return Ok(Place::Kept(FULL)),
            Err(NotShared::Lost) => return Ok(Place::Kept(NO_HUB)),
        }
        match server.ask(&hub.handover(token, &BTreeSet::new())).await {
            Ok(_) => {}
            Err(AskError::Refused(why)) => {
                tracing::debug!(pid = member, "channels stay with their connection: {why}");
                hub.give_up(member, token);
                return Ok(Place::Kept(NO_HUB));
            }
            Err(error) => return Err(error.to_string()),
        }
        let heard = std::mem::take(&mut server.heard);
        let (mut before, _) = split_at(heard, &hub.post, token).ok_or("it heard no token")?;
        // What the client had before, the listener has delivered.
        before.retain(|body| {
            channels::parse(body).is_none_or(|(_, channel, _)| !had.contains(channel))
        });
        server.heard = before;
        self.pass_on_heard(server);
        ear.set_hub(Some(hub));
        server.ask("unlisten *").await.map_err(|error| error.to_string())?;
        server.heard.clear();
        // It may have changed meanwhile.
        self.entry.primary_is(self.worker.shared.state.borrow().primary);
        Ok(Place::Shared)
    }

    /// Whether the client has heard what it was not told yet.
    pub(super) fn has_mail(&self) -> bool {
        self.entry.ear.get().is_some_and(|ear| ear.has_mail())
    }

    /// Puts out what the client has heard, if that may stand here.
    pub(super) fn take_mail(&mut self) {
        let Some(ear) = self.entry.ear.get() else { return };
        if !ear.has_mail()
            || !self.unsent.is_empty()
            || self.aborted != Aborted::No
            || self.skipping
            || self.kept_ready
        {
            return;
        }
        ear.take_some(&mut self.unsent);
        super::account::add(&self.account.counters.sent, self.unsent.len() as u64);
    }

    /// The session keeps a connection of which nobody knows what it listens to.
    pub(super) fn must_hear(&self, node: NodeId, why: &str) {
        if let Some((ear, _)) = self.ear_and_hub() {
            ear.has_lost(node, why);
        }
    }

    /// How a session ends that does not hear any more.
    pub(super) fn deafened(&self) -> Ended {
        let ear = self.entry.ear.get();
        ear.map_or_else(|| Ended::quietly(EndedBy::Deaf), |ear| ear.ended())
    }

    /// Whether a notification that its own connection has heard comes from the shared listener, too.
    pub(super) fn is_delivered_elsewhere(&self, body: &[u8]) -> bool {
        let ear = self.entry.ear.get();
        ear.zip(channels::parse(body)).is_some_and(|(ear, (_, channel, _))| ear.delivers(channel))
    }
}
