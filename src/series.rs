//! Who counts under a label of a metric. The series of what is gone from the configuration go too, and not before the
//! last request has ended that is counted there. Must not know metrics.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// By label, those who count. Cheap to clone.
pub struct Holders<T>(Arc<Mutex<HashMap<String, Weak<T>>>>);

impl<T> Holders<T> {
    /// The one of a label. Whoever asks again has the same, for as long as somebody has it: a counter that was taken
    /// away and made anew would be another one.
    pub fn of(&self, label: &str, make: impl FnOnce() -> T) -> Arc<T> {
        let mut holders = self.lock();
        if let Some(holder) = holders.get(label).and_then(Weak::upgrade) {
            return holder;
        }
        let holder = Arc::new(make());
        holders.insert(label.to_owned(), Arc::downgrade(&holder));
        holder
    }

    /// For when one is dropped: takes the label's series away, unless another has come by then, who goes on with them.
    pub fn end(&self, label: &str, forget: impl FnOnce()) {
        let mut holders = self.lock();
        if holders.get(label).is_some_and(|holder| holder.strong_count() == 0) {
            holders.remove(label);
            forget();
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Weak<T>>> {
        // A table of pointers is whole after any panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> Clone for Holders<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T> Default for Holders<T> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    struct Holder<'a> {
        holders: Holders<Self>,
        forgotten: &'a AtomicUsize,
    }

    impl Drop for Holder<'_> {
        fn drop(&mut self) {
            self.holders.end("label", || _ = self.forgotten.fetch_add(1, Ordering::Relaxed));
        }
    }

    #[test]
    fn a_label_is_forgotten_with_its_last_holder() {
        let (holders, forgotten) = (Holders::default(), AtomicUsize::new(0));
        let of = || holders.of("label", || Holder { holders: holders.clone(), forgotten: &forgotten });
        let (one, other) = (of(), of());
        assert!(Arc::ptr_eq(&one, &other));
        drop(one);
        assert_eq!(forgotten.load(Ordering::Relaxed), 0);
        drop(other);
        assert_eq!(forgotten.load(Ordering::Relaxed), 1);
        drop(of());
        assert_eq!(forgotten.load(Ordering::Relaxed), 2, "a new one is another one");
    }

    /// One is at its end, and somebody asks before it has said so.
    #[test]
    fn whoever_comes_before_the_last_has_gone_goes_on() {
        let holders = Holders::default();
        let (gone, mut forgotten) = (holders.of("label", || 1), false);
        drop(gone);
        let next = holders.of("label", || 2);
        holders.end("label", || forgotten = true);
        assert!(!forgotten);
        drop(next);
        holders.end("label", || forgotten = true);
        assert!(forgotten);
    }
}
