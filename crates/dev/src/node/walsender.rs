//! The server process that reads the WAL for the agent: it may stand still.

use rustix::process::Signal;

use super::Node;
use crate::process;

impl Node {
    /// Stops the time (SIGSTOP) of the server process that reads the WAL for the agent: nothing more is decoded.
    ///
    /// # Panics
    /// When there is none.
    pub async fn pause_decoding(&self) {
        self.signal_walsender(Signal::STOP).await;
    }

    /// Lets it go on.
    ///
    /// # Panics
    /// When there is none.
    pub async fn resume_decoding(&self) {
        self.signal_walsender(Signal::CONT).await;
    }

    async fn signal_walsender(&self, signal: Signal) {
        let sql = "select pid from pg_stat_get_wal_senders()";
        let pids = self.rows(sql).await;
        let [pid] = &pids[..] else { panic!("node {} has {} of them", self.number, pids.len()) };
        process::send(pid.parse().unwrap_or_else(|_| panic!("no process id: {pid}")), signal);
    }
}
