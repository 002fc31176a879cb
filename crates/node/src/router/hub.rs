//! A shared listener: one server connection of a role in a database of a node, which listens to the channels of all of
//! its clients on this worker. What it hears goes to each of them, in the order in which it was committed.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, HashMap};
use std::rc::{Rc, Weak};

use bytes::{Bytes, BytesMut};
use synapsedb_core::ids::NodeId;
use synapsedb_pg::quote;
use synapsedb_pg::wire::{backend, frontend};
use tokio::sync::{mpsc, oneshot};

use super::account::Account;
use super::channels::{self, Passed, Registry, Token};
use super::ear::Ear;
use super::origin::Origin;
use super::pool::Pool;
use super::server::{self, CancelKey, ConnectError, Server};
use super::startup;
use super::worker::Worker;

/// Channels of one statement: what is sent to the server must fit into the socket, or each might wait for the other.
const STEP_MAX: usize = 100;
/// The longest message that a listener is sent; a notification has less than 8,000 bytes.
const MESSAGE_BYTES_MAX: usize = 64 * 1024;

/// What a listener is to do.
enum Order {
    /// Make the server's session listen to what the registry says, and answer when it does.
    Follow(oneshot::Sender<()>),
}

/// Why channels cannot be listened to through a shared connection.
#[derive(Debug)]
pub(super) enum NotShared {
    /// The listener would have too many.
    Full,
    /// It was lost.
    Lost,
}

/// A shared listener, as its clients see it; its connection ends with it.
pub(super) struct Hub {
    key: CancelKey,
    /// The channel of its tokens, which no other listener has.
    pub(super) post: String,
    /// The `client_encoding` in which it hears.
    pub(super) encoding: Option<String>,
    registry: RefCell<Registry<u32>>,
    ears: RefCell<HashMap<u32, Rc<Ear>>>,
    ends: RefCell<HashMap<Token, oneshot::Sender<()>>>,
    orders: mpsc::UnboundedSender<Order>,
    tokens: Cell<Token>,
    channels_max: usize,
    lost: Cell<bool>,
}

impl Hub {
    /// Opens the connection.
    ///
    /// # Errors
    /// The server cannot be reached, or refuses.
    pub(super) async fn open(
        worker: &Rc<Worker>,
        account: &Rc<Account>,
        pool: &Pool,
    ) -> Result<Rc<Self>, ConnectError> {
        let (origin, keys) = (Origin::plain(worker, account), account.keys());
        let opened =
            server::open(&pool.address, &origin.parameters, keys.as_ref(), &worker.shared).await;
        let mut server = match opened {
            Ok(opened) => opened.server,
            Err(error) => {
                worker.failed_to_reach(pool.address.node, &error);
                worker.make_room(&account.user, &error);
                return Err(error);
            }
        };
        let post = format!("synapsedb_{:032x}", rand::random::<u128>());
        let begin = quote::fill(include_str!("hub.sql"), &[("post", &quote::ident(&post))]);
        if let Err(error) = server.ask(&begin).await {
            let (address, why) = (pool.address.tcp.clone(), error.to_string());
            return Err(ConnectError::Unreachable { address, why });
        }
        let (orders, todo) = mpsc::unbounded_channel();
        let hub = Rc::new(Self {
            key: server.cancel.clone(),
            post,
            encoding: server.reported.get("client_encoding").cloned(),
            registry: RefCell::default(),
            ears: RefCell::default(),
            ends: RefCell::default(),
            orders,
            tokens: Cell::new(0),
            channels_max: worker.shared.config().listener_channels_max,
            lost: Cell::new(false),
        });
        tokio::task::spawn_local(run(Rc::downgrade(&hub), server, todo));
        Ok(hub)
    }

    /// How it is reached, and the server's process id of it.
    pub(super) fn key(&self) -> &CancelKey {
        &self.key
    }

    pub(super) fn node(&self) -> NodeId {
        self.key.address.node
    }

    pub(super) fn is_lost(&self) -> bool {
        self.lost.get()
    }

    pub(super) fn is_idle(&self) -> bool {
        self.registry.borrow().is_empty()
    }

    /// Its clients and their channels, counted.
    pub(super) fn counts(&self) -> (usize, usize) {
        (self.ears.borrow().len(), self.registry.borrow().channels())
    }

    /// A new mark for the queue of notifications.
    pub(super) fn token(&self) -> Token {
        self.tokens.set(self.tokens.get() + 1);
        self.tokens.get()
    }

    /// Statements that put a token into the queue, on a connection that listens to these channels from then on.
    pub(super) fn handover(&self, token: Token, channels: &BTreeSet<String>) -> String {
        let post = quote::ident(&self.post);
        let mut listens = format!("listen {post};\n");
        for channel in channels {
            listens.push_str(&format!("listen {};\n", quote::ident(channel)));
        }
        let token = quote::literal(&token.to_string());
        let parts = [("post", &*post), ("listens", &*listens), ("token", &*token)];
        quote::fill(include_str!("handover.sql"), &parts)
    }

    /// Listens to a client's channels, which are delivered to it from the token on.
    ///
    /// # Errors
    /// They are too many, or the connection is lost; nothing is changed then.
    pub(super) async fn join(
        &self,
        ear: &Rc<Ear>,
        channels: &BTreeSet<String>,
        from: Token,
    ) -> Result<(), NotShared> {
        if self.lost.get() {
            return Err(NotShared::Lost);
        }
        let member = ear.pid();
        self.registry.borrow_mut().join(member, channels, from);
        self.ears.borrow_mut().insert(member, Rc::clone(ear));
        if self.registry.borrow().channels() > self.channels_max {
            self.give_up(member, from);
            return Err(NotShared::Full);
        }
        let (done, listens) = oneshot::channel();
        let told = self.orders.send(Order::Follow(done)).is_ok();
        if told && listens.await.is_ok() {
            return Ok(());
        }
        self.give_up(member, from);
        Err(NotShared::Lost)
    }

    /// Undoes what a client has joined from this token on.
    pub(super) fn give_up(&self, member: u32, from: Token) {
        self.registry.borrow_mut().leave(member, Some(from));
        if self.registry.borrow().count_of(member) == 0 {
            self.ears.borrow_mut().remove(&member);
        }
    }

    /// A client does not listen any more.
    pub(super) fn leave(&self, member: u32) {
        self.registry.borrow_mut().leave(member, None);
        self.ears.borrow_mut().remove(&member);
        // What nobody listens to is not heard; nobody waits for that.
        let _ = self.orders.send(Order::Follow(oneshot::channel().0));
    }

    /// A client's delivery ends with this token; the answer comes when everything in front of it is delivered.
    pub(super) fn end_at(&self, member: u32, token: Token) -> oneshot::Receiver<()> {
        let (ended, end) = oneshot::channel();
        self.registry.borrow_mut().end_at(member, Some(token));
        self.ends.borrow_mut().insert(token, ended);
        end
    }

    /// The token will not come.
    pub(super) fn end_not_at(&self, member: u32, token: Token) {
        self.registry.borrow_mut().end_at(member, None);
        self.ends.borrow_mut().remove(&token);
    }

    /// A client's channels.
    pub(super) fn channels_of(&self, member: u32) -> BTreeSet<String> {
        self.registry.borrow().of(member)
    }

    pub(super) fn count_of(&self, member: u32) -> usize {
        self.registry.borrow().count_of(member)
    }

    /// Whether a client gets here what the channel brings.
    pub(super) fn delivers(&self, member: u32, channel: &str) -> bool {
        self.registry.borrow().delivers(member, channel)
    }

    /// A notification came.
    fn heard(&self, body: &[u8]) {
        let Some((_, channel, payload)) = channels::parse(body) else { return };
        if channel == self.post {
            let token = std::str::from_utf8(payload).ok().and_then(|text| text.parse().ok());
            if let Some(token) = token {
                self.passed(token);
            }
            return;
        }
        let mut message = None;
        let registry = self.registry.borrow();
        let ears = self.ears.borrow();
        for ear in registry.heard(channel).filter_map(|member| ears.get(&member)) {
            let message: &Rc<[u8]> = message.get_or_insert_with(|| {
                let mut whole = Vec::new();
                startup::put_message(&mut whole, backend::NOTIFICATION_RESPONSE, &[body]);
                whole.into()
            });
            ear.tell(message);
        }
    }

    fn passed(&self, token: Token) {
        let passed = self.registry.borrow_mut().token(token);
        if let Some(Passed::Ended(member)) = passed {
            self.ears.borrow_mut().remove(&member);
            let _ = self.orders.send(Order::Follow(oneshot::channel().0));
        }
        if let Some(ended) = self.ends.borrow_mut().remove(&token) {
            let _ = ended.send(());
        }
    }

    /// The connection is gone: whoever listens may have missed something.
    fn is_gone(&self, why: &str) {
        self.lost.set(true);
        tracing::warn!(node = %self.node(), "router: a shared LISTEN connection was lost: {why}");
        self.ends.borrow_mut().clear();
        for ear in std::mem::take(&mut *self.ears.borrow_mut()).into_values() {
            ear.has_lost(self.node(), why);
        }
    }
}

/// Keeps the connection until the hub is dropped or the connection is lost.
async fn run(hub: Weak<Hub>, mut server: Server, mut todo: mpsc::UnboundedReceiver<Order>) {
    let mut buffer = BytesMut::new();
    let mut step = Step::default();
    loop {
        let event = tokio::select! {
            order = todo.recv(), if step.is_done() => Event::Order(order),
            message = server::next_message(&mut server.io, &mut buffer, MESSAGE_BYTES_MAX) => {
                Event::Message(message)
            }
        };
        let Some(hub) = hub.upgrade() else {
            let _ = server.io.say(&[b'X', 0, 0, 0, 4]).await;
            return;
        };
        let gone = match event {
            Event::Order(None) => return,
            Event::Order(Some(Order::Follow(done))) => {
                step.waiting.push(done);
                while let Ok(Order::Follow(done)) = todo.try_recv() {
                    step.waiting.push(done);
                }
                step.go_on(&hub, &mut server).await
            }
            Event::Message(Ok((tag, body))) => step.message(&hub, &mut server, tag, &body).await,
            Event::Message(Err(error)) => Err(error.to_string()),
        };
        if let Err(why) = gone {
            hub.is_gone(&why);
            return;
        }
    }
}

enum Event {
    /// `None` when the hub was dropped.
    Order(Option<Order>),
    Message(std::io::Result<(u8, Bytes)>),
}

/// What is being changed in the server's session.
#[derive(Default)]
struct Step {
    under_way: Option<(Vec<String>, Vec<String>)>,
    failed: Option<String>,
    waiting: Vec<oneshot::Sender<()>>,
}

impl Step {
    fn is_done(&self) -> bool {
        self.under_way.is_none()
    }

    /// Begins the next step, or answers those who wait.
    async fn go_on(&mut self, hub: &Hub, server: &mut Server) -> Result<(), String> {
        let (begins, ends) = hub.registry.borrow().difference(STEP_MAX);
        if begins.is_empty() && ends.is_empty() {
            for waiting in self.waiting.drain(..) {
                let _ = waiting.send(());
            }
            return Ok(());
        }
        let of = |verb: &str, channels: &[String]| -> String {
            channels.iter().map(|channel| format!("{verb} {};", quote::ident(channel))).collect()
        };
        let sql = of("listen", &begins) + &of("unlisten", &ends);
        let mut request = BytesMut::new();
        frontend::query(&mut request, &sql).map_err(|error| error.to_string())?;
        self.under_way = Some((begins, ends));
        server.io.say(&request).await.map_err(|error| error.to_string())
    }

    async fn message(
        &mut self,
        hub: &Hub,
        server: &mut Server,
        tag: u8,
        body: &[u8],
    ) -> Result<(), String> {
        match tag {
            backend::NOTIFICATION_RESPONSE => hub.heard(body),
            backend::ERROR_RESPONSE => {
                let said = startup::error_field(body, b'M').unwrap_or_default().to_owned();
                self.failed = Some(said);
            }
            backend::READY_FOR_QUERY => {
                if let Some(failed) = self.failed.take() {
                    return Err(failed);
                }
                if let Some(done) = self.under_way.take() {
                    hub.registry.borrow_mut().listens(done);
                    return self.go_on(hub, server).await;
                }
            }
            _ => {}
        }
        // What it says last, before it closes.
        match self.failed.take() {
            Some(failed) if tag == backend::ERROR_RESPONSE && self.under_way.is_none() => {
                Err(failed)
            }
            failed => {
                self.failed = failed;
                Ok(())
            }
        }
    }
}
