//! The trait every pre-training method implements, and what goes in and out of a step.

use candle_core::Tensor;
use occlude_kernels::{Gradients, Result, StateDict};
use occlude_optim::ParamGroup;
use occlude_random::Streams;
use occlude_vit::Extractor;

/// A batch as a method sees it.
#[derive(Clone, Debug)]
pub struct ViewBatch {
    /// One tensor a view, normalised.  [batch, 3, height, width], f32
    pub views: Vec<Tensor>,
    /// Index of each sample in the training set.
    pub ids: Vec<u64>,
}

/// What a method may know about the run during a step.
#[derive(Clone, Copy, Debug)]
pub struct StepContext {
    /// 0-based.
    pub step: u64,
    /// Named random streams of the run; draws of a step are keyed by `step`.
    pub streams: Streams,
}

/// What one step gives: losses by name, numbers to log, gradients.
#[derive(Debug, Default)]
pub struct StepOutput {
    /// Losses by name, the one the student is trained on first. The trainer stops on one that is not finite.
    pub losses: Vec<(&'static str, f64)>,
    /// Other numbers to log (target entropy).
    pub metrics: Vec<(&'static str, f64)>,
    /// Gradients of every trained parameter in [`Method::groups`].
    pub gradients: Gradients,
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

    /// Forward and backward of one batch. Changes no parameter.
    ///
    /// # Errors
    /// A batch of the wrong shape, or a failing operator.
    fn step(&mut self, batch: &ViewBatch, ctx: &StepContext) -> Result<StepOutput>;

    /// What a method does after the optimizer (and the EMA that is part of its groups) has moved: codebooks.
    ///
    /// # Errors
    /// A failing operator.
    fn after_step(&mut self, ctx: &StepContext) -> Result<()>;

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
}
