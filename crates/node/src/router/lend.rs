//! How a session gets a server connection for a transaction: one that is idle and as the client wants it, or one that
//! is waited for and given the client's settings.

use std::rc::Rc;
use std::time::{Duration, Instant};

use synapsedb_core::ids::NodeId;

use super::account::add;
use super::entry::{Activity, Route};
use super::origin;
use super::pool::{NoServer, Pool};
use super::reach::{Unreached, reach};
use super::server::{self, Server};
use super::session::{Lent, Session};
use super::startup::Failure;
use super::traffic::Flow;

impl Session {
    /// A connection for a transaction that begins now, if one is idle that is as the client wants it.
    pub(super) fn lend_now(&mut self) -> Option<Lent> {
        if self.account.is_held() {
            return None;
        }
        let route = self.entry.route.get();
        let address = self.worker.pick(route.to, &self.reading).ok()?;
        if self.reading.must_settle(address.node) {
            return None;
        }
        let pool = self.account.pool(&self.worker, &address);
        let server = pool.take(&self.wanted, route.guarded)?;
        if !server.is_as(&self.wanted, route.guarded) {
            // Rare enough to be done by the long way.
            pool.give_back(server);
            return None;
        }
        Some(self.lent(server, pool))
    }

    pub(super) fn lent(&mut self, server: Box<Server>, pool: Rc<Pool>) -> Lent {
        if !Rc::ptr_eq(&server.reported, &self.reported) {
            self.report(&server);
        }
        pool.lent.set(pool.lent.get() + 1);
        self.stay_at(server.node());
        self.went_to(server.node());
        *self.entry.current.borrow_mut() = Some(server.cancel.clone());
        let (flow, since) = self.flow(&server);
        Lent { server, pool: Some(pool), flow, since }
    }

    /// Counts that a connection is lent.
    pub(super) fn flow(&self, server: &Server) -> (Rc<Flow>, Instant) {
        let since = Instant::now();
        self.entry.asked.set(Some(since));
        add(&self.account.counters.assignments, 1);
        let flow = self.worker.traffic.flow(self.entry.client.endpoint, server.node());
        flow.begin();
        (flow, since)
    }

    /// Counts what was done on a connection that was lent.
    pub(super) fn account_for(&mut self, pool: Option<&Rc<Pool>>, flow: &Flow, since: Instant) {
        let took = since.elapsed();
        add(&self.account.counters.transaction_us, took.as_micros() as u64);
        if !self.keeps_server() {
            flow.note(took);
        }
        let (received, sent) = std::mem::take(&mut self.moved);
        flow.end(received, sent);
        self.entry.prepared.set(self.prepared.len());
        if let Some(pool) = pool {
            pool.lent.set(pool.lent.get().saturating_sub(1));
        }
    }

    /// The session is at this node from now on, and the node shows what the session must see.
    pub(super) fn stay_at(&mut self, node: NodeId) {
        // One that is excused has seen nothing there, and what follows it is not excused.
        self.cleared = !std::mem::take(&mut self.reading.excused);
        if !self.cleared {
            return;
        }
        (self.reading.settled, self.reading.leaves) = (true, false);
        self.reading.roams = self.roams();
        if self.reading.home.replace(node) == Some(node) {
            return;
        }
        let homed = self.worker.homed(node);
        homed.set(homed.get() + 1);
        if let Some(left) = self.home.replace(homed) {
            left.set(left.get().saturating_sub(1));
        }
    }

    /// Tells the client what this server reports that the last one did not.
    pub(super) fn report(&mut self, server: &Server) {
        let mut out = bytes::BytesMut::new();
        for (name, value) in server.reported.iter() {
            if self.reported.get(name) != Some(value) {
                synapsedb_pg::wire::startup::parameter_status(&mut out, name, value);
            }
        }
        self.unsent.extend_from_slice(&out);
        self.reported = Rc::clone(&server.reported);
    }

    /// Waits for a connection, and gives it the client's settings.
    pub(super) async fn lend(&mut self) -> Result<Lent, Failure> {
        let Route { to: endpoint, guarded } = self.entry.route.get();
        let since = Instant::now();
        self.entry.activity.set(Activity::Waiting);
        self.entry.asked.set(Some(since));
        if self.account.is_held() {
            super::console::wait_for_resume(&self.account, &self.entry).await?;
        }
        let patience = origin::patience(&self.worker, endpoint);
        let wait_max = Duration::from_millis(self.worker.shared.config().query_wait_timeout_ms);
        self.reading.excused = self.asks_only_own();
        let got = reach(&self.worker, endpoint, &self.reading, patience, async |address| {
            let pool = self.account.pool(&self.worker, &address);
            let server = match pool.take(&self.wanted, guarded) {
                Some(server) => server,
                None => pool.wait(&self.origin, (&self.wanted, guarded), wait_max).await?,
            };
            self.restore(server, &pool).await.map(|server| (server, pool))
        });
        let got = got.await;
        self.reading.excused &= got.is_ok();
        let (server, pool) = got.map_err(|unreached: Unreached| unreached.failure(endpoint))?;
        let waited = since.elapsed();
        add(&self.account.counters.wait_us, waited.as_micros() as u64);
        self.worker.traffic.waited(self.entry.client.endpoint, waited);
        Ok(self.lent(server, pool))
    }

    /// Gives a connection the client's settings.
    pub(super) async fn restore(
        &self,
        mut server: Box<Server>,
        pool: &Rc<Pool>,
    ) -> Result<Box<Server>, NoServer> {
        let guarded = self.entry.route.get().guarded;
        if server.is_as(&self.wanted, guarded) {
            return Ok(server);
        }
        match super::state::restore(&mut server, &self.wanted, guarded, &self.worker).await {
            Ok(()) => Ok(server),
            Err(error) => {
                pool.end();
                let address = server.cancel.address.tcp.clone();
                let why = format!("the settings of the session cannot be restored: {error}");
                Err(NoServer::Connect(server::ConnectError::Unreachable { address, why }))
            }
        }
    }
}
