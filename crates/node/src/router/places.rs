//! Places of which as many may be taken as is allowed at that moment.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Counts the places that are taken. How many there may be is asked each time, since it can change.
#[derive(Debug, Default)]
pub(super) struct Places(Arc<AtomicUsize>);

impl Places {
    /// Takes one, if fewer than `max` are taken.
    pub(super) fn take(&self, max: usize) -> Option<Taken> {
        let one_more = |taken: usize| (taken < max).then_some(taken + 1);
        let taken = self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, one_more);
        taken.is_ok().then(|| Taken(Arc::clone(&self.0)))
    }

    /// How many are taken.
    pub(super) fn taken(&self) -> usize {
        self.0.load(Ordering::Acquire)
    }
}

/// A place that is taken; dropped, it is free.
#[derive(Debug)]
pub(super) struct Taken(Arc<AtomicUsize>);

impl Drop for Taken {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_are_given_as_there_may_be_now() {
        let places = Places::default();
        let taken: Vec<_> = (0..3).map_while(|_| places.take(2)).collect();
        assert_eq!((taken.len(), places.taken()), (2, 2));
        let more = places.take(3);
        assert!(more.is_some());
        // Nobody is sent away when there may be fewer.
        assert!(places.take(1).is_none());
        drop(taken);
        assert!(places.take(1).is_none());
        drop(more);
        assert!(places.take(1).is_some());
        assert_eq!(places.taken(), 0);
    }
}
