//! How the clients of a role in a database are pooled: as all are, or as a rule of the configuration says.

use serde::{Deserialize, Serialize};

use super::{Config, PoolMode};

/// `[[router.pools]]`: what is otherwise for some clients. The first rule that fits them and says it decides.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PoolRule {
    /// The database; empty for any.
    pub database: String,
    /// The role; empty for any.
    pub user: String,
    /// In place of `router.pool_mode`.
    pub mode: Option<PoolMode>,
    /// In place of `router.pool_size`.
    pub size: Option<usize>,
}

/// How clients are pooled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pooling {
    pub(super) mode: PoolMode,
    /// Server connections of one role in one database on one node.
    pub(super) size: usize,
}

impl Config {
    /// How the clients of a role in a database are pooled.
    pub(super) fn pooling(&self, user: &str, database: &str) -> Pooling {
        let fits = |name: &str, of: &str| name.is_empty() || name == of;
        let rules = || {
            let rules = self.pools.iter();
            rules.filter(|rule| fits(&rule.user, user) && fits(&rule.database, database))
        };
        Pooling {
            mode: rules().find_map(|rule| rule.mode).unwrap_or(self.pool_mode),
            size: rules().find_map(|rule| rule.size).unwrap_or(self.pool_size),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_rule_that_fits_and_says_it_decides() {
        let rule = |database: &str, user: &str, mode, size| PoolRule {
            database: database.to_owned(),
            user: user.to_owned(),
            mode,
            size,
        };
        let config = Config {
            pool_size: 20,
            pools: vec![
                rule("app", "batch", Some(PoolMode::Session), None),
                rule("app", "", None, Some(5)),
                rule("", "batch", Some(PoolMode::Statement), Some(2)),
                rule("app", "", Some(PoolMode::Statement), Some(9)),
            ],
            ..Config::default()
        };
        for (user, database, mode, size) in [
            ("ada", "other", PoolMode::Transaction, 20),
            ("batch", "other", PoolMode::Statement, 2),
            ("batch", "app", PoolMode::Session, 5),
            ("ada", "app", PoolMode::Statement, 5),
        ] {
            assert_eq!(config.pooling(user, database), Pooling { mode, size }, "{user} {database}");
        }
    }
}
