//! Time and memory of one training step.

use crate::machine::{cpu_seconds, peak_memory_mib};
use anyhow::{Context, Result, bail};
use candle_core::{DType, Device, Tensor};
use occlude_methods::capi::CapiConfig;
use occlude_methods::{Method, MethodConfig, StepContext, ViewBatch};
use occlude_optim::Optimizer;
use occlude_random::Streams;
use occlude_settings::Ruler;
use rand::Rng;
use std::time::Instant;

/// Side of the images in pixels.
const SIDE: usize = 224;
/// Images of a step.
const BATCH: usize = 8;

/// A benchmark of whole training steps: forward, backward, optimizer, moving average. Images are made beforehand.
#[derive(Clone, Debug)]
pub struct StepBench {
    /// Which method.
    pub method: String,
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
        let mut sorted = self.seconds.clone();
        sorted.sort_by(f64::total_cmp);
        sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
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
        occlude_kernels::memory::keep_freed();
        occlude_kernels::threads::init(self.threads)?;
        let (device, streams) = (Device::Cpu, Streams::new(0));
        let total = (self.warmup + self.steps) as u64;
        let ruler = Ruler { steps_per_epoch: 1000.0, total_steps: total };
        let checked = settings(&self.method)?.check(SIDE, BATCH, total, ruler)?;
        let mut method = checked.build(streams, DType::F32, &device)?;
        let mut optimizer = Optimizer::new(method.groups(), None)?;
        let trained = optimizer.groups().flat_map(|group| &group.params).map(|param| param.tensor.elem_count()).sum();
        let batch = images(streams, &device)?;
        let mut seconds = Vec::with_capacity(self.steps);
        let mut cpu = cpu_seconds();
        for step in 0..total {
            if step == self.warmup as u64 {
                cpu = cpu_seconds();
            }
            let started = Instant::now();
            one(&mut *method, &mut optimizer, &batch, StepContext { step, streams })?;
            if step >= self.warmup as u64 {
                seconds.push(started.elapsed().as_secs_f64());
            }
        }
        let spent = cpu_seconds().zip(cpu).map(|(end, start)| (end - start) / self.steps as f64);
        Ok(Figures { seconds, cpu_per_step: spent, peak_memory_mib: peak_memory_mib(), parameters: trained })
    }
}

fn one(method: &mut dyn Method, optimizer: &mut Optimizer, batch: &ViewBatch, ctx: StepContext) -> Result<()> {
    let output = method.step(batch, &ctx)?;
    optimizer.step(&output.gradients, ctx.step).with_context(|| format!("step {}", ctx.step))?;
    Ok(method.after_step(&ctx)?)
}

/// Images of noise: what a step costs does not depend on what they show.  [batch, 3, side, side]
fn images(streams: Streams, device: &Device) -> Result<ViewBatch> {
    let mut stream = streams.stream("bench/images", 0, 0);
    let values: Vec<f32> = (0..BATCH * 3 * SIDE * SIDE).map(|_| stream.random::<f32>() * 4.0 - 2.0).collect();
    let views = vec![Tensor::from_vec(values, (BATCH, 3, SIDE, SIDE), device)?];
    Ok(ViewBatch { views, ids: (0..BATCH as u64).collect() })
}

/// Dim 384, depth 12, 6 heads, predictor depth 6, patch 16, 65 % hidden, 7 predictions, 16 registers, 16384 prototypes,
/// drop path 0.2.
fn settings(method: &str) -> Result<MethodConfig> {
    if method != "capi" {
        bail!("--method {method}: there is `capi`");
    }
    let mut capi = CapiConfig::default();
    (capi.encoder.dim, capi.encoder.depth, capi.encoder.heads, capi.encoder.patch) = (384, 12, 6, 16);
    (capi.predictor.dim, capi.predictor.depth, capi.predictor.heads) = (384, 6, 6);
    capi.prediction.count = Some(7);
    Ok(MethodConfig::Capi(Box::new(capi)))
}

#[cfg(test)]
mod tests {
    use super::{BATCH, Figures, SIDE, settings};
    use occlude_settings::Ruler;

    #[test]
    fn the_setting_is_the_one_that_is_stated() {
        let ruler = Ruler { steps_per_epoch: 1000.0, total_steps: 10 };
        let checked = settings("capi").unwrap().check(SIDE, BATCH, 10, ruler).unwrap();
        assert_eq!(checked.patch_size(), 16);
        let occlude_methods::MethodConfig::Capi(capi) = settings("capi").unwrap();
        assert_eq!((capi.encoder.registers, capi.encoder.drop_path, capi.mask.ratio), (16, 0.2, 0.65));
        assert_eq!(capi.clustering.prototypes, 16384);
        assert!(settings("abacus").unwrap_err().to_string().contains("capi"));
    }

    #[test]
    fn the_median_is_the_middle() {
        let figures =
            Figures { seconds: vec![3.0, 1.0, 2.0], cpu_per_step: None, peak_memory_mib: None, parameters: 1 };
        assert_eq!((figures.median(), figures.fastest()), (2.0, 1.0));
    }
}
