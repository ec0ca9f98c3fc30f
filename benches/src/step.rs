//! Time and memory of one training step, alone.

use crate::protocol::Reply;
use crate::serve::timed;
use crate::subject::subject;
use crate::{Precision, Preset, median};
use anyhow::Result;

/// A benchmark of whole training steps: forward, backward, optimizer, moving average. Images are made beforehand.
#[derive(Clone, Debug)]
pub struct StepBench {
    /// Which method, or `encoder`.
    pub method: String,
    /// At which size.
    pub preset: Preset,
    /// In which arithmetic.
    pub precision: Precision,
    /// Steps that are timed.
    pub steps: usize,
    /// Steps before that.
    pub warmup: usize,
    /// Threads.
    pub threads: usize,
}

/// What a benchmark measured.
#[derive(Clone, Debug)]
pub struct Figures {
    /// Seconds of each timed step.
    pub seconds: Vec<f64>,
    /// CPU seconds of all threads, mean over the timed steps.
    pub cpu_per_step: Option<f64>,
    /// Largest resident memory of the process, in MiB.
    pub peak_memory_mib: Option<f64>,
    /// Numbers that are trained.
    pub parameters: usize,
}

impl Figures {
    /// The middle of the timed steps.
    #[must_use]
    pub fn median(&self) -> f64 {
        median(&self.seconds).unwrap_or(f64::NAN)
    }

    /// The fastest of the timed steps.
    #[must_use]
    pub fn fastest(&self) -> f64 {
        self.seconds.iter().copied().fold(f64::INFINITY, f64::min)
    }
}

impl StepBench {
    /// Runs the benchmark. Must be called first in a process: it starts the thread pool.
    ///
    /// # Errors
    /// An unknown method, or an operator that fails.
    pub fn run(&self) -> Result<Figures> {
        self.prepare()?;
        let mut subject = subject(&self.method, self.preset, self.precision)?;
        timed(&mut *subject, self.warmup)?;
        let Reply { seconds, cpu_seconds, peak_mib, .. } = timed(&mut *subject, self.steps)?;
        let cpu_per_step =
            (!cpu_seconds.is_empty()).then(|| cpu_seconds.iter().sum::<f64>() / cpu_seconds.len() as f64);
        Ok(Figures { seconds, cpu_per_step, peak_memory_mib: peak_mib, parameters: subject.parameters() })
    }

    /// Memory and threads as in training.
    pub(crate) fn prepare(&self) -> Result<()> {
        occlude_kernels::memory::keep_freed();
        Ok(occlude_kernels::threads::init(self.threads)?)
    }
}

#[cfg(test)]
mod tests {
    use super::Figures;

    #[test]
    fn the_median_is_the_middle() {
        let figures =
            Figures { seconds: vec![3.0, 1.0, 2.0], cpu_per_step: None, peak_memory_mib: None, parameters: 1 };
        assert_eq!((figures.median(), figures.fastest()), (2.0, 1.0));
    }
}
