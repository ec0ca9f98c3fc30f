//! A step that went wrong, stored whole and run again.

use crate::event::Named;
use crate::state::{Identity, differences};
use crate::{Error, Result};
use candle_core::{Device, Tensor};
use occlude_checkpoint::{Checkpoint, Checkpoints, CommitError, Retention};
use occlude_distributed::SingleProcess;
use occlude_kernels::{Gradients, Precision, StateDict};
use occlude_methods::{Method, StepContext, StepOutput, ViewBatch};
use occlude_optim::{Optimizer, ParamGroup};
use occlude_random::Streams;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// How many bundles of a run stay: each holds the whole model.
const KEPT: usize = 3;

/// What a bundle stores beside tensors.
#[derive(Debug, Serialize, Deserialize)]
struct Bundle {
    step: u64,
    micro: usize,
    micros: usize,
    seed: u64,
    ids: Vec<u64>,
    what: String,
    losses: Named,
    identity: Identity,
    /// The name of the precision.
    precision: String,
}

/// A step that was run again.
#[derive(Debug)]
pub struct Replay {
    /// The step, 0-based.
    pub step: u64,
    /// The micro-batch within the step, 0-based.
    pub micro: usize,
    /// Micro-batches of a step.
    pub micros: usize,
    /// Seed of the run.
    pub seed: u64,
    /// Index of each sample in the training set.
    pub ids: Vec<u64>,
    /// What was not finite when the step was stored.
    pub stored: String,
    /// Losses by name, computed again.
    pub losses: Named,
    /// Other numbers of the method, computed again.
    pub metrics: Named,
    /// Trained parameters whose gradient is not finite.
    pub bad_gradients: Vec<String>,
}

/// Loads the state in `bundle` (a folder `replay/step-*` of a run) into `method` and runs the stored micro-batch again, in
/// the precision of the run.
/// Nothing is written and no optimizer is involved. `identity` is that of the run, as in `Trainer::identity`, with
/// its `seed`.
///
/// # Errors
/// The bundle is damaged, was stored by a run with other settings, or does not fit the method.
pub fn replay(
    bundle: &Path,
    identity: &BTreeMap<String, String>,
    method: &mut dyn Method,
    device: &Device,
) -> Result<Replay> {
    let stored = Checkpoint::open(bundle)?;
    let state: Bundle = stored.state()?;
    if let Some(differences) = differences(&state.identity, identity) {
        return Err(Error::OtherStep { path: bundle.to_owned(), differences });
    }
    method.load(&stored.load("method", device)?)?;
    let tensors = stored.load("batch", device)?;
    let views = (0..tensors.len()).map_while(|index| tensors.get(&view_name(index)).cloned()).collect();
    let batch = ViewBatch { views, ids: state.ids };
    let Bundle { step, micro, micros, .. } = state;
    let ctx = StepContext { step, micro, micros, streams: Streams::new(state.seed), collective: &SingleProcess };
    let output = {
        let _scope = state.precision.parse::<Precision>()?.scope();
        method.step(&batch, &ctx)?
    };
    let bad_gradients = bad_gradients(&method.groups(), &output.gradients)?;
    Ok(Replay {
        step,
        micro,
        micros,
        seed: state.seed,
        ids: batch.ids,
        stored: state.what,
        losses: Named::of(&output.losses),
        metrics: Named::of(&output.metrics),
        bad_gradients,
    })
}

/// The state before a micro-batch and what went into it.
pub(crate) struct Suspect<'a> {
    pub(crate) folder: &'a Path,
    pub(crate) method: &'a dyn Method,
    pub(crate) optimizer: &'a Optimizer,
    pub(crate) batch: &'a ViewBatch,
    pub(crate) output: &'a StepOutput,
    pub(crate) ctx: &'a StepContext<'a>,
    pub(crate) identity: &'a Identity,
    pub(crate) precision: Precision,
}

impl Suspect<'_> {
    /// Stores the micro-batch with the state of the method: what it reads has not moved since it was run.
    pub(crate) fn store(&self, what: &str) -> Result<PathBuf, CommitError> {
        let views: StateDict =
            self.batch.views.iter().enumerate().map(|(index, view)| (view_name(index), view.clone())).collect();
        let bundle = Bundle {
            step: self.ctx.step,
            micro: self.ctx.micro,
            micros: self.ctx.micros,
            seed: self.ctx.streams.seed(),
            ids: self.batch.ids.clone(),
            what: what.to_owned(),
            losses: Named::of(&self.output.losses),
            identity: self.identity.clone(),
            precision: self.precision.to_string(),
        };
        let (method, optimizer) = (self.method.state(), self.optimizer.state());
        let parts = [("method", &method), ("optimizer", &optimizer), ("batch", &views)];
        let bundles = Checkpoints::new(self.folder, Retention { keep_last: KEPT, keep_every: None });
        bundles.commit(self.ctx.step, &parts, &bundle)
    }
}

/// The first loss or gradient that is not finite, in words.
pub(crate) fn not_finite(output: &StepOutput, optimizer: &Optimizer) -> Result<Option<String>> {
    if let Some((name, value)) = output.losses.iter().find(|(_, value)| !value.is_finite()) {
        return Ok(Some(format!("loss {name} = {value}")));
    }
    let bad = bad_gradients(optimizer.groups(), &output.gradients)?;
    Ok(bad.first().map(|name| format!("the gradient of {name}")))
}

/// Names of the parameters whose gradient is not finite, in order.
fn bad_gradients<'a>(groups: impl IntoIterator<Item = &'a ParamGroup>, gradients: &Gradients) -> Result<Vec<String>> {
    let mut bad = Vec::new();
    for param in groups.into_iter().flat_map(|group| &group.params) {
        if !gradients.get(&param.tensor).map_or(Ok(true), is_finite)? {
            bad.push(param.name.clone());
        }
    }
    Ok(bad)
}

/// One pass without a copy: a NaN or infinity anywhere makes the sum one.
fn is_finite(gradient: &Tensor) -> Result<bool> {
    let sum = gradient.sum_all()?.to_dtype(candle_core::DType::F64)?.to_scalar::<f64>()?;
    Ok(sum.is_finite())
}

fn view_name(index: usize) -> String {
    format!("view.{index}")
}

/// How to run a stored step again.
pub(crate) fn instructions(stored: Result<PathBuf, CommitError>) -> String {
    match stored {
        Ok(path) => format!("`occlude replay {}` runs it again", path.display()),
        Err(CommitError::Unconfirmed { path, .. }) => format!("`occlude replay {}` runs it again", path.display()),
        Err(error) => format!("The step could not be stored: {error}"),
    }
}
