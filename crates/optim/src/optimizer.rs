//! The optimizer: one AdamW step of every group, with clipping and averages.

use crate::ParamGroup;
use crate::group::{alike, described, memory, refused};
use candle_core::{Device, Tensor};
use occlude_kernels::{
    AdamWStep, Error, Factors, Gradients, Param, Result, Role, StateDict, adamw_step, assign, global_norm,
};
use std::collections::HashSet;

/// Added to the norm that a clipping factor divides by, as published recipes have it.
const CLIP_EPS: f64 = 1e-6;

/// What a step did.
#[derive(Clone, Debug, PartialEq)]
pub struct StepReport {
    /// Global L2 norm over all groups before clipping; only when clipping is on.
    pub grad_norm: Option<f64>,
    /// (group name, learning rate)
    pub lrs: Vec<(&'static str, f64)>,
    /// (group name, EMA momentum)
    pub momenta: Vec<(&'static str, f64)>,
}

/// AdamW over several groups.
///
/// State names are `<group>.m.<param>` and `<group>.v.<param>` (first and second moment) and `<group>.step` (a scalar, i64:
/// steps taken).
#[derive(Debug)]
pub struct Optimizer {
    groups: Vec<Stepped>,
    clip: Option<f64>,
}

/// A group and its state.
#[derive(Debug)]
struct Stepped {
    group: ParamGroup,
    /// First and second moment of each parameter; none for constants.
    moments: Vec<Option<Moments>>,
    taken: Taken,
}

#[derive(Debug)]
struct Moments {
    first: Tensor,
    second: Tensor,
}

/// Steps taken, for the bias correction. The tensor is the same number as it is written to a checkpoint.
#[derive(Clone, Debug)]
struct Taken {
    count: u64,
    tensor: Tensor,
}

impl Taken {
    fn new(count: u64) -> Result<Self> {
        let stored = i64::try_from(count).map_err(|_| refused(format!("{count} steps taken")))?;
        Ok(Self { count, tensor: Tensor::new(stored, &Device::Cpu)? })
    }
}

/// One write of a step, checked.
struct Update<'a> {
    param: &'a Param,
    moments: &'a Moments,
    factors: Factors,
    gradient: &'a Tensor,
}

impl Optimizer {
    /// An optimizer of these groups. `clip` is the largest global gradient norm, over all groups together: gradients are
    /// multiplied by `min(1, clip / (norm + 1e-6))`.
    ///
    /// # Errors
    /// Two groups of one name, settings out of range, averages that do not pair with their parameters, a tensor with
    /// gaps, or one memory behind two tensors.
    pub fn new(groups: Vec<ParamGroup>, clip: Option<f64>) -> Result<Self> {
        if let Some(clip) = clip.filter(|clip| !(*clip > 0.0 && clip.is_finite())) {
            return Err(refused(format!("clip {clip}: must be a finite number above 0")));
        }
        let (mut names, mut memories) = (HashSet::new(), HashSet::new());
        for group in &groups {
            group.check()?;
            if !names.insert(group.name) {
                return Err(refused(format!("two groups are called {}", group.name)));
            }
            let mut written = group.params.iter().chain(group.ema.iter().flat_map(|ema| &ema.averages));
            if let Some(twice) = written.find(|param| !memories.insert(memory(&param.tensor))) {
                let message = "is in two groups, twice in one, or shares its memory with another tensor";
                return Err(refused(format!("{} {message}", twice.name)));
            }
        }
        let groups = groups.into_iter().map(Stepped::new).collect::<Result<_>>()?;
        Ok(Self { groups, clip })
    }

    /// The groups, in order.
    pub fn groups(&self) -> impl Iterator<Item = &ParamGroup> {
        self.groups.iter().map(|stepped| &stepped.group)
    }

    /// One step of every group at the schedules' values for `step`, then of every average.
    ///
    /// # Errors
    /// A weight decay that is negative or not finite, a trained parameter without a gradient (named), a gradient of another shape, dtype or device or in the memory of
    /// what it changes, or, with clipping, a gradient norm that is not finite. Nothing changes then.
    pub fn step(&mut self, gradients: &Gradients, step: u64) -> Result<StepReport> {
        self.groups().try_for_each(|group| group.check_decay(step))?;
        let updates = self.groups.iter().map(|g| g.updates(gradients)).collect::<Result<Vec<_>>>()?;
        let (grad_scale, grad_norm) = self.clipping(&updates)?;
        let taken = self.groups.iter().map(|g| Taken::new(g.taken.count + 1)).collect::<Result<Vec<_>>>()?;
        for ((stepped, updates), taken) in self.groups.iter().zip(&updates).zip(&taken) {
            stepped.apply(updates, step, taken.count, grad_scale)?;
        }
        for (stepped, taken) in self.groups.iter_mut().zip(taken) {
            stepped.taken = taken;
        }
        Ok(self.report(step, grad_norm))
    }

    /// Moments and step counts by name. They share storage with the optimizer: write or copy them before the next step.
    #[must_use]
    pub fn state(&self) -> StateDict {
        self.groups.iter().flat_map(Stepped::entries).map(|(name, tensor)| (name, tensor.clone())).collect()
    }

    /// Overwrites moments and step counts. Nothing changes on error.
    ///
    /// # Errors
    /// A missing or unknown name, another shape, a step count that is not a whole number.
    pub fn load(&mut self, state: &StateDict) -> Result<()> {
        let own = self.state();
        for (name, tensor) in &own {
            let given = state.get(name).ok_or_else(|| Error::State(format!("{name} is missing")))?;
            if given.dims() != tensor.dims() {
                let (got, expected) = (given.dims(), tensor.dims());
                return Err(Error::State(format!("{name} has shape {got:?}, expected {expected:?}")));
            }
        }
        if let Some(name) = state.keys().find(|name| !own.contains_key(*name)) {
            return Err(Error::State(format!("{name} is not part of this optimizer")));
        }
        let taken = self.groups.iter().map(|stepped| stepped.read_taken(state)).collect::<Result<Vec<_>>>()?;
        for (stepped, taken) in self.groups.iter_mut().zip(taken) {
            stepped.taken = taken;
            for (name, tensor) in stepped.moment_entries() {
                assign(tensor, &state[&name])?;
            }
        }
        Ok(())
    }

    /// The factor on every gradient, and the norm it follows from.
    fn clipping(&self, updates: &[Vec<Update<'_>>]) -> Result<(f64, Option<f64>)> {
        let Some(clip) = self.clip else { return Ok((1.0, None)) };
        let norm = global_norm(updates.iter().flatten().map(|update| update.gradient))?;
        if !norm.is_finite() {
            return Err(refused(format!("the global gradient norm is {norm}")));
        }
        Ok(((clip / (norm + CLIP_EPS)).min(1.0), Some(norm)))
    }

    fn report(&self, step: u64, grad_norm: Option<f64>) -> StepReport {
        let lrs = self.groups().map(|group| (group.name, group.lr.at(step))).collect();
        let momenta = self
            .groups()
            .filter_map(|group| group.ema.as_ref().map(|ema| (group.name, ema.momentum.at(step))))
            .collect();
        StepReport { grad_norm, lrs, momenta }
    }
}

impl Stepped {
    fn new(group: ParamGroup) -> Result<Self> {
        let moments = group
            .params
            .iter()
            .map(|param| match param.role {
                Role::Trained(_) => Ok(Some(Moments { first: zeros(&param.tensor)?, second: zeros(&param.tensor)? })),
                Role::Constant => Ok(None),
            })
            .collect::<Result<_>>()?;
        Ok(Self { group, moments, taken: Taken::new(0)? })
    }

    /// Every trained parameter with its gradient, each checked.
    fn updates<'a>(&'a self, gradients: &'a Gradients) -> Result<Vec<Update<'a>>> {
        let mut updates = Vec::with_capacity(self.moments.len());
        for (index, (param, moments)) in self.group.params.iter().zip(&self.moments).enumerate() {
            let (Role::Trained(factors), Some(moments)) = (param.role, moments) else { continue };
            let gradient =
                gradients.get(&param.tensor).ok_or_else(|| refused(format!("{} has no gradient", param.name)))?;
            if !alike(gradient, &param.tensor) {
                let (got, expected) = (described(gradient), described(&param.tensor));
                return Err(refused(format!("the gradient of {} is {got}, the parameter {expected}", param.name)));
            }
            let average = self.group.average(index).map(|average| &average.tensor);
            let mut written = [&param.tensor, &moments.first, &moments.second].into_iter().chain(average);
            if written.any(|tensor| memory(tensor) == memory(gradient)) {
                return Err(refused(format!("the gradient of {} lies in memory that the step writes", param.name)));
            }
            updates.push(Update { param, moments, factors, gradient });
        }
        Ok(updates)
    }

    fn apply(&self, updates: &[Update<'_>], step: u64, taken: u64, grad_scale: f64) -> Result<()> {
        let (group, lr, weight_decay) = (&self.group, self.group.lr.at(step), self.group.weight_decay.at(step));
        let momentum = group.ema.as_ref().map(|ema| ema.momentum.at(step));
        let mut updates = updates.iter();
        for (index, param) in group.params.iter().enumerate() {
            let average = group.average(index);
            let Role::Trained(_) = param.role else {
                average.zip(momentum).map_or(Ok(()), |(average, m)| follow(&average.tensor, &param.tensor, m))?;
                continue;
            };
            let Some(update) = updates.next() else { continue };
            let settings = AdamWStep {
                lr: lr * update.factors.lr,
                weight_decay: weight_decay * update.factors.wd,
                beta1: group.betas.0,
                beta2: group.betas.1,
                eps: group.eps,
                step: taken,
                grad_scale,
                ema_momentum: momentum,
            };
            let Moments { first, second } = update.moments;
            let average = average.map(|average| &average.tensor);
            adamw_step(&update.param.tensor, update.gradient, first, second, average, &settings)?;
        }
        Ok(())
    }

    fn moment_entries(&self) -> Vec<(String, &Tensor)> {
        let name = |kind: char, param: &Param| format!("{}.{kind}.{}", self.group.name, param.name);
        let mut entries = Vec::with_capacity(2 * self.moments.len());
        for (param, moments) in self.group.params.iter().zip(&self.moments) {
            if let Some(Moments { first, second }) = moments {
                entries.extend([(name('m', param), first), (name('v', param), second)]);
            }
        }
        entries
    }

    fn entries(&self) -> Vec<(String, &Tensor)> {
        let mut entries = self.moment_entries();
        entries.push((self.taken_name(), &self.taken.tensor));
        entries
    }

    fn taken_name(&self) -> String {
        format!("{}.step", self.group.name)
    }

    fn read_taken(&self, state: &StateDict) -> Result<Taken> {
        let name = self.taken_name();
        let bad = || Error::State(format!("{name} is not a count of steps"));
        let stored = state.get(&name).ok_or_else(bad)?.to_scalar::<i64>().map_err(|_| bad())?;
        Taken::new(u64::try_from(stored).map_err(|_| bad())?)
    }
}

fn zeros(like: &Tensor) -> Result<Tensor> {
    Ok(Tensor::zeros(like.dims(), like.dtype(), like.device())?)
}

/// The average of a constant. In this form equal tensors stay equal exactly: the teacher's frequency tables must not
/// drift from the student's by rounding, step after step.
fn follow(average: &Tensor, constant: &Tensor, momentum: f64) -> Result<()> {
    let average = average.detach();
    assign(&average, &(&average + ((constant.detach() - &average)? * (1.0 - momentum))?)?)
}
