//! What a client hears through a shared listener, until it can be told.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::{Rc, Weak};

use synapsedb_core::ids::NodeId;

use super::entry::{End, Entry};
use super::hub::Hub;
use super::metrics::EndedBy;
use super::session::Ended;
use super::startup::Failure;

/// So many bytes are put out at once, or one notification.
const PART_BYTES: usize = 64 * 1024;

/// The part of a session that listens; made when it listens for the first time.
pub(super) struct Ear {
    entry: Weak<Entry>,
    pid: u32,
    /// The listener that has its channels; `None` while they are on a server connection that it has, or there are none.
    hub: RefCell<Option<Rc<Hub>>>,
    /// What it has not been told yet.
    mail: RefCell<VecDeque<Rc<[u8]>>>,
    /// The size of that.
    bytes: Cell<usize>,
    bytes_max: usize,
    /// The transaction at hand has said something about channels without having them.
    pub(super) passed: Cell<bool>,
    /// Why the session must end.
    deaf: RefCell<Option<(EndedBy, Failure)>>,
}

impl Ear {
    pub(super) fn new(entry: &Rc<Entry>, bytes_max: usize) -> Rc<Self> {
        Rc::new(Self {
            entry: Rc::downgrade(entry),
            pid: entry.client.pid,
            hub: RefCell::default(),
            mail: RefCell::default(),
            bytes: Cell::new(0),
            bytes_max,
            passed: Cell::new(false),
            deaf: RefCell::default(),
        })
    }

    /// The client's number.
    pub(super) fn pid(&self) -> u32 {
        self.pid
    }

    /// The listener that has the channels.
    pub(super) fn hub(&self) -> Option<Rc<Hub>> {
        self.hub.borrow().clone()
    }

    pub(super) fn is_shared(&self) -> bool {
        self.hub.borrow().is_some()
    }

    pub(super) fn set_hub(&self, hub: Option<Rc<Hub>>) {
        *self.hub.borrow_mut() = hub;
    }

    /// How many channels it has at the listener.
    pub(super) fn channels(&self) -> usize {
        self.hub.borrow().as_ref().map_or(0, |hub| hub.count_of(self.pid))
    }

    /// Whether a channel is delivered through the listener.
    pub(super) fn delivers(&self, channel: &str) -> bool {
        self.hub.borrow().as_ref().is_some_and(|hub| hub.delivers(self.pid, channel))
    }

    /// A notification for the client, as a whole message.
    pub(super) fn tell(&self, message: &Rc<[u8]>) {
        if self.deaf.borrow().is_some() {
            return;
        }
        let bytes = self.bytes.get() + message.len();
        if bytes > self.bytes_max {
            self.end(EndedBy::Deaf, overrun(self.bytes_max));
            return;
        }
        self.bytes.set(bytes);
        self.mail.borrow_mut().push_back(Rc::clone(message));
        if let Some(entry) = self.entry.upgrade() {
            entry.wake();
        }
    }

    pub(super) fn has_mail(&self) -> bool {
        !self.mail.borrow().is_empty()
    }

    /// Puts some of what it was told out.
    pub(super) fn take_some(&self, out: &mut Vec<u8>) {
        let mut mail = self.mail.borrow_mut();
        while out.len() < PART_BYTES
            && let Some(message) = mail.pop_front()
        {
            self.bytes.set(self.bytes.get() - message.len());
            out.extend_from_slice(&message);
        }
        if mail.is_empty() {
            *mail = VecDeque::new();
        }
    }

    /// Puts all of it out.
    pub(super) fn take_all(&self, out: &mut Vec<u8>) {
        for message in std::mem::take(&mut *self.mail.borrow_mut()) {
            out.extend_from_slice(&message);
        }
        self.bytes.set(0);
    }

    /// The session must end, for it does not hear any more, or not what it should.
    pub(super) fn end(&self, by: EndedBy, failure: Failure) {
        self.tell_end(End::Deaf, by, failure);
    }

    /// The shared connection is gone.
    pub(super) fn has_lost(&self, node: NodeId, why: &str) {
        self.tell_end(End::Missed, EndedBy::Deaf, lost(node, why));
    }

    fn tell_end(&self, end: End, by: EndedBy, failure: Failure) {
        self.deaf.borrow_mut().get_or_insert((by, failure));
        if let Some(entry) = self.entry.upgrade() {
            entry.tell(end);
        }
    }

    /// How the session ends.
    pub(super) fn ended(&self) -> Ended {
        match &*self.deaf.borrow() {
            Some((by, failure)) => Ended::telling(*by, failure),
            None => Ended::quietly(EndedBy::Deaf),
        }
    }

    /// The session ends.
    pub(super) fn leave(&self) {
        if let Some(hub) = self.hub.take() {
            hub.leave(self.pid);
        }
    }
}

const MISSED: &str =
    "Connect again, LISTEN again, and then look at what may have been notified meanwhile.";

/// The connection that listened is gone.
pub(super) fn lost(node: NodeId, why: &str) -> Failure {
    Failure {
        sqlstate: "57P01",
        message: format!(
            "terminating connection because the server connection to node {node} that listens for it was lost: {why}"
        ),
        hint: MISSED.to_owned(),
    }
}

/// The session has begun to listen on another node.
pub(super) fn elsewhere(from: NodeId, to: NodeId) -> Failure {
    Failure {
        sqlstate: "57P01",
        message: format!(
            "terminating connection because it listens on node {from} and has begun to listen on node {to}"
        ),
        hint: MISSED.to_owned(),
    }
}

fn overrun(bytes_max: usize) -> Failure {
    Failure {
        sqlstate: "53400",
        message: format!(
            "terminating connection because more than {bytes_max} bytes of notifications wait for it"
        ),
        hint: format!(
            "Read notifications faster, end transactions sooner, or raise router.notifications_bytes_max. {MISSED}"
        ),
    }
}
