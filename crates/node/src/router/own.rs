//! The settings of a session that are the router's own: `synapsedb.consistency`, `.token`, `.last_route`.

use synapsedb_pg::quote;
use synapsedb_pg::sql::statement::OwnSetting;

use super::Endpoint;
use super::server::Server;
use super::session::Session;
use super::token::{self, Consistency};

impl Session {
    /// An SQL expression for what SHOW answers, to be evaluated on this server.
    pub(super) fn shown(&self, setting: OwnSetting, server: &Server) -> String {
        match setting {
            OwnSetting::Consistency => quote::literal(self.reading.consistency.name()) + "::text",
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
            OwnSetting::LastRoute => {
                let why = match (self.entry.client.endpoint, self.reading.consistency) {
                    (Endpoint::Write, _) => "it is the primary (write endpoint)",
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
                let mut text = format!("node {}: {why}", server.node());
                if self.entry.client.endpoint == Endpoint::Read {
                    for (node, ms) in self.worker.behind() {
                        text.push_str(&format!(
                            "; node {node} is {ms} ms behind and not read from"
                        ));
                    }
                }
                quote::literal(&text) + "::text"
            }
            OwnSetting::Route => quote::literal(self.entry.client.endpoint.name()) + "::text",
        }
    }

    /// Takes a new value; an empty one is that of the beginning.
    ///
    /// # Errors
    /// It cannot be set so: why.
    pub(super) fn set_own(&mut self, setting: OwnSetting, value: &str) -> Result<(), String> {
        match setting {
            OwnSetting::Consistency if value.is_empty() => {
                self.reading.consistency = self.worker.shared.config.consistency;
            }
            OwnSetting::Consistency => {
                self.reading.consistency = Consistency::parse(value).ok_or_else(|| {
                    format!("synapsedb.consistency is eventual, session or global, not \"{value}\"")
                })?;
            }
            OwnSetting::Token => {
                let token = token::from_text(value).ok_or_else(|| {
                    format!(
                        "synapsedb.token is of the form 1=0/16B3748,2=0/2000028, not \"{value}\""
                    )
                })?;
                self.reading.must_see(&token);
            }
            OwnSetting::LastRoute => {
                return Err("synapsedb.last_route can only be shown".to_owned());
            }
            OwnSetting::Route => {
                return Err("synapsedb.route cannot be set yet: choose the endpoint".to_owned());
            }
        }
        Ok(())
    }
}
