//! How long to wait before the next attempt, the longer the more attempts have failed in a row.

/// The limits of a backoff.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The longest wait after the first failure, in milliseconds; it doubles with every further one.
    pub first_ms: u64,
    /// The longest wait of all, in milliseconds.
    pub limit_ms: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self { first_ms: 50, limit_ms: 5_000 }
    }
}

/// Counts failures and says how long to wait.
#[derive(Clone, Debug)]
pub struct Backoff {
    config: Config,
    failures: u32,
}

impl Backoff {
    /// Nothing has failed yet.
    pub fn new(config: Config) -> Self {
        Self { config, failures: 0 }
    }

    /// An attempt has failed: the milliseconds to wait before the next one. `jitter` is any random number; it spreads
    /// the waits over the upper half of what is due, so that many that failed together do not come back together.
    pub fn failed(&mut self, jitter: u32) -> u64 {
        let delay_ms = delay_ms(&self.config, self.failures, jitter);
        self.failures = self.failures.saturating_add(1);
        delay_ms
    }

    /// An attempt has succeeded: the next failure waits as the first one did.
    pub fn succeeded(&mut self) {
        self.failures = 0;
    }

    /// How many attempts have failed in a row.
    pub fn failures(&self) -> u32 {
        self.failures
    }
}

/// Milliseconds to wait after a failure that `before` failures preceded.
fn delay_ms(config: &Config, before: u32, jitter: u32) -> u64 {
    let doubled = config.first_ms.saturating_mul(1u64.checked_shl(before).unwrap_or(u64::MAX));
    let most = doubled.min(config.limit_ms);
    let half = most / 2;
    let spread = u128::from(most - half) * u128::from(jitter) / u128::from(u32::MAX);
    half + u64::try_from(spread).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_up_to_the_limit_and_starts_over_after_a_success() {
        let mut backoff = Backoff::new(Config { first_ms: 100, limit_ms: 1000 });
        let waits: Vec<u64> = (0..6).map(|_| backoff.failed(u32::MAX)).collect();
        assert_eq!(waits, [100, 200, 400, 800, 1000, 1000]);
        assert_eq!(backoff.failures(), 6);
        backoff.succeeded();
        assert_eq!(backoff.failed(0), 50);
    }

    proptest::proptest! {
        #[test]
        fn stays_within_half_and_whole_for_any_number_of_failures(
            first_ms: u64, limit_ms: u64, before: u32, jitter: u32,
        ) {
            let config = Config { first_ms, limit_ms };
            let most = delay_ms(&config, before, u32::MAX);
            let wait = delay_ms(&config, before, jitter);
            proptest::prop_assert!(wait <= most && most <= limit_ms && wait >= most / 2);
        }
    }
}
