//! A report on its way from one agent to another, which may be of an older or a newer version.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Counts, Report};
use crate::router::Endpoint;
use crate::router::traffic::FlowCounts;

/// The endpoints that every version has: told by their place, as the first versions do, which take no other number.
const BY_PLACE: usize = 2;
/// All others, told by their names: an agent that does not know one leaves it out.
const BY_NAME: [Endpoint; Endpoint::COUNT - BY_PLACE] = [Endpoint::Split];

/// What is missing counts nothing, and what is not known is passed over.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Told {
    agents: Vec<u16>,
    endpoints: Vec<Counts>,
    flows: Vec<BTreeMap<u16, FlowCounts>>,
    connect_failures: BTreeMap<u16, u64>,
    others: BTreeMap<String, Part>,
}

/// What was counted of one endpoint.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Part {
    counts: Counts,
    flows: BTreeMap<u16, FlowCounts>,
}

impl From<Report> for Told {
    fn from(report: Report) -> Self {
        let Report { agents, mut endpoints, mut flows, connect_failures } = report;
        let counts = endpoints.split_off(BY_PLACE.min(endpoints.len()));
        let more = flows.split_off(BY_PLACE.min(flows.len()));
        let parts = counts.into_iter().zip(more).map(|(counts, flows)| Part { counts, flows });
        let names = BY_NAME.iter().map(|endpoint| endpoint.name().to_owned());
        Self { agents, endpoints, flows, connect_failures, others: names.zip(parts).collect() }
    }
}

impl From<Told> for Report {
    fn from(told: Told) -> Self {
        let Told { agents, mut endpoints, mut flows, connect_failures, mut others } = told;
        endpoints.resize_with(BY_PLACE, Counts::default);
        flows.resize_with(BY_PLACE, BTreeMap::new);
        for endpoint in BY_NAME {
            let part = others.remove(endpoint.name()).unwrap_or_default();
            endpoints.push(part.counts);
            flows.push(part.flows);
        }
        Self { agents, endpoints, flows, connect_failures }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// A report as the first versions read it and tell it.
    #[derive(Serialize, Deserialize)]
    struct First {
        agents: Vec<u16>,
        endpoints: [Counts; 2],
        flows: [BTreeMap<u16, FlowCounts>; 2],
        connect_failures: BTreeMap<u16, u64>,
    }

    fn report() -> Report {
        let counts = |clients| Counts { clients, ..Counts::default() };
        let flow = |total| BTreeMap::from([(1, FlowCounts { total, ..FlowCounts::default() })]);
        Report {
            agents: vec![2],
            endpoints: vec![counts(1), counts(2), counts(3)],
            flows: vec![flow(10), flow(20), flow(30)],
            connect_failures: BTreeMap::from([(1, 5)]),
        }
    }

    #[test]
    fn versions_understand_each_other() {
        let text = serde_json::to_string(&Told::from(report())).unwrap();
        // The same version.
        let same = Report::from(serde_json::from_str::<Told>(&text).unwrap());
        assert_eq!((&same.endpoints, &same.flows), (&report().endpoints, &report().flows));
        // A first version, both ways.
        let first: First = serde_json::from_str(&text).unwrap();
        assert_eq!((first.endpoints[1].clients, first.flows[1][&1].total), (2, 20));
        let text = serde_json::to_string(&first).unwrap();
        let mut all = report();
        all.add(serde_json::from_str::<Told>(&text).unwrap().into());
        let clients: Vec<u64> = all.endpoints.iter().map(|counts| counts.clients).collect();
        assert_eq!((clients, all.flows[2][&1].total), (vec![2, 4, 3], 30));
        assert_eq!(all.connect_failures[&1], 10);
        // One without a split endpoint.
        let mut few = report();
        few.endpoints.truncate(2);
        few.flows.truncate(2);
        let text = serde_json::to_string(&Told::from(few)).unwrap();
        let told = Report::from(serde_json::from_str::<Told>(&text).unwrap());
        assert_eq!((told.endpoints.len(), told.endpoints[2]), (3, Counts::default()));
        // One that has more endpoints and counts more, or less.
        let newer = r#"{"agents":[3],"endpoints":[{"clients":7,"what":1},{}],"flows":[{},{"4":{"else":2}}],"new":{},
            "others":{"admin":{"counts":{},"flows":{},"x":1},"split":{"counts":{"clients":9}}}}"#;
        let told = Report::from(serde_json::from_str::<Told>(newer).unwrap());
        let clients: Vec<u64> = told.endpoints.iter().map(|counts| counts.clients).collect();
        assert_eq!((clients, told.agents), (vec![7, 0, 9], vec![3]));
    }
}
