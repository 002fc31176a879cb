//! The component against a state that commits every command at once.
#![allow(clippy::unwrap_used, clippy::needless_update)]

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use synapsedb_core::ids::{Incarnation, NodeId};
use synapsedb_core::state::ClusterState;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::gossip::{Facts, MemberState, MemberView, View};

pub(super) fn node(number: u16) -> NodeId {
    NodeId::new(number).unwrap()
}

fn register(number: u16) -> Command {
    Command::RegisterMember {
        node: node(number),
        uuid: uuid::Uuid::from_u128(number.into()).to_string(),
        incarnation: Incarnation::FIRST,
        addresses: Addresses::default(),
        system_identifier: String::new(),
        postgres_version: 0,
    }
}

/// Nodes 1 to `members`, registered, no primary.
pub(super) fn cluster(members: u16) -> ClusterState {
    let mut state = ClusterState::default();
    for number in 1..=members {
        assert_eq!(state.apply(&register(number)), Outcome::Applied);
    }
    state
}

/// All alive and ready; `ages[i][j]`: how long ago node i+1 heard node j+1. Node 1 is the one that looks.
pub(super) fn heard(ages: &[[u64; 3]; 3]) -> View {
    let members = (1..).map(node).zip(ages).enumerate().map(|(place, (id, row))| {
        let member = MemberView {
            state: MemberState::Alive,
            incarnation: Incarnation::FIRST,
            heartbeat_age_ms: Some(ages[0][place]),
            facts: Some(Facts { postgres_ready: true, ..Facts::default() }),
            hears: (1..).map(node).zip(row.iter().copied()).collect(),
            since_ms: 0,
        };
        (id, member)
    });
    View { members: members.collect::<BTreeMap<_, _>>(), ..View::default() }
}

struct Cluster {
    handle: Handle,
    state: Arc<watch::Sender<Arc<ClusterState>>>,
    view: watch::Sender<Arc<View>>,
    registration: watch::Sender<Registration>,
    leads: Arc<AtomicBool>,
    failing: Arc<AtomicU32>,
    proposed: Arc<Mutex<Vec<Command>>>,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<Result<()>>,
}

/// Runs the component of node 1.
fn start(state: ClusterState) -> Cluster {
    let (state, watch_state) = watch::channel(Arc::new(state));
    let state = Arc::new(state);
    let all_well = heard(&[[0, 90, 90], [90, 0, 90], [90, 90, 0]]);
    let (view, watch_view) = watch::channel(Arc::new(all_well));
    let (registration, watch_registration) = watch::channel(Registration::default());
    let leads = Arc::new(AtomicBool::new(false));
    let failing = Arc::new(AtomicU32::new(0));
    let proposed = Arc::new(Mutex::new(Vec::new()));
    let (sees, fails, commits, keeps) =
        (Arc::clone(&leads), Arc::clone(&failing), Arc::clone(&state), Arc::clone(&proposed));
    let world = World {
        state: watch_state,
        view: watch_view,
        registration: watch_registration,
        is_leader: Box::new(move || sees.load(Ordering::Relaxed)),
        propose: Arc::new(move |command| {
            let fail = fails
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1))
                .is_ok();
            let mut outcome = Err("no leader".to_owned());
            if !fail {
                keeps.lock().unwrap().push(command.clone());
                commits.send_modify(|state| {
                    let mut next = ClusterState::clone(state);
                    outcome = Ok(next.apply(&command));
                    *state = Arc::new(next);
                });
            }
            Box::pin(async move { outcome })
        }),
    };
    let config = Config { round_ms: 5, settle_ms: 100, unready_ms: 50, ..Config::default() };
    let identity = Identity {
        cluster_id: uuid::Uuid::from_u128(9),
        node: node(1),
        uuid: uuid::Uuid::from_u128(1),
        incarnation: Incarnation::FIRST,
    };
    let (handle, task) = from_world(config, identity, world, &mut Registry::default());
    let stop = CancellationToken::new();
    let task = tokio::spawn(task.run(stop.clone()));
    Cluster { handle, state, view, registration, leads, failing, proposed, stop, task }
}

impl Cluster {
    async fn eventually(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        for _ in 0..500 {
            if holds(self) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{what}: {:?} {:?}", self.handle.status(), self.state.borrow());
    }

    fn primary(&self) -> Option<u16> {
        self.state.borrow().primary.map(NodeId::get)
    }

    fn see(&self, change: impl FnOnce(&mut View)) {
        self.view.send_modify(|view| {
            let mut next = View::clone(view);
            change(&mut next);
            *view = Arc::new(next);
        });
    }
}

#[tokio::test]
async fn a_node_registers_at_start_and_when_something_changes() {
    let cluster = start(ClusterState::default());
    cluster.eventually("registered", |cluster| cluster.handle.is_registered()).await;
    assert_eq!(*cluster.proposed.lock().unwrap(), [register(1)]);
    cluster.failing.store(3, Ordering::Relaxed);
    cluster.registration.send_modify(|registration| registration.postgres_version = 150_004);
    cluster
        .eventually("registered anew", |cluster| {
            cluster.state.borrow().members[&node(1)].postgres_version == 150_004
                && cluster.handle.is_registered()
        })
        .await;
    assert_eq!(cluster.handle.status().registration_error, None);
    cluster.stop.cancel();
    cluster.task.await.unwrap().unwrap();
    assert_eq!(cluster.proposed.lock().unwrap().len(), 2);
}

#[tokio::test]
async fn a_refused_node_stops_with_the_reason() {
    let mut state = ClusterState::default();
    let Command::RegisterMember { node: id, incarnation, addresses, .. } = register(1) else {
        panic!()
    };
    state.apply(&Command::RegisterMember {
        node: id,
        uuid: "another".to_owned(),
        incarnation,
        addresses,
        system_identifier: String::new(),
        postgres_version: 0,
    });
    let cluster = start(state);
    let error = tokio::time::timeout(Duration::from_secs(5), cluster.task).await.unwrap();
    let text = format!("{:#}", error.unwrap().unwrap_err());
    assert!(text.contains("refuses to register node 1") && text.contains("another"), "{text}");
}

#[tokio::test]
async fn only_the_leader_appoints_and_a_dead_primary_is_replaced() {
    let cluster = start(cluster(3));
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(cluster.primary(), None, "nobody leads");
    cluster.leads.store(true, Ordering::Relaxed);
    cluster.eventually("appointed", |cluster| cluster.primary() == Some(1)).await;
    let ready = |view: &mut View, ready| {
        let member = view.members.get_mut(&node(1)).unwrap();
        member.facts.as_mut().unwrap().postgres_ready = ready;
    };
    cluster.see(|view| ready(view, false));
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(cluster.primary(), Some(1), "the cooldown of five seconds holds");
    cluster.leads.store(false, Ordering::Relaxed);
    cluster.see(|view| ready(view, true));
    cluster.state.send_modify(|state| {
        let mut next = ClusterState::clone(state);
        next.apply(&Command::SetPrimary { node: node(2), expected: next.epoch });
        *state = Arc::new(next);
    });
    cluster.see(|view| view.members.get_mut(&node(2)).unwrap().state = MemberState::Down);
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(cluster.primary(), Some(2), "nobody leads");
    cluster.leads.store(true, Ordering::Relaxed);
    cluster.eventually("replaced", |cluster| cluster.primary() == Some(1)).await;
    assert_eq!(cluster.handle.status().appointments, 2);
    cluster.see(|view| {
        for member in view.members.values_mut() {
            member.facts.as_mut().unwrap().postgres_ready = false;
        }
        view.members.remove(&node(1));
    });
    cluster.eventually("nobody", |cluster| cluster.handle.status().nobody_eligible).await;
    cluster.stop.cancel();
    cluster.task.await.unwrap().unwrap();
}
