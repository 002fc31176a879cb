//! How far every node is behind every other: the age of probe rows, bytes of WAL, commit times, and the matrix of all.
//!
//! Nothing here may look better than it is: what an origin said long ago is no measure of how far it is now, and what
//! a receiver said before it became unreachable is not shown at all.

use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use bytes::Bytes;
use futures_util::future::join_all;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;
use synapsedb_core::ids::NodeId;
use synapsedb_core::lsn::Lsn;
use synapsedb_core::time::Timestamp;
use synapsedb_core::version::VersionVector;

use super::api::{LaneBody, MatrixLaneBody, MatrixRowBody};
use super::{Shared, status};
use crate::gossip::{Facts, MemberState, MemberView};

/// The call that asks a node for its lanes.
const SERVICE: &str = "replication.lanes";

/// How long a node may take to answer for the matrix.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(1000);

/// What an origin said longer ago says nothing about how far it is now.
const HEARTBEAT_AGE_MAX_MS: u64 = 2000;

/// What this node says of itself.
pub(crate) fn facts(
    shared: &Shared,
    postgres_ready: bool,
    applied: VersionVector,
    wal_lsn: Lsn,
) -> Facts {
    // First how far it has read, then what it has published: all that lies before is among that.
    let unread_bytes = wal_lsn.bytes_since(shared.status.read());
    let own = shared.spools.get(shared.identity.node);
    let published_lsn = own.map(|(_, spool)| *spool.tail_watch().borrow()).unwrap_or_default();
    let lag_ms = status::lag_ms(shared);
    let received = VersionVector::default();
    let clock_set_back = shared.clock.look();
    Facts {
        postgres_ready,
        clock_set_back,
        applied,
        received,
        wal_lsn,
        published_lsn,
        unread_bytes,
        lag_ms,
    }
}

/// How many bytes of the origin's WAL may hold transactions that are not applied here; nothing while the origin or its
/// server does not answer, since nobody knows then.
pub(crate) fn bytes(origin: Option<&MemberView>, applied: Lsn) -> Option<u64> {
    let member = origin?;
    let facts = member.facts.as_ref()?;
    let heard = member.heartbeat_age_ms.is_some_and(|age_ms| age_ms <= HEARTBEAT_AGE_MAX_MS);
    let alive = match member.state {
        MemberState::Alive => true,
        MemberState::Suspect | MemberState::Down | MemberState::Left => false,
    };
    (heard && alive && facts.postgres_ready)
        .then(|| facts.published_lsn.bytes_since(applied) + facts.unread_bytes)
}

/// The instant as RFC 3339 in UTC.
pub(crate) fn rfc3339(time: Timestamp) -> String {
    let since_epoch = Duration::from_micros(u64::try_from(time.unix_us()).unwrap_or(0));
    crate::http::api::rfc3339(UNIX_EPOCH + since_epoch)
}

/// Answers the nodes that put the matrix together.
pub(crate) fn serve(shared: &Arc<Shared>) {
    let serving = shared.clone();
    shared.peers.serve(SERVICE, move |_, _| {
        let shared = serving.clone();
        Box::pin(async move {
            let lanes = own_lanes(&shared);
            serde_json::to_vec(&lanes).map(Bytes::from).map_err(|error| error.to_string())
        })
    });
}

fn own_lanes(shared: &Shared) -> Vec<MatrixLaneBody> {
    status::collect(shared).lanes.into_iter().map(MatrixLaneBody::from).collect()
}

/// The lanes of all nodes, asked now; a node that does not answer in time has none, and the reason.
pub(crate) async fn matrix(shared: &Shared) -> Vec<MatrixRowBody> {
    let mut nodes = shared.peers.others();
    nodes.push(shared.identity.node);
    nodes.sort_unstable();
    join_all(nodes.into_iter().map(|node| row(shared, node))).await
}

async fn row(shared: &Shared, node: NodeId) -> MatrixRowBody {
    let lanes = if node == shared.identity.node {
        Ok(own_lanes(shared))
    } else {
        let answer = shared.peers.call_within(node, SERVICE, Bytes::new(), ANSWER_TIMEOUT).await;
        answer.map_err(|error| error.to_string()).and_then(|answer| {
            serde_json::from_slice(&answer).map_err(|error| {
                format!("node {node} answers what is not understood here: {error}")
            })
        })
    };
    let node = node.get();
    match lanes {
        Ok(lanes) => MatrixRowBody { node, unreachable: None, lanes: Some(lanes) },
        Err(reason) => MatrixRowBody { node, unreachable: Some(reason), lanes: None },
    }
}

/// The lag per origin as metrics, read when they are asked for. What is not known is not there.
pub(crate) struct Metrics {
    pub(crate) shared: Arc<Shared>,
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("lag::Metrics")
    }
}

/// Name, help, and the value of a lane.
type LaneMetric = (&'static str, &'static str, fn(&LaneBody) -> Option<u64>);

const METRICS: [LaneMetric; 3] = [
    (
        "synapsedb_replication_lag_bytes",
        "Bytes of the origin's WAL that may hold transactions not applied here",
        |lane| lane.lag_bytes,
    ),
    (
        "synapsedb_replication_probe_age_ms",
        "The age of the origin's newest probe row that arrived here",
        |lane| lane.probe_age_ms,
    ),
    ("synapsedb_replication_heartbeat_age_ms", "How long ago the origin was heard last", |lane| {
        lane.heartbeat_age_ms
    }),
];

impl Collector for Metrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let lanes = status::collect(&self.shared).lanes;
        for (name, help, value) in METRICS {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for lane in &lanes {
                let Some(value) = value(lane) else { continue };
                let gauge = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
                let labels = [("origin", lane.origin.to_string())];
                gauge.encode(family.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use synapsedb_core::ids::Incarnation;

    use super::*;

    fn member(state: MemberState, heartbeat_age_ms: Option<u64>, facts: Facts) -> MemberView {
        MemberView {
            state,
            incarnation: Incarnation::FIRST,
            heartbeat_age_ms,
            facts: Some(facts),
            hears: BTreeMap::new(),
            since_ms: 0,
        }
    }

    #[test]
    fn bytes_are_known_only_while_the_origin_says_so() {
        let facts = Facts {
            postgres_ready: true,
            published_lsn: Lsn(100),
            unread_bytes: 7,
            ..Facts::default()
        };
        let of = |state, age_ms, facts: &Facts, applied| {
            bytes(Some(&member(state, age_ms, facts.clone())), Lsn(applied))
        };
        assert_eq!(of(MemberState::Alive, Some(90), &facts, 60), Some(47));
        assert_eq!(of(MemberState::Alive, Some(90), &facts, 100), Some(7));
        // A transaction may be applied before the heartbeat that tells of it.
        assert_eq!(of(MemberState::Alive, Some(90), &facts, 200), Some(7));
        assert_eq!(of(MemberState::Alive, Some(2001), &facts, 100), None);
        assert_eq!(of(MemberState::Alive, None, &facts, 100), None);
        for state in [MemberState::Suspect, MemberState::Down, MemberState::Left] {
            assert_eq!(of(state, Some(90), &facts, 100), None);
        }
        let unready = Facts { postgres_ready: false, ..facts };
        assert_eq!(of(MemberState::Alive, Some(90), &unready, 100), None);
        assert_eq!(bytes(None, Lsn(100)), None);
    }
}
