//! The certificate that clients are shown, as its files say it: they may change while the agent runs.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use anyhow::Result;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::tasks::Shutdown;
use crate::tls::clients::{Files, Served, Stamp};

/// What clients are shown now, and where it comes from.
pub(super) struct Certificates {
    files: Files,
    now: RwLock<Arc<Served>>,
    /// The files, as they were when they were read last.
    read: RwLock<Vec<Stamp>>,
    expires: Gauge,
    reloads: Counter,
    failures: Counter,
}

impl Certificates {
    /// Loads the files.
    ///
    /// # Errors
    /// One of them cannot be used; names it.
    pub(super) fn load(files: Files, registry: &mut Registry) -> Result<Self> {
        let read = RwLock::new(files.stamps());
        let now = RwLock::new(Arc::new(files.load()?));
        let (expires, reloads, failures) =
            (Gauge::default(), Counter::default(), Counter::default());
        let name = "synapsedb_router_certificate_expires_timestamp_seconds";
        registry.register(
            name,
            "When the certificate expires that clients are shown",
            expires.clone(),
        );
        let name = "synapsedb_router_certificate_reloads";
        registry.register(
            name,
            "How often changed files of certificates were taken",
            reloads.clone(),
        );
        let name = "synapsedb_router_certificate_reload_failures";
        let help = "How often changed files of certificates could not be used";
        registry.register(name, help, failures.clone());
        let certificates = Self { files, now, read, expires, reloads, failures };
        certificates.tell_expiry();
        Ok(certificates)
    }

    /// What clients are shown now.
    pub(super) fn now(&self) -> Arc<Served> {
        Arc::clone(&self.now.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn tell_expiry(&self) {
        let since = self.now().expires_at.duration_since(std::time::UNIX_EPOCH);
        self.expires.set(since.map_or(0, |since| since.as_secs() as i64));
    }

    /// Looks at the files every so often, until `stop`.
    pub(super) async fn follow(&self, interval: Duration, stop: &Shutdown) {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(interval) => self.look(),
            }
        }
    }

    /// Takes what the files hold, if they have changed and can be used; else everything stays as it was.
    fn look(&self) {
        let stamps = self.files.stamps();
        if *self.read.read().unwrap_or_else(PoisonError::into_inner) == stamps {
            return;
        }
        // Those that change while they are read are read again at the next look.
        *self.read.write().unwrap_or_else(PoisonError::into_inner) = stamps;
        let file = self.files.certificate.display();
        match self.files.load() {
            Ok(served) => {
                *self.now.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(served);
                self.reloads.inc();
                self.tell_expiry();
                tracing::info!("router: new clients are shown the new certificate of {file}");
            }
            Err(error) => {
                self.failures.inc();
                tracing::error!(
                    "router: changed files of certificates cannot be used, clients are shown the old certificate: \
                     {error:#}"
                );
            }
        }
    }
}
