//! Time spent, over all starts of a run, and the speed of the last steps.

use crate::event::TimingRow;
use crate::memory::peak_memory_mb;
use serde::{Deserialize, Serialize};
use std::time::{Duration, Instant};

/// Weight of the past in the smoothed rates: about twenty steps count.
const PAST: f64 = 0.95;

/// Time spent, as stored in a checkpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Spent {
    /// Everything between start and end: steps, probes, saves.
    pub(crate) seconds: f64,
    /// In steps, waiting for batches included.
    pub(crate) step_seconds: f64,
    /// Waiting for batches.
    pub(crate) wait_seconds: f64,
    /// Images trained on.
    pub(crate) images: u64,
    /// Largest memory seen by any start.
    pub(crate) peak_memory_mb: Option<f64>,
}

/// The running clock.
#[derive(Debug)]
pub(crate) struct Clock {
    before: Spent,
    started: Instant,
    now: Spent,
    recent: Recent,
}

/// Decaying sums over the last steps.
#[derive(Clone, Copy, Debug, Default)]
struct Recent {
    images: f64,
    step_seconds: f64,
    wait_seconds: f64,
}

impl Clock {
    /// Goes on from what was `spent` before this start.
    pub(crate) fn start(spent: Spent) -> Self {
        Self { before: spent, started: Instant::now(), now: spent, recent: Recent::default() }
    }

    /// A step on `images` images took `whole`, of which `waited` was spent waiting.
    pub(crate) fn step(&mut self, images: usize, whole: Duration, waited: Duration) {
        let (whole, waited) = (whole.as_secs_f64(), waited.as_secs_f64());
        self.now.images += images as u64;
        self.now.step_seconds += whole;
        self.now.wait_seconds += waited;
        let recent = &mut self.recent;
        recent.images = PAST * recent.images + images as f64;
        recent.step_seconds = PAST * recent.step_seconds + whole;
        recent.wait_seconds = PAST * recent.wait_seconds + waited;
    }

    /// Time spent up to now.
    pub(crate) fn spent(&self) -> Spent {
        let largest = [self.before.peak_memory_mb, peak_memory_mb()].into_iter().flatten().reduce(f64::max);
        Spent { seconds: self.seconds(), peak_memory_mb: largest, ..self.now }
    }

    /// The live figures.
    pub(crate) fn row(&self, step: u64, corrupt: u64) -> TimingRow {
        TimingRow {
            step,
            seconds: self.seconds(),
            images_per_second: ratio(self.recent.images, self.recent.step_seconds),
            wait_share: ratio(self.recent.wait_seconds, self.recent.step_seconds),
            corrupt,
            peak_memory_mb: peak_memory_mb(),
        }
    }

    fn seconds(&self) -> f64 {
        self.before.seconds + self.started.elapsed().as_secs_f64()
    }
}

impl Spent {
    pub(crate) fn images_per_second(&self) -> f64 {
        ratio(self.images as f64, self.step_seconds)
    }

    pub(crate) fn wait_share(&self) -> f64 {
        ratio(self.wait_seconds, self.step_seconds)
    }
}

fn ratio(part: f64, whole: f64) -> f64 {
    if whole > 0.0 { part / whole } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::{Clock, Spent};
    use std::time::Duration;

    #[test]
    fn rates_leave_out_what_is_not_a_step_and_go_on_after_a_restart() {
        let before =
            Spent { images: 100, step_seconds: 10.0, wait_seconds: 1.0, seconds: 50.0, peak_memory_mb: Some(1e9) };
        let mut clock = Clock::start(before);
        clock.step(60, Duration::from_secs(10), Duration::from_secs(3));
        let spent = clock.spent();
        assert_eq!((spent.images_per_second(), spent.wait_share()), (8.0, 0.2));
        assert!(spent.seconds >= 50.0 && spent.peak_memory_mb == Some(1e9));
        let row = clock.row(7, 2);
        assert_eq!((row.images_per_second, row.wait_share, row.corrupt), (6.0, 0.3, 2));
    }
}
