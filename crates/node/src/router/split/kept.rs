//! What is remembered up to a number, by its last use: pure, and no more work than a look into a map.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::hash::Hash;

/// Values by keys. When half of what may be kept is new, the other half that was not used since goes.
#[derive(Debug)]
pub(super) struct Kept<K, V> {
    new: HashMap<K, V>,
    old: HashMap<K, V>,
    max: usize,
}

impl<K: Hash + Eq, V: Clone> Kept<K, V> {
    /// Keeps at most `max`.
    pub(super) fn new(max: usize) -> Self {
        Self { new: HashMap::new(), old: HashMap::new(), max }
    }

    pub(super) fn get<Q>(&mut self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        if let Some(value) = self.new.get(key) {
            return Some(value.clone());
        }
        let (key, value) = self.old.remove_entry(key)?;
        self.put(key, value.clone());
        Some(value)
    }

    pub(super) fn put(&mut self, key: K, value: V) {
        if self.new.len() >= self.max.div_ceil(2).max(1) {
            self.old = std::mem::take(&mut self.new);
        }
        self.old.remove(&key);
        self.new.insert(key, value);
    }

    pub(super) fn clear(&mut self) {
        self.new.clear();
        self.old.clear();
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.new.len() + self.old.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_used_stays_and_what_is_not_goes() {
        let mut kept = Kept::new(10);
        for number in 0..1_000 {
            kept.put(number, number);
            assert_eq!(kept.get(&0), Some(0), "{number}");
            assert!(kept.len() <= 10, "{}", kept.len());
        }
        assert_eq!((kept.get(&999), kept.get(&900)), (Some(999), None));
        kept.put(0, 7);
        assert_eq!(kept.get(&0), Some(7));
        kept.clear();
        assert_eq!((kept.get(&0), kept.len()), (None, 0));
    }
}
