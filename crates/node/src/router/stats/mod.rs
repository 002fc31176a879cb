//! `GET /stats` and `/stats;csv`: the two endpoints and the nodes behind them, in the columns of HAProxy's statistics.
//!
//! The agents of one machine share the port, and whichever answers shows the sum of all agents that it reaches: so a
//! counter does not jump from one request to the next.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Arc, Weak};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::header;
use axum::response::{Html, IntoResponse as _, Redirect, Response};
use axum::routing::get;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use synapsedb_core::ids::NodeId;
use utoipa::OpenApi;

use super::choose::{self, Choice, Unfit};
use super::entry::Activity;
use super::traffic::FlowCounts;
use super::{Endpoint, Handle, Shared};
use crate::peers;

mod line;
mod page;
mod told;

use line::Line;
use told::Told;

/// The service under which an agent tells its peers what it has counted.
const SERVICE: &str = "router.stats";
/// How long another agent may take.
const PATIENCE: Duration = Duration::from_millis(500);

/// What one agent has counted, or several together.
#[derive(Clone, Debug, Default)]
struct Report {
    /// The agents whose counters are in it.
    agents: Vec<u16>,
    /// The read endpoint, the write endpoint, and the split endpoint if there is one.
    endpoints: Vec<Counts>,
    /// For each endpoint, by node.
    flows: Vec<BTreeMap<u16, FlowCounts>>,
    /// Failed attempts to reach a node's server, by node.
    connect_failures: BTreeMap<u16, u64>,
}

/// What was counted of an endpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct Counts {
    clients: u64,
    /// The most at once, as it is looked at once a second.
    clients_max: u64,
    /// How many there may be, on all endpoints together.
    limit: u64,
    opened: u64,
    waiting: u64,
    denied: u64,
    malformed: u64,
}

impl Counts {
    fn add(&mut self, other: &Self) {
        self.clients += other.clients;
        self.clients_max += other.clients_max;
        self.limit += other.limit;
        self.opened += other.opened;
        self.waiting += other.waiting;
        self.denied += other.denied;
        self.malformed += other.malformed;
    }
}

impl Report {
    async fn of(shared: &Shared) -> Self {
        let snapshots = shared.look().await;
        let mut report = Self { agents: vec![shared.own.get()], ..Self::default() };
        report.flows.resize_with(shared.endpoints().count(), BTreeMap::new);
        for endpoint in shared.endpoints() {
            let sessions = || {
                let all = snapshots.iter().flat_map(|snapshot| &snapshot.sessions);
                all.filter(|session| session.client.endpoint == endpoint)
            };
            let waiting = sessions().filter(|session| session.activity == Activity::Waiting);
            let waiting = waiting.count() as u64;
            let clients = sessions().count() as u64;
            let (opened, denied, malformed) = shared.metrics.arrivals(endpoint);
            report.endpoints.push(Counts {
                clients,
                clients_max: shared.note_most(endpoint, clients),
                limit: shared.config().clients_max as u64,
                opened,
                waiting,
                denied,
                malformed,
            });
        }
        for flow in snapshots.iter().flat_map(|snapshot| &snapshot.flows) {
            let flows = &mut report.flows[flow.endpoint as usize];
            flows.entry(flow.node.get()).or_default().add(&flow.counts);
        }
        for node in shared.state.borrow().members.keys() {
            let failures = shared.metrics.connect_failures(node.get());
            report.connect_failures.insert(node.get(), failures);
        }
        report
    }

    /// Of this agent and of all others that answer.
    async fn of_all(shared: &Shared) -> Self {
        let mut report = Self::of(shared).await;
        let Some(peers) = &shared.peers else { return report };
        let calls = peers.others().into_iter().map(|node| async move {
            let answer = peers.call_within(node, SERVICE, Bytes::new(), PATIENCE).await;
            let answer = answer.map_err(|error| error.to_string());
            answer.and_then(|body| {
                let told = serde_json::from_slice::<Told>(&body);
                told.map(Self::from).map_err(|error| error.to_string())
            })
        });
        for answer in futures_util::future::join_all(calls).await {
            match answer {
                Ok(other) => report.add(other),
                Err(error) => tracing::debug!("statistics without one agent: {error}"),
            }
        }
        report.agents.sort_unstable();
        report
    }

    fn add(&mut self, other: Self) {
        self.agents.extend(other.agents);
        // Of an endpoint that this agent has not, nothing is shown.
        for (counts, more) in self.endpoints.iter_mut().zip(&other.endpoints) {
            counts.add(more);
        }
        for (flows, more) in self.flows.iter_mut().zip(&other.flows) {
            for (node, counts) in more {
                flows.entry(*node).or_default().add(counts);
            }
        }
        for (node, failures) in other.connect_failures {
            *self.connect_failures.entry(node).or_default() += failures;
        }
    }
}

/// A node at one endpoint, as the answering agent sees it.
struct Seen {
    node: NodeId,
    address: String,
    unfit: Option<Unfit>,
    /// It is not read from since it is too far behind, by so many milliseconds.
    behind_ms: Option<u64>,
    /// It does not serve now and would if the others could not: at the write endpoint all but the primary.
    backup: bool,
}

fn seen(shared: &Shared, endpoint: Endpoint) -> Vec<Seen> {
    let state = Arc::clone(&shared.state.borrow());
    let view = Arc::clone(&shared.view.borrow());
    let readers = choose::choose(Endpoint::Read, &state, &view, shared.own);
    let behind = match (endpoint, readers) {
        (Endpoint::Read | Endpoint::Split, Choice::Try(targets)) => {
            choose::behind(&targets, &view, shared.config().read_lag_max_ms)
        }
        (_, Choice::Nobody(_)) | (Endpoint::Write, _) => Vec::new(),
    };
    let of = |(&node, member): (&NodeId, &synapsedb_core::state::Member)| Seen {
        node,
        address: member.addresses.postgres.clone(),
        unfit: choose::unfit(node, &state, &view, shared.own),
        behind_ms: behind.iter().find(|(one, _)| *one == node).map(|(_, ms)| *ms),
        backup: endpoint == Endpoint::Write && state.primary != Some(node),
    };
    state.members.iter().map(of).collect()
}

impl Shared {
    /// Looks how many clients there are.
    pub(super) fn note_most_clients(&self) {
        let mut clients = [0; Endpoint::COUNT];
        for slot in &self.snapshots {
            let snapshot = slot.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            snapshot
                .sessions
                .iter()
                .for_each(|session| clients[session.client.endpoint as usize] += 1);
        }
        for endpoint in self.endpoints() {
            self.note_most(endpoint, clients[endpoint as usize]);
        }
    }

    /// The most clients that were seen at once on an endpoint.
    fn note_most(&self, endpoint: Endpoint, clients: u64) -> u64 {
        let most = &self.most_clients[endpoint as usize];
        most.fetch_max(clients, std::sync::atomic::Ordering::Relaxed).max(clients)
    }
}

/// Tells the peers what this agent has counted.
pub(super) fn serve(shared: &Arc<Shared>, peers: &peers::Handle) {
    let shared = Arc::downgrade(shared);
    peers.serve(SERVICE, move |_, _| {
        let shared = Weak::clone(&shared);
        Box::pin(async move {
            let shared = shared.upgrade().ok_or("the agent is stopping")?;
            let told = Told::from(Report::of(&shared).await);
            serde_json::to_vec(&told).map(Bytes::from).map_err(|error| error.to_string())
        })
    });
}

/// The routes of the statistics port.
pub fn routes(handle: Handle) -> Router {
    let csv = get(csv);
    Router::new()
        .route("/", get(|| async { Redirect::temporary("/stats") }))
        .route("/stats", get(html))
        .route("/stats;csv", csv.clone())
        .route("/stats;csv;norefresh", csv.clone())
        .route("/;csv", csv.clone())
        .route("/;csv;norefresh", csv)
        .with_state(handle)
}

#[derive(OpenApi)]
#[openapi(paths(html, csv))]
struct Document;

/// What utoipa collects of this file.
pub fn document() -> utoipa::openapi::OpenApi {
    Document::openapi()
}

/// The endpoints and nodes as a page, for people.
#[utoipa::path(get, path = "/stats", tag = "router", responses(
    (status = 200, description = "The endpoints and the nodes behind them", body = String, content_type = "text/html")
))]
async fn html(State(handle): State<Handle>) -> Html<String> {
    let shared = &handle.shared;
    let report = Report::of_all(shared).await;
    Html(page::page(shared, &report, &lines(shared, &report)))
}

/// The endpoints and nodes in HAProxy's columns, for programs.
#[utoipa::path(get, path = "/stats;csv", tag = "router", responses(
    (status = 200, description = "A line for each endpoint and node", body = String, content_type = "text/plain")
))]
async fn csv(State(handle): State<Handle>) -> Response {
    let shared = &handle.shared;
    let report = Report::of_all(shared).await;
    let mut text = format!("# {},\n", line::COLUMNS.join(","));
    for line in lines(shared, &report) {
        let _ = writeln!(text, "{}", line.csv());
    }
    let kind = [(header::CONTENT_TYPE, "text/plain; charset=utf-8")];
    (kind, [(header::CACHE_CONTROL, "no-cache")], text).into_response()
}

/// FRONTEND, the nodes and BACKEND of each endpoint, in the order in which HAProxy shows them.
fn lines(shared: &Shared, report: &Report) -> Vec<Line> {
    let mut lines = Vec::new();
    for endpoint in shared.endpoints() {
        let place = endpoint as usize;
        let counts = &report.endpoints[place];
        let mut sum = FlowCounts::default();
        report.flows[place].values().for_each(|flow| sum.add(flow));
        lines.push(Line::frontend(endpoint, counts, &sum));
        let seen = seen(shared, endpoint);
        let mut failures = 0;
        for one in &seen {
            let flow = report.flows[place].get(&one.node.get()).copied().unwrap_or_default();
            let failed = report.connect_failures.get(&one.node.get()).copied().unwrap_or(0);
            failures += failed;
            lines.push(Line::server(endpoint, one, &flow, failed));
        }
        let pool = shared.config().pool_size;
        lines.push(Line::backend(endpoint, &seen, counts, &sum, failures, pool));
    }
    lines
}
