//! Server connections that are opened ahead: so that the first clients after a quiet time need not wait for one.

use std::rc::Rc;

use super::PoolMode;
use super::account::Account;
use super::worker::Worker;

/// Opens what the pools of an account lack, at every node that a client may be sent to.
pub(super) fn keep(worker: &Rc<Worker>, account: &Rc<Account>) {
    if least(worker, account) == 0 || account.is_held() {
        return;
    }
    for address in worker.addresses() {
        account.pool(worker, &address).fill(least(worker, account));
    }
}

/// So many connections a pool of the account has at the least. None while nobody has proved to be the role, after the
/// server has refused one that was to be opened ahead, or while the database may be about to be dropped: then the next
/// login begins it anew. None either where every client has a connection of its own.
pub(super) fn least(worker: &Worker, account: &Account) -> usize {
    if account.is_warm() && account.pooling.get().mode != PoolMode::Session {
        worker.part_of(worker.shared.config().pool_size_min)
    } else {
        0
    }
}
