//! The trait every pre-training method implements, and what goes in and out of a step.

use crate::pixels::Painted;
use candle_core::{DType, Tensor};
use occlude_distributed::{Collective, SingleProcess};
use occlude_kernels::{Error, Gradients, Result, StateDict};
use occlude_optim::ParamGroup;
use occlude_random::{Stream, Streams};
use occlude_vit::Extractor;

/// A batch as a method sees it.
#[derive(Clone, Debug)]
pub struct ViewBatch {
    /// One tensor a view, normalised.  [batch, 3, height, width], f32
    pub views: Vec<Tensor>,
    /// Index of each sample in the training set.
    pub ids: Vec<u64>,
}

impl ViewBatch {
    /// The view of a method that takes one.  [batch, 3, height, width]
    pub(crate) fn single(&self, method: &'static str) -> Result<&Tensor> {
        match self.views.as_slice() {
            [view] => Ok(view),
            views => Err(Error::argument(method, format!("takes one view of an image, got {}", views.len()))),
        }
    }
}

/// Images of an optimizer step in one process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchSize {
    /// Images of a micro-batch: what one call of [`Method::step`] is given.
    pub micro: usize,
    /// Micro-batches of an optimizer step.
    pub accumulate: usize,
}

impl BatchSize {
    /// Images that one step of the optimizer learns from.
    #[must_use]
    pub fn effective(self) -> usize {
        self.micro.saturating_mul(self.accumulate)
    }
}

/// What a method may know about the run during a step.
///
/// An optimizer step takes one or more micro-batches on each rank of a group of processes. Losses are means over all of
/// them: the trainer averages gradients, and the schedules count optimizer steps.
#[derive(Clone, Copy, Debug)]
pub struct StepContext<'a> {
    /// The optimizer step, 0-based.
    pub step: u64,
    /// The micro-batch within the step, 0-based.
    pub micro: usize,
    /// Micro-batches of a step.
    pub micros: usize,
    /// Named random streams of the run. Draws for the images of a batch are keyed by [`StepContext::batch_index`], draws
    /// that are the same for all of an optimizer step by `step`.
    pub streams: Streams,
    /// The other processes that train the same model. Every rank makes the same calls in the same order.
    pub collective: &'a dyn Collective,
}

impl StepContext<'static> {
    /// A step of one micro-batch in a single process.
    #[must_use]
    pub fn single(step: u64, streams: Streams) -> Self {
        Self { step, micro: 0, micros: 1, streams, collective: &SingleProcess }
    }
}

impl StepContext<'_> {
    /// Whether this is the last micro-batch before the optimizer moves.
    #[must_use]
    pub fn is_last_micro(&self) -> bool {
        self.micro + 1 >= self.micros
    }

    /// Number of this batch among all batches of the run: micro-batches count before steps, ranks before micro-batches.
    /// The step, where a step is one batch of one process.
    #[must_use]
    pub fn batch_index(&self) -> u64 {
        let micro = self.step.wrapping_mul(self.micros as u64).wrapping_add(self.micro as u64);
        micro.wrapping_mul(self.collective.size() as u64).wrapping_add(self.collective.rank() as u64)
    }
}

/// What one step gives: losses by name, numbers to log, gradients.
#[derive(Debug, Default)]
pub struct StepOutput {
    /// Losses by name, the one the student is trained on first. The trainer stops on one that is not finite.
    pub losses: Vec<(&'static str, f64)>,
    /// Other numbers to log (target entropy).
    pub metrics: Vec<(&'static str, f64)>,
    /// Gradients of every trained parameter in [`Method::groups`], for this micro-batch alone.
    pub gradients: Gradients,
}

/// A small matrix of weights that is looked at while it is trained.
#[derive(Clone, Debug, PartialEq)]
pub struct Matrix {
    /// What it is: `skips`.
    pub name: &'static str,
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub cols: usize,
    /// Row by row.  [rows * cols]
    pub values: Vec<f64>,
}

impl Matrix {
    /// The values of a tensor of two axes.
    ///
    /// # Errors
    /// Another number of axes.
    pub(crate) fn of(name: &'static str, tensor: &Tensor) -> Result<Self> {
        let (rows, cols) = tensor.dims2()?;
        let values = tensor.detach().to_dtype(DType::F64)?.flatten_all()?.to_vec1()?;
        Ok(Self { name, rows, cols, values })
    }
}

/// Which weights are meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weights {
    /// The network that is trained by gradient.
    Student,
    /// Its exponential moving average.
    Teacher,
}

/// A pre-training method. It owns its networks; the trainer owns the loop, the optimizer and the files.
pub trait Method {
    /// Short name, as in the config: `capi`.
    fn name(&self) -> &'static str;

    /// What a method does before the last micro-batch of an optimizer step, right before [`Method::step`] is called with
    /// the same `ctx`: a teacher that moves at the start of a step moves here. Nothing by default.
    ///
    /// # Errors
    /// A failing operator.
    fn before_update(&mut self, ctx: &StepContext<'_>) -> Result<()> {
        let _ = ctx;
        Ok(())
    }

    /// Forward and backward of one micro-batch. Its losses are means over the batch. Changes no parameter, and nothing that
    /// a second call with the same batch would read, so that a step that went wrong can be run again: running statistics
    /// may move, a codebook moves in [`Method::after_step`].
    ///
    /// # Errors
    /// A batch of the wrong shape, or a failing operator.
    fn step(&mut self, batch: &ViewBatch, ctx: &StepContext<'_>) -> Result<StepOutput>;

    /// What a method does after the optimizer (and the EMA that is part of its groups) has moved: codebooks. Called once
    /// an optimizer step, with the `ctx` of its last micro-batch.
    ///
    /// # Errors
    /// A failing operator.
    fn after_step(&mut self, ctx: &StepContext<'_>) -> Result<()>;

    /// Trained parameters, their schedules and their averages. Called once, at the start.
    fn groups(&self) -> Vec<ParamGroup>;

    /// Every tensor a resumed run needs, by full name (`student.*`, `student_ema.*`, `teacher.*`).
    fn state(&self) -> StateDict;

    /// Overwrites the state. Nothing changes on error.
    ///
    /// # Errors
    /// A name is missing or unknown, or a shape differs.
    fn load(&mut self, state: &StateDict) -> Result<()>;

    /// The frozen model that is evaluated and exported. Shares storage with the method: use it between steps.
    fn extractor(&self, weights: Weights) -> Box<dyn Extractor + '_>;

    /// Weights that are looked at while they are trained (the skips of RandSAC). None by default.
    ///
    /// # Errors
    /// A failing copy.
    fn matrices(&self) -> Result<Vec<Matrix>> {
        Ok(Vec::new())
    }

    /// What it says about the pixels of some images, for a picture; nothing by default: it predicts something else. What is
    /// shown of an image is drawn from `stream(image)`, which is called once for each, in order.
    /// images: [batch, 3, side, side]
    ///
    /// # Errors
    /// Images of another size than those of training.
    fn paint(&self, images: &Tensor, stream: &mut dyn FnMut(usize) -> Stream) -> Result<Option<Painted>> {
        let _ = (images, stream);
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::{BatchSize, StepContext};
    use occlude_distributed::{Collective, InProcess};
    use occlude_random::Streams;
    use std::collections::BTreeSet;

    #[test]
    fn every_batch_of_a_run_has_a_number_of_its_own() {
        let ranks = InProcess::group(2);
        let mut seen = BTreeSet::new();
        for (step, micro, rank) in
            (0..4).flat_map(|step| (0..3).flat_map(move |micro| [(step, micro, 0), (step, micro, 1)]))
        {
            let collective: &dyn Collective = &ranks[rank];
            let ctx = StepContext { step, micro, micros: 3, streams: Streams::new(0), collective };
            assert!(seen.insert(ctx.batch_index()), "step {step}, micro-batch {micro}, rank {rank}");
            assert_eq!(ctx.is_last_micro(), micro == 2);
        }
        assert_eq!(seen, (0..24).collect());
        let single = StepContext::single(7, Streams::new(0));
        assert_eq!((single.batch_index(), single.is_last_micro()), (7, true));
    }

    #[test]
    fn a_step_learns_from_all_its_micro_batches() {
        assert_eq!(BatchSize { micro: 64, accumulate: 4 }.effective(), 256);
    }
}
