//! A line of HAProxy's statistics: the columns, and what the router has for them.

use super::{Counts, Seen};
use crate::router::Endpoint;
use crate::router::traffic::FlowCounts;

/// HAProxy's columns in their order, as far as the last that has a meaning here.
pub(super) const COLUMNS: [&str; 83] = [
    "pxname",
    "svname",
    "qcur",
    "qmax",
    "scur",
    "smax",
    "slim",
    "stot",
    "bin",
    "bout",
    "dreq",
    "dresp",
    "ereq",
    "econ",
    "eresp",
    "wretr",
    "wredis",
    "status",
    "weight",
    "act",
    "bck",
    "chkfail",
    "chkdown",
    "lastchg",
    "downtime",
    "qlimit",
    "pid",
    "iid",
    "sid",
    "throttle",
    "lbtot",
    "tracked",
    "type",
    "rate",
    "rate_lim",
    "rate_max",
    "check_status",
    "check_code",
    "check_duration",
    "hrsp_1xx",
    "hrsp_2xx",
    "hrsp_3xx",
    "hrsp_4xx",
    "hrsp_5xx",
    "hrsp_other",
    "hanafail",
    "req_rate",
    "req_rate_max",
    "req_tot",
    "cli_abrt",
    "srv_abrt",
    "comp_in",
    "comp_out",
    "comp_byp",
    "comp_rsp",
    "lastsess",
    "last_chk",
    "last_agt",
    "qtime",
    "ctime",
    "rtime",
    "ttime",
    "agent_status",
    "agent_code",
    "agent_duration",
    "check_desc",
    "agent_desc",
    "check_rise",
    "check_fall",
    "check_health",
    "agent_rise",
    "agent_fall",
    "agent_health",
    "addr",
    "cookie",
    "mode",
    "algo",
    "conn_rate",
    "conn_rate_max",
    "conn_tot",
    "intercepted",
    "dcon",
    "dses",
];

/// What a line is about; the numbers are HAProxy's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Frontend = 0,
    Backend = 1,
    Server = 2,
}

/// One line; what is not known stays empty.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) kind: Kind,
    pub(super) endpoint: Endpoint,
    values: Vec<(&'static str, String)>,
}

impl Line {
    fn new(endpoint: Endpoint, kind: Kind, name: &str) -> Self {
        let mut line = Self { kind, endpoint, values: Vec::new() };
        line.put("pxname", endpoint.name());
        line.put("svname", name);
        line.put("type", kind as u8);
        line.put("pid", 1);
        line.put("iid", endpoint as u8 + 1);
        line.put("mode", "tcp");
        line
    }

    fn put(&mut self, column: &'static str, value: impl ToString) {
        // No value of ours has a comma or a quote but for addresses, which have none either.
        let value = value.to_string().replace([',', '"', '\n'], " ");
        self.values.push((column, value));
    }

    fn put_flow(&mut self, flow: &FlowCounts) {
        self.put("bin", flow.received);
        self.put("bout", flow.sent);
    }

    pub(super) fn frontend(endpoint: Endpoint, counts: &Counts, sum: &FlowCounts) -> Self {
        let mut line = Self::new(endpoint, Kind::Frontend, "FRONTEND");
        line.put("scur", counts.clients);
        line.put("smax", counts.clients_max);
        line.put("slim", counts.limit);
        line.put("stot", counts.opened);
        line.put_flow(sum);
        line.put("dreq", counts.denied);
        line.put("dresp", 0);
        line.put("ereq", counts.malformed);
        line.put("status", "OPEN");
        line.put("sid", 0);
        line.put("conn_tot", counts.opened + counts.denied + counts.malformed);
        line.put("dcon", 0);
        line.put("dses", 0);
        line
    }

    pub(super) fn server(endpoint: Endpoint, seen: &Seen, flow: &FlowCounts, failed: u64) -> Self {
        let mut line = Self::new(endpoint, Kind::Server, &format!("node{}", seen.node));
        line.put("qcur", 0);
        line.put("scur", flow.current);
        line.put("smax", flow.current_max);
        line.put("stot", flow.total);
        line.put("lbtot", flow.total);
        line.put_flow(flow);
        line.put("dresp", 0);
        line.put("econ", failed);
        line.put("eresp", 0);
        // As HAProxy says it of a server that lives and is given nothing.
        let status = match (seen.unfit, seen.behind_ms) {
            (Some(_), _) => "DOWN",
            (None, Some(_)) => "NOLB",
            (None, None) => "UP",
        };
        line.put("status", status);
        line.put("weight", 1);
        line.put("act", u8::from(!seen.backup));
        line.put("bck", u8::from(seen.backup));
        line.put("sid", seen.node);
        line.put("addr", &seen.address);
        let why = match (seen.unfit, seen.behind_ms, seen.backup) {
            (Some(unfit), _, _) => unfit.to_string(),
            (None, Some(ms), _) => format!("is {ms} ms behind and not read from"),
            (None, None, true) => "not the primary".to_owned(),
            (None, None, false) => "takes sessions".to_owned(),
        };
        line.put("check_desc", why);
        line
    }

    pub(super) fn backend(
        endpoint: Endpoint,
        seen: &[Seen],
        counts: &Counts,
        sum: &FlowCounts,
        failed: u64,
        pool_size: usize,
    ) -> Self {
        let up = |one: &&Seen| one.unfit.is_none();
        let active = seen.iter().filter(up).filter(|one| !one.backup).count();
        let backup = seen.iter().filter(up).filter(|one| one.backup).count();
        let mut line = Self::new(endpoint, Kind::Backend, "BACKEND");
        line.put("qcur", counts.waiting);
        line.put("scur", sum.current);
        line.put("smax", sum.current_max);
        line.put("slim", pool_size);
        line.put("stot", sum.total);
        line.put("lbtot", sum.total);
        line.put_flow(sum);
        line.put("dreq", 0);
        line.put("dresp", 0);
        line.put("econ", failed);
        line.put("eresp", 0);
        // A backup takes nothing until the cluster has made it the primary.
        line.put("status", if active > 0 { "UP" } else { "DOWN" });
        line.put("weight", active);
        line.put("act", active);
        line.put("bck", backup);
        line.put("sid", 0);
        line.put("algo", "leastconn");
        line
    }

    /// The value of a column, empty if there is none.
    pub(super) fn value(&self, column: &str) -> &str {
        let found = self.values.iter().find(|(name, _)| *name == column);
        found.map_or("", |(_, value)| value)
    }

    /// As HAProxy writes it, with a comma behind every value.
    pub(super) fn csv(&self) -> String {
        COLUMNS.iter().map(|column| format!("{},", self.value(column))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_value_is_in_its_column() {
        let counts = Counts { clients: 3, opened: 7, ..Counts::default() };
        let line = Line::frontend(Endpoint::Write, &counts, &FlowCounts::default());
        for (column, _) in &line.values {
            assert!(COLUMNS.contains(column), "{column}");
        }
        let csv = line.csv();
        let values: Vec<&str> = csv.split(',').collect();
        assert_eq!(values.len(), COLUMNS.len() + 1);
        assert_eq!(&values[..8], ["write", "FRONTEND", "", "", "3", "0", "0", "7"]);
        assert_eq!((values[17], values[32]), ("OPEN", "0"));
    }
}
