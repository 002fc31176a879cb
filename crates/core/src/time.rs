//! Wall-clock instants in PostgreSQL's resolution, as arguments: nothing here reads a clock.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Microseconds between the Unix epoch (1970-01-01) and PostgreSQL's (2000-01-01), both in UTC.
const POSTGRES_EPOCH_UNIX_US: i64 = 946_684_800_000_000;

/// A wall-clock instant: microseconds since 2000-01-01 00:00:00 UTC, which is PostgreSQL's `TimestampTz`.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Timestamp(pub i64);

impl Timestamp {
    /// From microseconds since the Unix epoch.
    pub fn from_unix_us(unix_us: i64) -> Self {
        Self(unix_us.saturating_sub(POSTGRES_EPOCH_UNIX_US))
    }

    /// Microseconds since the Unix epoch.
    pub fn unix_us(self) -> i64 {
        self.0.saturating_add(POSTGRES_EPOCH_UNIX_US)
    }

    /// Microseconds from `earlier` to this instant; negative when `earlier` is later.
    pub fn us_since(self, earlier: Self) -> i64 {
        self.0.saturating_sub(earlier.0)
    }

    /// The instant `us` microseconds later.
    pub fn plus_us(self, us: i64) -> Self {
        Self(self.0.saturating_add(us))
    }
}

impl fmt::Display for Timestamp {
    /// Seconds since the Unix epoch with microseconds, which `to_timestamp()` reads.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unix_us = self.unix_us();
        write!(f, "{}.{:06}", unix_us.div_euclid(1_000_000), unix_us.rem_euclid(1_000_000))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_postgresql_epoch_is_the_year_2000() {
        assert_eq!(Timestamp(0).unix_us(), 946_684_800_000_000);
        assert_eq!(Timestamp::from_unix_us(0).to_string(), "0.000000");
        assert_eq!(Timestamp::from_unix_us(-1).to_string(), "-1.999999");
    }
}
