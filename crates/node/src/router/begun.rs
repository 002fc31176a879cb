//! What a startup packet sets of the settings that are the router's own: it is taken out, since servers need not know
//! it, and packets that differ in nothing else come to the same.

use synapsedb_pg::sql::statement::OwnSetting;

use super::Endpoint;
use super::origin::Parameters;
use super::own::{Value, understood};
use super::session::Session;
use super::startup::Failure;

/// Settings with their values, as they stood in the packet.
pub(super) type Begun = Vec<(OwnSetting, String)>;

/// Takes our settings out of a startup packet.
pub(super) fn take(parameters: &mut Parameters) -> Begun {
    let mut begun = Begun::new();
    parameters.retain_mut(|(name, value)| match (own(name), name.as_str()) {
        (Some(setting), _) => {
            begun.push((setting, std::mem::take(value)));
            false
        }
        (None, "options") => {
            let before = begun.len();
            let rest = take_from_options(value, &mut begun);
            if begun.len() > before {
                *value = rest;
            }
            !value.is_empty()
        }
        (None, _) => true,
    });
    begun
}

fn own(name: &str) -> Option<OwnSetting> {
    let mut all = OwnSetting::ALL.into_iter().map(|(_, setting)| setting);
    all.find(|setting| setting.name().eq_ignore_ascii_case(name))
}

/// What is left of `options` without our settings: `-c name=value`, `-cname=value` and `--name=value`.
fn take_from_options(options: &str, begun: &mut Begun) -> String {
    let mut kept: Vec<&str> = Vec::new();
    let mut words = words(options).into_iter().peekable();
    while let Some(word) = words.next() {
        let assigned = match (word, words.peek()) {
            ("-c", Some(next)) => *next,
            ("-c", None) => "",
            _ => word.strip_prefix("--").or_else(|| word.strip_prefix("-c")).unwrap_or_default(),
        };
        let ours = assigned.split_once('=').and_then(|(name, value)| Some((own(name)?, value)));
        match ours {
            Some((setting, value)) => begun.push((setting, unescaped(value))),
            None => kept.push(word),
        }
        if word == "-c"
            && let Some(next) = words.next()
            && ours.is_none()
        {
            kept.push(next);
        }
    }
    kept.join(" ")
}

/// The words, as PostgreSQL splits them: a backslash takes its meaning from what follows it.
fn words(options: &str) -> Vec<&str> {
    let (mut words, mut start, mut escaped) = (Vec::new(), None, false);
    for (at, character) in options.char_indices() {
        let ends = character.is_ascii_whitespace() && !escaped;
        escaped = character == '\\' && !escaped;
        match (ends, start) {
            (true, Some(begin)) => {
                words.push(&options[begin..at]);
                start = None;
            }
            (false, None) => start = Some(at),
            (true, None) | (false, Some(_)) => {}
        }
    }
    words.extend(start.map(|begin| &options[begin..]));
    words
}

fn unescaped(value: &str) -> String {
    let (mut out, mut escaped) = (String::with_capacity(value.len()), false);
    for character in value.chars() {
        escaped = character == '\\' && !escaped;
        if !escaped {
            out.push(character);
        }
    }
    out
}

/// Looks whether all of it can be set so.
///
/// # Errors
/// What the client is told.
pub(super) fn check(begun: &Begun, endpoint: Endpoint) -> Result<(), Failure> {
    let wrong = begun.iter().find_map(|(setting, value)| match understood(*setting, value) {
        Ok(Value::Route(hint)) => hint.check_at(endpoint).err(),
        Ok(Value::Consistency(_) | Value::Token(_) | Value::ReportToken(_)) => None,
        Err(why) => Some(why),
    });
    wrong.map_or(Ok(()), |message| Err(Failure { sqlstate: "22023", message, hint: String::new() }))
}

impl Session {
    /// Begins with these values, which were checked.
    pub(super) fn begin_with(&mut self, begun: Begun) {
        for (setting, value) in &begun {
            let set = self.set_own(*setting, value);
            debug_assert!(set.is_ok(), "it was checked: {set:?}");
        }
        self.begun = begun;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn taken(options: &str) -> (Vec<(&'static str, String)>, Option<String>) {
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let mut parameters = vec![pair("user", "ada"), pair("options", options)];
        let begun = take(&mut parameters);
        let begun = begun.into_iter().map(|(setting, value)| (setting.name(), value)).collect();
        (begun, parameters.get(1).map(|(_, rest)| rest.clone()))
    }

    #[test]
    fn our_settings_are_taken_out_of_a_packet() {
        let token = "synapsedb.token";
        for (options, found, rest) in [
            ("", &[] as &[(&str, &str)], None),
            ("-c work_mem=4MB  -c  a.b=c\\ d", &[], Some("-c work_mem=4MB  -c  a.b=c\\ d")),
            ("-c synapsedb.token=1=0/5", &[(token, "1=0/5")], None),
            ("-c a=b --SynapseDB.token=1=0/5 -B 5", &[(token, "1=0/5")], Some("-c a=b -B 5")),
            ("-csynapsedb.token=1=0/5 -c a=b", &[(token, "1=0/5")], Some("-c a=b")),
            ("-c synapsedb.token=a\\ \\\\b x", &[(token, "a \\b")], Some("x")),
            ("-c", &[], Some("-c")),
            // Others of the class are the server's.
            ("-c synapsedb.durability=quorum", &[], Some("-c synapsedb.durability=quorum")),
        ] {
            let (begun, left) = taken(options);
            let expected: Vec<_> =
                found.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
            assert_eq!((begun, left.as_deref()), (expected, rest), "{options}");
        }
        let mut parameters = vec![("synapsedb.report_token".to_owned(), "on".to_owned())];
        let begun = take(&mut parameters);
        assert_eq!(begun, [(OwnSetting::ReportToken, "on".to_owned())]);
        assert!(parameters.is_empty() && check(&begun, Endpoint::Read).is_ok());
        for (setting, value, endpoint, is_good) in [
            (OwnSetting::LastRoute, "x", Endpoint::Read, false),
            (OwnSetting::Token, "x", Endpoint::Read, false),
            (OwnSetting::Route, "node 2", Endpoint::Split, true),
            (OwnSetting::Route, "node 2", Endpoint::Write, false),
            (OwnSetting::Route, "fast", Endpoint::Split, false),
        ] {
            let begun = vec![(setting, value.to_owned())];
            assert_eq!(check(&begun, endpoint).is_ok(), is_good, "{value} {endpoint:?}");
        }
    }

    proptest! {
        #[test]
        fn any_options_are_split(options in "[-c=a\\\\ .\u{e4}]{0,40}") {
            let (begun, left) = taken(&options);
            prop_assert!(begun.is_empty());
            prop_assert_eq!(left.unwrap_or_default(), options);
        }
    }
}
