//! Figures of the loader, for live display.

use std::time::Duration;

/// What a loader did since it was started.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LoaderStats {
    /// Images handed over.
    pub images: u64,
    /// Different images that could not be read.
    pub corrupt: u64,
    /// Time that the consumer spent waiting for batches.
    pub waited: Duration,
    /// Time since the start.
    pub elapsed: Duration,
}

impl LoaderStats {
    /// The figures since an `earlier` reading.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        Self {
            images: self.images.saturating_sub(earlier.images),
            corrupt: self.corrupt.saturating_sub(earlier.corrupt),
            waited: self.waited.saturating_sub(earlier.waited),
            elapsed: self.elapsed.saturating_sub(earlier.elapsed),
        }
    }

    /// Share of the time spent waiting, 0 to 1.
    #[must_use]
    pub fn wait_share(&self) -> f64 {
        share(self.waited.as_secs_f64(), self.elapsed.as_secs_f64()).min(1.0)
    }

    /// Images handed over per second.
    #[must_use]
    pub fn images_per_second(&self) -> f64 {
        share(self.images as f64, self.elapsed.as_secs_f64())
    }
}

fn share(part: f64, whole: f64) -> f64 {
    if whole > 0.0 { part / whole } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::LoaderStats;
    use std::time::Duration;

    #[test]
    fn a_difference_gives_the_live_figures() {
        let at = |images, waited, elapsed| LoaderStats {
            images,
            corrupt: 0,
            waited: Duration::from_secs(waited),
            elapsed: Duration::from_secs(elapsed),
        };
        let live = at(300, 3, 10).since(&at(100, 2, 6));
        assert_eq!((live.wait_share(), live.images_per_second()), (0.25, 50.0));
        assert_eq!(LoaderStats::default().wait_share(), 0.0);
    }
}
