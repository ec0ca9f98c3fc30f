//! What the micro-batches of a step, on all ranks, give together.

use crate::Result;
use candle_core::{Device, Tensor};
use occlude_distributed::Collective;
use occlude_kernels::{Error, Gradients, Role};
use occlude_methods::StepOutput;
use occlude_optim::Optimizer;

/// Means over the micro-batches of a step. With one micro-batch its output stays as it is, to the last bit.
#[derive(Debug)]
pub(crate) struct Total {
    micros: usize,
    losses: Sums,
    metrics: Sums,
    /// Of gradients, each over the number of micro-batches.
    gradients: Gradients,
}

/// Sum and number of the values of each name, in the order of their first coming.
#[derive(Debug, Default)]
struct Sums(Vec<(&'static str, f64, usize)>);

impl Sums {
    fn add(&mut self, values: &[(&'static str, f64)]) {
        for &(name, value) in values {
            match self.0.iter_mut().find(|(known, ..)| *known == name) {
                Some((_, sum, count)) => (*sum, *count) = (*sum + value, *count + 1),
                None => self.0.push((name, value, 1)),
            }
        }
    }

    /// Means over the micro-batches that had the name.
    fn means(self) -> Vec<(&'static str, f64)> {
        self.0.into_iter().map(|(name, sum, count)| (name, sum / count as f64)).collect()
    }
}

impl Total {
    /// For a step of `micros` micro-batches.
    pub(crate) fn new(micros: usize) -> Self {
        Self { micros, losses: Sums::default(), metrics: Sums::default(), gradients: Gradients::default() }
    }

    /// Adds what a micro-batch gave.
    ///
    /// # Errors
    /// A trained parameter without a gradient, named: its mean would not be one.
    pub(crate) fn add(&mut self, output: StepOutput, optimizer: &Optimizer) -> Result<()> {
        self.losses.add(&output.losses);
        self.metrics.add(&output.metrics);
        if self.micros == 1 {
            self.gradients = output.gradients;
            return Ok(());
        }
        let weight = 1.0 / self.micros as f64;
        for (tensor, gradient) in trained(optimizer, &output.gradients) {
            self.gradients.accumulate(tensor.id(), (gradient? * weight)?)?;
        }
        Ok(())
    }

    /// The means over all micro-batches and all ranks: the same on every rank.
    ///
    /// # Errors
    /// A trained parameter without a gradient, ranks that do not agree on names and shapes, or a lost rank.
    pub(crate) fn over_ranks(self, collective: &dyn Collective, optimizer: &Optimizer) -> Result<StepOutput> {
        let (losses, metrics) = (self.losses.means(), self.metrics.means());
        if collective.size() == 1 {
            return Ok(StepOutput { losses, metrics, gradients: self.gradients });
        }
        let mut gradients = Gradients::default();
        for (tensor, gradient) in trained(optimizer, &self.gradients) {
            gradients.accumulate(tensor.id(), collective.all_reduce_mean(gradient?)?)?;
        }
        let (losses, metrics) = (mean_numbers(collective, losses)?, mean_numbers(collective, metrics)?);
        Ok(StepOutput { losses, metrics, gradients })
    }
}

/// Every trained parameter, in the order of the groups, with its gradient.
fn trained<'a>(
    optimizer: &'a Optimizer,
    gradients: &'a Gradients,
) -> impl Iterator<Item = (&'a Tensor, Result<&'a Tensor, Error>)> {
    let params = optimizer.groups().flat_map(|group| &group.params);
    params.filter(|param| matches!(param.role, Role::Trained(_))).map(move |param| {
        let missing = || Error::argument("trainer", format!("{} has no gradient", param.name));
        (&param.tensor, gradients.get(&param.tensor).ok_or_else(missing))
    })
}

fn mean_numbers(collective: &dyn Collective, numbers: Vec<(&'static str, f64)>) -> Result<Vec<(&'static str, f64)>> {
    let (names, values): (Vec<_>, Vec<_>) = numbers.into_iter().unzip();
    let means = collective.all_reduce_mean(&Tensor::new(values, &Device::Cpu)?)?.to_vec1::<f64>()?;
    Ok(names.into_iter().zip(means).collect())
}
