//! Clusters that the tests of one module share, since three servers cost seconds to make.

use std::ops::Deref;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::sync::Mutex as Turn;

use crate::{Binary, Cluster};

/// How long nobody has used a shared cluster that is ended when another cluster starts: three idle nodes of a debug
/// build take a fifth of a core, and by the end of a run the tests of most modules are over.
const IDLE: Duration = Duration::from_secs(20);

/// All that have been made in this process.
static MADE: Mutex<Vec<&'static Shared>> = Mutex::new(Vec::new());

/// A cluster that several tests use. It is made for the first that asks, ended when it has been idle while another
/// cluster starts, and made again when somebody asks after all; else the [`Reaper`](crate::reaper::Reaper) ends it with
/// the test process.
pub struct Shared(Turn<Option<Arc<Lent>>>);

/// A cluster, and when it was last given back.
struct Lent {
    cluster: Cluster,
    returned: Mutex<Instant>,
}

impl Shared {
    /// The cell for a `static` of a test module.
    #[allow(clippy::new_without_default, reason = "const, for a static")]
    pub const fn new() -> Self {
        Self(Turn::const_new(None))
    }

    /// The cluster of three nodes.
    ///
    /// # Panics
    /// When it does not become ready.
    pub async fn cluster(&'static self, binary: Binary) -> Borrowed {
        self.configured(binary, |_| {}).await
    }

    /// [`Shared::cluster`], with a configuration that is changed before it is started.
    ///
    /// # Panics
    /// When it does not become ready.
    pub async fn configured(
        &'static self,
        binary: Binary,
        configure: impl FnOnce(&Cluster),
    ) -> Borrowed {
        self.sized(binary, 3, configure).await
    }

    /// [`Shared::configured`], with another number of nodes.
    ///
    /// # Panics
    /// When it does not become ready.
    pub async fn sized(
        &'static self,
        binary: Binary,
        nodes: u16,
        configure: impl FnOnce(&Cluster),
    ) -> Borrowed {
        let mut turn = self.0.lock().await;
        if let Some(lent) = turn.as_ref() {
            return Borrowed(Arc::clone(lent));
        }
        let cluster = binary.lay_out(nodes);
        configure(&cluster);
        cluster.start().await;
        let lent = Arc::new(Lent { cluster, returned: Mutex::new(Instant::now()) });
        *turn = Some(Arc::clone(&lent));
        if let Ok(mut made) = MADE.lock()
            && !made.iter().any(|known| std::ptr::eq(*known, self))
        {
            made.push(self);
        }
        Borrowed(lent)
    }

    /// Ends the cluster if nobody has used it for a while.
    fn end_if_idle(&self) {
        // Somebody who makes it or asks for it just now uses it.
        let Ok(mut turn) = self.0.try_lock() else { return };
        let idle = |lent: &mut Arc<Lent>| {
            // The count of one is the cell's own: nobody has it borrowed.
            Arc::strong_count(lent) == 1
                && lent.returned.lock().is_ok_and(|returned| returned.elapsed() >= IDLE)
        };
        drop(turn.take_if(idle));
    }
}

/// Ends the shared clusters that nobody has used for a while.
pub(crate) fn end_idle() {
    let made = MADE.lock().map(|made| made.clone()).unwrap_or_default();
    made.into_iter().for_each(Shared::end_if_idle);
}

/// A shared cluster in the hands of one test: if that test fails, the data is kept.
pub struct Borrowed(Arc<Lent>);

impl Deref for Borrowed {
    type Target = Cluster;

    fn deref(&self) -> &Cluster {
        &self.0.cluster
    }
}

impl Drop for Borrowed {
    fn drop(&mut self) {
        if let Ok(mut returned) = self.0.returned.lock() {
            *returned = Instant::now();
        }
        if std::thread::panicking() {
            self.keep();
            eprintln!("the data of the shared cluster is kept in {}", self.data().display());
        }
    }
}
