//! The settings of a session that are the router's own: `synapsedb.consistency`, `.token`, `.report_token`,
//! `.route`, `.last_route`. What a startup packet sets of them is in `begun.rs`.

use synapsedb_core::version::VersionVector;
use synapsedb_pg::quote;
use synapsedb_pg::sql::statement::OwnSetting;

use super::Endpoint;
use super::server::Server;
use super::session::Session;
use super::split::Hint;
use super::token::{self, Consistency};

/// A value that such a setting can take.
pub(super) enum Value {
    Consistency(Consistency),
    Token(VersionVector),
    ReportToken(bool),
    Route(Hint),
}

/// Understands a value.
///
/// # Errors
/// It is none: why.
pub(super) fn understood(setting: OwnSetting, value: &str) -> Result<Value, String> {
    match setting {
        OwnSetting::Consistency => {
            Consistency::parse(value).map(Value::Consistency).ok_or_else(|| {
                format!("synapsedb.consistency is eventual, session or global, not \"{value}\"")
            })
        }
        OwnSetting::Token => token::from_text(value).map(Value::Token).ok_or_else(|| {
            format!("synapsedb.token is of the form 1=0/16B3748,2=0/2000028, not \"{value}\"")
        }),
        OwnSetting::ReportToken => match value.to_ascii_lowercase().as_str() {
            "on" | "true" | "yes" | "1" => Ok(Value::ReportToken(true)),
            "off" | "false" | "no" | "0" => Ok(Value::ReportToken(false)),
            _ => Err(format!("synapsedb.report_token is on or off, not \"{value}\"")),
        },
        OwnSetting::LastRoute => Err("synapsedb.last_route can only be shown".to_owned()),
        OwnSetting::Route => Hint::parse(value).map(Value::Route),
    }
}

impl Session {
    /// An SQL expression for what SHOW answers, to be evaluated on this server.
    pub(super) fn shown(&self, setting: OwnSetting, server: &Server) -> String {
        match setting {
            OwnSetting::Consistency => quote::literal(self.reading.consistency.name()) + "::text",
            OwnSetting::ReportToken => {
                quote::literal(if self.reports_token { "on" } else { "off" }) + "::text"
            }
            OwnSetting::Token => {
                // The server's own position is the newest there is, and covers whatever was committed on it.
                let mut others = self.reading.token.clone();
                others.remove(server.node());
                let mut lead = token::to_text(&others);
                if !lead.is_empty() {
                    lead.push(',');
                }
                lead.push_str(&format!("{}=", server.node()));
                format!("{} || pg_catalog.pg_current_wal_insert_lsn()", quote::literal(&lead))
            }
            OwnSetting::LastRoute => quote::literal(&self.last_route(server)) + "::text",
            OwnSetting::Route => {
                let endpoint = || self.entry.client.endpoint.name().to_owned();
                let route = self.hint().map_or_else(endpoint, |hint| hint.to_string());
                quote::literal(&route) + "::text"
            }
        }
    }

    /// Where the transaction at hand went, and why.
    fn last_route(&self, server: &Server) -> String {
        if let Some(text) = self.last_split() {
            return self.with_those_behind(text);
        }
        let why = match (self.entry.route.get().to, self.reading.consistency) {
            _ if self.hint().is_some() => "synapsedb.route says so",
            (Endpoint::Write | Endpoint::Split, _) => "it is the primary (write endpoint)",
            (Endpoint::Read, Consistency::Session) => {
                "the session reads there, and sees what it has written (read endpoint, session)"
            }
            (Endpoint::Read, Consistency::Global) => {
                "it shows all that was acknowledged before (read endpoint, global)"
            }
            (Endpoint::Read, Consistency::Eventual) => {
                "it had the fewest transactions (read endpoint, eventual)"
            }
        };
        self.with_those_behind(format!("node {}: {why}", server.node()))
    }

    /// With the nodes that are not read from.
    fn with_those_behind(&self, mut text: String) -> String {
        if self.entry.client.endpoint != Endpoint::Write {
            for (node, ms) in self.worker.behind() {
                text.push_str(&format!("; node {node} is {ms} ms behind and not read from"));
            }
        }
        text
    }

    /// Takes a new value; an empty one is that of the beginning.
    ///
    /// # Errors
    /// It cannot be set so: why.
    pub(super) fn set_own(&mut self, setting: OwnSetting, value: &str) -> Result<(), String> {
        let mut begun = self.begun.iter().filter(|(one, _)| *one == setting);
        let begun = begun.next_back().map(|(_, value)| value.clone()).unwrap_or_default();
        let value = if value.is_empty() { begun.as_str() } else { value };
        match (setting, value) {
            (OwnSetting::Consistency, "") => {
                self.reading.consistency = self.worker.shared.config().consistency;
            }
            (OwnSetting::ReportToken, "") => self.reports_token = false,
            (OwnSetting::Route, "") => self.set_hint(None)?,
            (setting, value) => match understood(setting, value)? {
                Value::Consistency(consistency) => self.reading.consistency = consistency,
                // What was seen is not forgotten.
                Value::Token(token) => self.reading.must_see(&token),
                Value::ReportToken(reports) => self.reports_token = reports,
                Value::Route(hint) => self.set_hint(Some(hint))?,
            },
        }
        Ok(())
    }
}
