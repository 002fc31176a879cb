//! How many clients a role and a database may have at this agent, all its workers together.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::roles::Role;
use super::startup::Failure;
use super::{Config, places};

/// How many clients there may be; `None` for any number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Maxima {
    /// `router.user_clients_max`.
    configured: Option<usize>,
    /// `ALTER ROLE … CONNECTION LIMIT`.
    role: Option<usize>,
    /// `ALTER DATABASE … CONNECTION LIMIT`.
    database: Option<usize>,
}

impl Maxima {
    /// A superuser is bound by no limit of PostgreSQL's.
    fn of(config: &Config, role: Option<&Role>) -> Self {
        let limit = |limit: i32| usize::try_from(limit).ok();
        let bound = role.filter(|role| !role.is_superuser);
        Self {
            configured: (config.user_clients_max > 0).then_some(config.user_clients_max),
            role: bound.and_then(|role| limit(role.connections_max)),
            database: bound.and_then(|role| limit(role.database_connections_max)),
        }
    }
}

/// Which limit is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Full {
    Configured(usize),
    Role,
    Database,
}

impl Full {
    /// In PostgreSQL's words.
    fn failure(self, user: &str, database: &str) -> Failure {
        let message = match self {
            Self::Configured(_) | Self::Role => {
                format!("too many connections for role \"{user}\"")
            }
            Self::Database => format!("too many connections for database \"{database}\""),
        };
        let hint = match self {
            Self::Configured(max) => {
                format!("router.user_clients_max allows {max} clients of one role at an agent.")
            }
            Self::Role | Self::Database => String::new(),
        };
        Failure { sqlstate: "53300", message, hint }
    }
}

/// The clients that are there.
#[derive(Debug, Default)]
struct Present {
    by_user: HashMap<String, usize>,
    by_database: HashMap<String, usize>,
}

impl Present {
    /// Counts one more, if there is room.
    fn enter(&mut self, user: &str, database: &str, maxima: Maxima) -> Result<(), Full> {
        let of_user = self.by_user.get(user).copied().unwrap_or(0);
        let of_database = self.by_database.get(database).copied().unwrap_or(0);
        let reached = |max: Option<usize>, count: usize| max.filter(|max| count >= *max);
        if let Some(max) = reached(maxima.configured, of_user) {
            return Err(Full::Configured(max));
        }
        if reached(maxima.role, of_user).is_some() {
            return Err(Full::Role);
        }
        if reached(maxima.database, of_database).is_some() {
            return Err(Full::Database);
        }
        *self.by_user.entry(user.to_owned()).or_default() += 1;
        *self.by_database.entry(database.to_owned()).or_default() += 1;
        Ok(())
    }

    fn leave(&mut self, user: &str, database: &str) {
        for (counts, name) in [(&mut self.by_user, user), (&mut self.by_database, database)] {
            if let Some(count) = counts.get_mut(name) {
                *count -= 1;
                if *count == 0 {
                    counts.remove(name);
                }
            }
        }
    }
}

/// Counts the clients of an agent; only logins and ends of sessions come here.
#[derive(Clone, Debug, Default)]
pub(super) struct Counted(Arc<Mutex<Present>>);

impl Counted {
    /// Takes a client in.
    ///
    /// # Errors
    /// There are too many of its role, or of its database.
    pub(super) fn enter(
        &self,
        config: &Config,
        role: Option<&Role>,
        user: &str,
        database: &str,
        permit: places::Taken,
    ) -> Result<Place, Failure> {
        let mut present = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        present
            .enter(user, database, Maxima::of(config, role))
            .map_err(|full| full.failure(user, database))?;
        Ok(Place {
            counted: self.clone(),
            user: user.to_owned(),
            database: database.to_owned(),
            _permit: permit,
        })
    }
}

/// A client's place among the clients of its agent, its role and its database; dropped, it is free.
#[derive(Debug)]
pub(super) struct Place {
    counted: Counted,
    user: String,
    database: String,
    _permit: places::Taken,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut present = self.counted.0.lock().unwrap_or_else(PoisonError::into_inner);
        present.leave(&self.user, &self.database);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const USERS: [&str; 3] = ["ada", "bob", "eve"];
    const DATABASES: [&str; 2] = ["one", "two"];

    proptest! {
        /// Whoever comes in found fewer than the limit, whoever is refused found the limit reached, and nothing is
        /// left when all have gone.
        #[test]
        fn no_more_come_in_than_may(
            steps in proptest::collection::vec((0..3_usize, 0..2_usize, any::<bool>()), 0..200),
            configured in proptest::option::of(1..6_usize),
            role in proptest::option::of(0..6_usize),
            database in proptest::option::of(0..6_usize),
        ) {
            let maxima = Maxima { configured, role, database };
            let mut present = Present::default();
            let mut there: Vec<(usize, usize)> = Vec::new();
            for (user, db, leaves) in steps {
                if leaves {
                    if let Some((user, db)) = there.pop() {
                        present.leave(USERS[user], DATABASES[db]);
                    }
                    continue;
                }
                let of_user = there.iter().filter(|(other, _)| *other == user).count();
                let of_database = there.iter().filter(|(_, other)| *other == db).count();
                let room = |max: Option<usize>, count| max.is_none_or(|max| count < max);
                let expected = if !room(configured, of_user) {
                    Err(Full::Configured(of_user))
                } else if !room(role, of_user) {
                    Err(Full::Role)
                } else if !room(database, of_database) {
                    Err(Full::Database)
                } else {
                    Ok(())
                };
                let got = present.enter(USERS[user], DATABASES[db], maxima);
                prop_assert_eq!(got, expected);
                if got.is_ok() {
                    there.push((user, db));
                }
            }
            for (user, db) in there {
                present.leave(USERS[user], DATABASES[db]);
            }
            prop_assert!(present.by_user.is_empty() && present.by_database.is_empty());
        }
    }
}
