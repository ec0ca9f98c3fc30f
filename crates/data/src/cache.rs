//! Decoded images kept in memory while they fit.

use crate::{Dataset, Image, Result};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

/// A data set that keeps what it decoded until its budget is spent; the rest is decoded at each read. Results are the
/// same either way.
pub(crate) struct Cached {
    inner: Arc<dyn Dataset>,
    kept: Vec<OnceLock<Image>>,
    /// Bytes left.
    budget: AtomicU64,
}

impl Cached {
    /// Keeps at most `budget` bytes of pixels.
    pub(crate) fn new(inner: Arc<dyn Dataset>, budget: u64) -> Self {
        let kept = (0..inner.len()).map(|_| OnceLock::new()).collect();
        Self { inner, kept, budget: AtomicU64::new(budget) }
    }

    /// Takes `bytes` from the budget, if it has them.
    fn reserve(&self, bytes: u64) -> bool {
        let take = |left: u64| left.checked_sub(bytes);
        self.budget.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok()
    }
}

impl Dataset for Cached {
    fn len(&self) -> usize {
        self.inner.len()
    }

    fn read(&self, index: usize) -> Result<Image> {
        if let Some(image) = self.kept[index].get() {
            return Ok(image.clone());
        }
        let image = self.inner.read(index)?;
        let bytes = image.pixels.len() as u64;
        if self.reserve(bytes) && self.kept[index].set(image.clone()).is_err() {
            // Another worker kept the same image a moment ago.
            self.budget.fetch_add(bytes, Ordering::Relaxed);
        }
        Ok(image)
    }

    fn label(&self, index: usize) -> Option<u32> {
        self.inner.label(index)
    }

    fn classes(&self) -> &[String] {
        self.inner.classes()
    }

    fn name(&self, index: usize) -> String {
        self.inner.name(index)
    }

    fn fingerprint(&self) -> u64 {
        self.inner.fingerprint()
    }
}

#[cfg(test)]
mod tests {
    use super::Cached;
    use crate::{Dataset, Image, Result};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[derive(Default)]
    struct Counting(AtomicUsize);

    impl Dataset for Counting {
        fn len(&self) -> usize {
            4
        }
        fn read(&self, index: usize) -> Result<Image> {
            self.0.fetch_add(1, Ordering::SeqCst);
            Ok(Image { width: 1, height: 1, pixels: vec![index as u8; 3] })
        }
        fn label(&self, _: usize) -> Option<u32> {
            None
        }
        fn classes(&self) -> &[String] {
            &[]
        }
        fn name(&self, index: usize) -> String {
            index.to_string()
        }
    }

    #[test]
    fn images_are_kept_up_to_the_budget() {
        let inner = Arc::new(Counting::default());
        let cached = Cached::new(Arc::clone(&inner) as Arc<dyn Dataset>, 7);
        for _ in 0..3 {
            for index in 0..4 {
                assert_eq!(cached.read(index).unwrap().pixels, [index as u8; 3]);
            }
        }
        // Two images of 3 bytes fit into 7 and are decoded once, the other two three times.
        assert_eq!(inner.0.load(Ordering::SeqCst), 2 + 2 * 3);
    }
}
