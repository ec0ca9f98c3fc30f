//! Stochastic depth: for which images of a batch a residual branch is computed.

use occlude_kernels::{Error, Result};
use occlude_random::{Stream, Streams, choose, unit};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

/// How stochastic depth drops.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DropPathKind {
    /// A branch is computed for a random subset of the batch, of fixed size (CAPI's default).
    Subset,
    /// A branch is computed for all images, and multiplied by 0 or 1/(1 - rate) image by image.
    Naive,
}

/// What happens to one residual branch.
#[derive(Clone, Debug, PartialEq)]
pub enum Kept {
    /// Nothing is dropped.
    All,
    /// The branch is computed for these images only and added times `scale`.
    Rows {
        /// Batch rows, each at most once.
        rows: Vec<u32>,
        /// batch / kept.
        scale: f64,
    },
    /// The branch of each image is multiplied by its factor.
    Scaled(Vec<f64>),
}

/// Says for each residual branch of a forward pass, in call order, what is kept.
#[derive(Clone, Debug)]
pub struct DropPath {
    source: Source,
    branch: u64,
}

#[derive(Clone, Debug)]
enum Source {
    Off,
    Drawn { kind: DropPathKind, rate: f64, streams: Streams, purpose: &'static str, step: u64 },
    Recorded(VecDeque<Vec<u32>>),
}

impl DropPath {
    /// Nothing is dropped: evaluation, teachers.
    #[must_use]
    pub fn off() -> Self {
        Self { source: Source::Off, branch: 0 }
    }

    /// Drawn at `rate` (0 means off); branch `i` of a pass draws from the stream (`purpose`, `step`, `i`).
    #[must_use]
    pub fn drawn(kind: DropPathKind, rate: f64, streams: Streams, purpose: &'static str, step: u64) -> Self {
        let source = if rate > 0.0 { Source::Drawn { kind, rate, streams, purpose, step } } else { Source::Off };
        Self { source, branch: 0 }
    }

    /// The kept rows of every branch, given: a recorded pass is repeated.
    #[must_use]
    pub fn recorded(rows: Vec<Vec<u32>>) -> Self {
        Self { source: Source::Recorded(rows.into()), branch: 0 }
    }

    /// What the next branch keeps of a batch.
    ///
    /// # Errors
    /// A recorded pass has fewer branches.
    pub fn next(&mut self, batch: usize) -> Result<Kept> {
        let branch = self.branch;
        self.branch += 1;
        match &mut self.source {
            Source::Off => Ok(Kept::All),
            Source::Recorded(rows) => {
                let rows = rows
                    .pop_front()
                    .ok_or_else(|| Error::argument("drop_path", format!("no rows are recorded for branch {branch}")))?;
                let scale = batch as f64 / rows.len().max(1) as f64;
                Ok(Kept::Rows { rows, scale })
            }
            Source::Drawn { kind, rate, streams, purpose, step } => {
                let mut stream = streams.stream(purpose, *step, branch);
                Ok(match kind {
                    DropPathKind::Subset => subset(batch, *rate, &mut stream),
                    DropPathKind::Naive => naive(batch, *rate, &mut stream),
                })
            }
        }
    }
}

/// `max(int(batch * (1 - rate)), 1)` rows, uniformly without replacement.
fn subset(batch: usize, rate: f64, stream: &mut Stream) -> Kept {
    let keep = ((batch as f64 * (1.0 - rate)) as usize).max(1);
    if keep >= batch {
        return Kept::All;
    }
    let mut rows: Vec<u32> = (0..batch as u32).collect();
    let rows = choose(stream, &mut rows, keep).to_vec();
    Kept::Rows { rows, scale: batch as f64 / keep as f64 }
}

fn naive(batch: usize, rate: f64, stream: &mut Stream) -> Kept {
    let kept = 1.0 / (1.0 - rate);
    Kept::Scaled((0..batch).map(|_| if unit(stream) < rate { 0.0 } else { kept }).collect())
}

#[cfg(test)]
mod tests {
    use super::{DropPath, DropPathKind, Kept};
    use occlude_random::Streams;

    fn drawn(kind: DropPathKind, rate: f64) -> DropPath {
        DropPath::drawn(kind, rate, Streams::new(3), "test/drop-path", 5)
    }

    #[test]
    fn a_subset_has_the_truncated_size_and_no_row_twice() {
        for (batch, rate, keep) in [(10, 0.2, 8), (5, 0.2, 4), (8, 0.2, 6), (3, 0.9, 1)] {
            let mut drop = drawn(DropPathKind::Subset, rate);
            let passes: Vec<Kept> = (0..20).map(|_| drop.next(batch).unwrap()).collect();
            for kept in &passes {
                let Kept::Rows { rows, scale } = kept else { panic!("{kept:?}") };
                let mut sorted = rows.clone();
                sorted.sort_unstable();
                sorted.dedup();
                assert_eq!((sorted.len(), *scale), (keep, batch as f64 / keep as f64));
                assert!(sorted.iter().all(|row| (*row as usize) < batch));
            }
            assert!(passes.iter().any(|kept| *kept != passes[0]), "branches draw independently");
        }
    }

    #[test]
    fn draws_are_frozen() {
        // Stored runs resume on these; a change here breaks every one of them.
        let rows = |kept| if let Kept::Rows { rows, .. } = kept { rows } else { panic!("a subset has rows") };
        assert_eq!(rows(drawn(DropPathKind::Subset, 0.5).next(8).unwrap()), [2, 5, 0, 6]);
        let Kept::Scaled(factors) = drawn(DropPathKind::Naive, 0.5).next(8).unwrap() else { panic!("naive scales") };
        assert_eq!(factors, [2.0, 0.0, 2.0, 0.0, 0.0, 2.0, 2.0, 2.0]);
    }

    #[test]
    fn draws_depend_on_step_and_branch_only() {
        let (mut a, mut b) = (drawn(DropPathKind::Subset, 0.5), drawn(DropPathKind::Subset, 0.5));
        assert_eq!(a.next(8).unwrap(), b.next(8).unwrap());
        assert_eq!(a.next(8).unwrap(), b.next(8).unwrap());
    }

    #[test]
    fn naive_factors_keep_the_mean() {
        let mut drop = drawn(DropPathKind::Naive, 0.2);
        let Kept::Scaled(factors) = drop.next(4000).unwrap() else { panic!("naive scales") };
        assert!(factors.iter().all(|f| *f == 0.0 || *f == 1.25));
        let mean = factors.iter().sum::<f64>() / 4000.0;
        assert!((mean - 1.0).abs() < 0.05, "{mean}");
    }

    #[test]
    fn a_record_that_ends_early_is_refused() {
        let mut drop = DropPath::recorded(vec![vec![0]]);
        assert!(drop.next(2).is_ok());
        assert!(drop.next(2).unwrap_err().to_string().contains("branch 1"));
    }
}
