//! The settings of a session as values: what a client wants, what a server connection has, and the SQL that leads from
//! one to the other.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashSet};
use std::fmt::Write as _;
use std::rc::Rc;

use synapsedb_pg::quote;

/// Settings by name, as `set_config` takes them (in the units of `pg_settings.setting`).
pub(super) type Settings = BTreeMap<String, String>;

/// The settings that decide what may be set: they are reset first and set last.
const AUTHORITY: [&str; 2] = ["session_authorization", "role"];

/// Makes equal settings the same value, so that the hot path compares addresses.
#[derive(Debug, Default)]
pub(super) struct Interner {
    known: RefCell<HashSet<Rc<Settings>>>,
}

/// With this many values known, those that nobody holds are dropped before one is added.
const SWEEP_AT: usize = 256;

impl Interner {
    pub(super) fn intern(&self, settings: Settings) -> Rc<Settings> {
        let mut known = self.known.borrow_mut();
        if let Some(same) = known.get(&settings) {
            return Rc::clone(same);
        }
        if known.len() >= SWEEP_AT {
            known.retain(|settings| Rc::strong_count(settings) > 1);
        }
        let settings = Rc::new(settings);
        known.insert(Rc::clone(&settings));
        settings
    }

    /// The same settings but for one.
    pub(super) fn with(&self, settings: &Settings, name: &str, value: &str) -> Rc<Settings> {
        let mut changed = settings.clone();
        changed.insert(name.to_owned(), value.to_owned());
        self.intern(changed)
    }
}

/// Whether a connection that was opened with these startup settings can serve a client: a setting of its startup
/// packet has no other value to go back to, so the client must want one for each.
pub(super) fn can_serve(startup: &Settings, wanted: &Settings) -> bool {
    startup.keys().all(|name| wanted.contains_key(name))
}

/// The statements that turn a connection with `applied` into one with `wanted`; empty when it has them.
pub(super) fn difference(applied: &Settings, wanted: &Settings) -> String {
    let mut sql = String::new();
    let gone = |name: &&String| !wanted.contains_key(*name);
    let (authority, others): (Vec<&String>, Vec<&String>) =
        applied.keys().filter(gone).partition(|name| AUTHORITY.contains(&name.as_str()));
    // Whoever was made less by SET ROLE may not be allowed to set the rest.
    let changed = |name: &str| applied.get(name) != wanted.get(name);
    let any = applied.keys().chain(wanted.keys()).any(|name| changed(name));
    if any && applied.contains_key("role") && !authority.iter().any(|name| *name == "role") {
        sql.push_str("RESET role;");
    }
    for name in authority.into_iter().chain(others) {
        let _ = write!(sql, "RESET {};", dotted(name));
    }
    let mut set = |name: &str, value: &str| {
        let lead = if sql.ends_with(')') { "," } else { "SELECT " };
        let (name, value) = (quote::literal(name), quote::literal(value));
        let _ = write!(sql, "{lead}pg_catalog.set_config({name},{value},false)");
    };
    let plain = wanted.iter().filter(|(name, _)| !AUTHORITY.contains(&name.as_str()));
    for (name, value) in plain.filter(|(name, _)| changed(name)) {
        set(name, value);
    }
    for name in AUTHORITY {
        if let Some(value) = wanted.get(name).filter(|_| any) {
            set(name, value);
        }
    }
    sql
}

/// A setting's name, quoted part by part.
fn dotted(name: &str) -> String {
    name.split('.').map(quote::ident).collect::<Vec<_>>().join(".")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(pairs: &[(&str, &str)]) -> Settings {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn equal_settings_are_one_value() {
        let interner = Interner::default();
        let first = interner.intern(settings(&[("a", "1")]));
        assert!(Rc::ptr_eq(&first, &interner.intern(settings(&[("a", "1")]))));
        assert!(!Rc::ptr_eq(&first, &interner.intern(settings(&[("a", "2")]))));
    }

    #[test]
    fn the_difference_is_what_must_be_said() {
        let none = Settings::new();
        let one = settings(&[("TimeZone", "UTC"), ("my.x", "it's")]);
        assert_eq!(difference(&one, &one), "");
        assert_eq!(
            difference(&none, &one),
            "SELECT pg_catalog.set_config('TimeZone','UTC',false),pg_catalog.set_config('my.x','it''s',false)"
        );
        assert_eq!(difference(&one, &none), "RESET \"TimeZone\";RESET \"my\".\"x\";");
    }

    #[test]
    fn a_role_is_left_before_and_taken_after() {
        let plain = settings(&[("work_mem", "64")]);
        let role = settings(&[("role", "a"), ("work_mem", "64")]);
        let other = settings(&[("role", "a"), ("work_mem", "65")]);
        assert_eq!(difference(&plain, &role), "SELECT pg_catalog.set_config('role','a',false)");
        assert_eq!(difference(&role, &plain), "RESET \"role\";");
        assert_eq!(
            difference(&role, &other),
            "RESET role;SELECT pg_catalog.set_config('work_mem','65',false),pg_catalog.set_config('role','a',false)"
        );
    }

    #[test]
    fn a_startup_setting_must_be_overridden() {
        let startup = settings(&[("TimeZone", "UTC")]);
        assert!(can_serve(&startup, &settings(&[("TimeZone", "Europe/Rome"), ("x", "y")])));
        assert!(!can_serve(&startup, &Settings::new()));
        assert!(can_serve(&Settings::new(), &startup));
    }
}
