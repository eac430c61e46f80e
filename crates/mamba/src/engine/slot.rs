//! Slots that are lent: whoever holds one gives it back by letting go of it, however that comes about.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The slots that nobody holds. The one that came back last goes out first.
#[derive(Clone)]
pub(super) struct FreeSlots(Arc<Mutex<Vec<usize>>>);

/// A slot of somebody's own; free again when it is dropped, in a panic, too.
pub(super) struct Slot {
    pub index: usize,
    free: FreeSlots,
}

impl FreeSlots {
    /// Slots 0 to `count` − 1.
    pub fn new(count: usize) -> Self {
        Self(Arc::new(Mutex::new((0..count).rev().collect())))
    }

    fn indices(&self) -> MutexGuard<'_, Vec<usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One of them, if there is any.
    pub fn take(&self) -> Option<Slot> {
        self.indices().pop().map(|index| Slot { index, free: self.clone() })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.free.indices().push(self.index);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_comes_back_from_a_panic() {
        let free = FreeSlots::new(2);
        let first = free.take().unwrap();
        let taken = free.clone();
        let panic = std::panic::catch_unwind(move || {
            let _slot = taken.take();
            assert!(taken.take().is_none());
            panic!("on purpose");
        });
        assert!(panic.is_err());
        assert_eq!((first.index, free.take().map(|slot| slot.index)), (0, Some(1)));
        drop(first);
        assert_eq!(free.indices().len(), 2);
    }
}
