//! Waiting before what failed is tried again.

use std::time::Duration;

use synapsedb_core::backoff::{self, Backoff};

use super::Config;
use crate::tasks::Shutdown;

/// The waits of this component, from `retry_min_ms` to `retry_max_ms`.
pub(crate) fn backoff(config: &Config) -> Backoff {
    Backoff::new(backoff::Config { first_ms: config.retry_min_ms, limit_ms: config.retry_max_ms })
}

/// Something failed: waits as long as is due.
pub(crate) async fn wait(backoff: &mut Backoff) {
    tokio::time::sleep(Duration::from_millis(backoff.failed(rand::random()))).await;
}

/// [`wait`], ended by a shutdown.
pub(crate) async fn pause(backoff: &mut Backoff, stop: &Shutdown) {
    tokio::select! {
        () = stop.cancelled() => {}
        () = wait(backoff) => {}
    }
}
