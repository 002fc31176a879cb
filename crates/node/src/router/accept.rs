//! Takes a worker's connections in, each as a task of its own.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use super::metrics::Refused;
use super::worker::Worker;
use super::{Endpoint, Shared, login};

/// After a failed accept (no file descriptor left, mostly): a rest instead of a spin.
const ACCEPT_REST: Duration = Duration::from_millis(100);

pub(super) async fn accept(worker: &Rc<Worker>, endpoint: Endpoint, listener: &TcpListener) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => begin(worker, endpoint, stream),
            Err(error) => {
                tracing::warn!("router: the {} endpoint cannot accept: {error}", endpoint.name());
                tokio::time::sleep(ACCEPT_REST).await;
            }
        }
    }
}

pub(super) async fn accept_waiting(
    worker: &Rc<Worker>,
    endpoint: Endpoint,
    listener: &TcpListener,
) {
    while let Ok(Ok((stream, _))) = timeout(Duration::ZERO, listener.accept()).await {
        begin(worker, endpoint, stream);
    }
}

fn begin(worker: &Rc<Worker>, endpoint: Endpoint, stream: TcpStream) {
    match worker.shared.startups.take(worker.shared.config().startups_max) {
        Some(starting) => {
            let running = Running::new(&worker.shared);
            let worker = Rc::clone(worker);
            tokio::task::spawn_local(async move {
                login::serve(worker, endpoint, stream, starting).await;
                drop(running);
            });
        }
        None => worker.shared.metrics.refused(endpoint, Refused::TooManyStartups),
    }
}

/// Counts a connection while it lives.
struct Running(Arc<Shared>);

impl Running {
    fn new(shared: &Arc<Shared>) -> Self {
        shared.running.fetch_add(1, Ordering::AcqRel);
        Self(Arc::clone(shared))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::AcqRel);
    }
}
