//! What an operator says to the console: PgBouncer's commands, each a word with at most one argument. Pure.

/// A command of the console.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Command {
    /// Nothing at all.
    Empty,
    Show(Show),
    /// A database, or all.
    Pause(Option<String>),
    Resume(Option<String>),
    Reconnect(Option<String>),
    Kill(Option<String>),
    WaitClose(Option<String>),
    /// The number that `SHOW CLIENTS` has in `id`.
    KillClient(u32),
    Disable(String),
    Enable(String),
    Reload,
    Suspend,
    Shutdown,
    /// A setting that drivers send on their own.
    SetIgnored,
    /// A setting of the router.
    Set(String),
}

/// What can be shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Show {
    Help,
    Version,
    State,
    Pools,
    Clients,
    Servers,
    Sockets,
    ActiveSockets,
    Stats,
    StatsTotals,
    StatsAverages,
    Totals,
    Lists,
    Databases,
    Users,
    Config,
    Mem,
    Peers,
    PeerPools,
    DnsHosts,
    DnsZones,
    /// A setting of the session that drivers ask for, as it is here.
    Setting(&'static str, &'static str),
}

const SHOWS: [(&str, Show); 21] = [
    ("help", Show::Help),
    ("version", Show::Version),
    ("state", Show::State),
    ("pools", Show::Pools),
    ("clients", Show::Clients),
    ("servers", Show::Servers),
    ("sockets", Show::Sockets),
    ("active_sockets", Show::ActiveSockets),
    ("stats", Show::Stats),
    ("stats_totals", Show::StatsTotals),
    ("stats_averages", Show::StatsAverages),
    ("totals", Show::Totals),
    ("lists", Show::Lists),
    ("databases", Show::Databases),
    ("users", Show::Users),
    ("config", Show::Config),
    ("mem", Show::Mem),
    ("peers", Show::Peers),
    ("peer_pools", Show::PeerPools),
    ("dns_hosts", Show::DnsHosts),
    ("dns_zones", Show::DnsZones),
];

/// Settings that drivers set and ask for without need; to set them changes nothing.
pub(super) const SETTINGS: [(&str, &str); 8] = [
    ("client_encoding", "UTF8"),
    ("default_transaction_isolation", "read committed"),
    ("standard_conforming_strings", "on"),
    ("datestyle", "ISO"),
    ("timezone", "GMT"),
    ("extra_float_digits", "1"),
    ("application_name", ""),
    ("client_min_messages", "notice"),
];

impl Command {
    /// Reads a command; `None` if there is no such one.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut words = words(text)?.into_iter();
        let Some(verb) = words.next() else { return Some(Self::Empty) };
        let first = words.next();
        let rest: Vec<Word> = words.collect();
        let verb = verb.keyword()?;
        if verb == "set" {
            let name = first?.value.to_ascii_lowercase();
            let ignored = SETTINGS.iter().any(|(known, _)| *known == name);
            return Some(if ignored { Self::SetIgnored } else { Self::Set(name) });
        }
        if !rest.is_empty() {
            return None;
        }
        let database = || first.as_ref().map(Word::identifier);
        match verb.as_str() {
            "show" | "select" => Show::parse(&first?.keyword()?).map(Self::Show),
            "pause" => Some(Self::Pause(database())),
            "resume" => Some(Self::Resume(database())),
            "reconnect" => Some(Self::Reconnect(database())),
            "kill" => Some(Self::Kill(database())),
            "wait_close" => Some(Self::WaitClose(database())),
            "kill_client" => first?.value.parse().ok().map(Self::KillClient),
            "disable" => database().map(Self::Disable),
            "enable" => database().map(Self::Enable),
            "reload" if first.is_none() => Some(Self::Reload),
            "suspend" if first.is_none() => Some(Self::Suspend),
            "shutdown" => Some(Self::Shutdown),
            _ => None,
        }
    }

    /// Whether it changes nothing.
    pub(super) fn only_looks(&self) -> bool {
        matches!(self, Self::Empty | Self::Show(_) | Self::SetIgnored)
    }
}

impl Show {
    fn parse(name: &str) -> Option<Self> {
        let setting = SETTINGS.iter().find(|(known, _)| *known == name);
        let setting = setting.map(|&(name, value)| Self::Setting(name, value));
        let show = SHOWS.iter().find(|(known, _)| *known == name).map(|(_, show)| *show);
        show.or(setting)
    }
}

struct Word {
    value: String,
    quoted: bool,
}

impl Word {
    /// As a word of the language; a quoted one is none.
    fn keyword(&self) -> Option<String> {
        (!self.quoted).then(|| self.value.to_ascii_lowercase())
    }

    /// As the name of a database: in lower case unless quoted, as everywhere in PostgreSQL.
    fn identifier(&self) -> String {
        if self.quoted { self.value.clone() } else { self.value.to_lowercase() }
    }
}

/// The words of one command; `None` if a quote is not closed or a second command follows.
fn words(text: &str) -> Option<Vec<Word>> {
    let mut words = Vec::new();
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        match first {
            ';' => {
                // Behind the end there may be nothing but more ends.
                return rest.chars().all(|c| c == ';' || c.is_whitespace()).then_some(words);
            }
            '-' if rest.starts_with("--") => {
                rest = rest.split_once('\n').map_or("", |(_, rest)| rest);
            }
            '"' | '\'' => {
                let mut value = String::new();
                let mut chars = rest.char_indices().skip(1).peekable();
                let end = loop {
                    match chars.next()? {
                        (at, c) if c == first => match chars.peek() {
                            Some((_, next)) if *next == first => {
                                value.push(first);
                                chars.next();
                            }
                            _ => break at + 1,
                        },
                        (_, c) => value.push(c),
                    }
                };
                words.push(Word { value, quoted: true });
                rest = &rest[end..];
            }
            '=' => {
                words.push(Word { value: "=".to_owned(), quoted: false });
                rest = &rest[1..];
            }
            _ => {
                let stops = |c: char| c.is_whitespace() || matches!(c, ';' | '=' | '"' | '\'');
                let end = rest.find(stops).unwrap_or(rest.len());
                words.push(Word { value: rest[..end].to_owned(), quoted: false });
                rest = &rest[end..];
            }
        }
        rest = rest.trim_start();
    }
    Some(words)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn commands_are_read_as_they_are_typed() {
        let some = |name: &str| Some(name.to_owned());
        let table = [
            ("SHOW POOLS;", Some(Command::Show(Show::Pools))),
            ("  show\n stats ; ; ", Some(Command::Show(Show::Stats))),
            ("select version", Some(Command::Show(Show::Version))),
            ("show \"pools\"", None),
            ("show", None),
            ("show nothing", None),
            ("PAUSE", Some(Command::Pause(None))),
            ("pause Shop", Some(Command::Pause(some("shop")))),
            ("pause \"My \"\"Shop\";", Some(Command::Pause(some("My \"Shop")))),
            ("pause \"open", None),
            ("pause a b", None),
            ("pause; resume", None),
            ("kill_client 7", Some(Command::KillClient(7))),
            ("kill_client x", None),
            ("kill_client", None),
            ("disable", None),
            ("enable shop", Some(Command::Enable("shop".to_owned()))),
            ("set extra_float_digits = 3", Some(Command::SetIgnored)),
            ("SET client_encoding to 'UTF8'", Some(Command::SetIgnored)),
            ("set default_pool_size=5", Some(Command::Set("default_pool_size".to_owned()))),
            ("reload now", None),
            ("-- ping", Some(Command::Empty)),
            (";", Some(Command::Empty)),
            ("", Some(Command::Empty)),
            ("select 1", None),
        ];
        for (text, expected) in table {
            assert_eq!(Command::parse(text), expected, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn no_text_is_too_odd(text in ".{0,60}") {
            let _ = Command::parse(&text);
        }
    }
}
