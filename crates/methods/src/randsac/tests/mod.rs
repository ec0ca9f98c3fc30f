//! Tests of RandSAC, and what they share: a configuration that runs in milliseconds.

mod golden;
mod sight;
mod state;
mod variants;

use super::{Architecture, Randsac, RandsacConfig};
use crate::{BatchSize, StepContext};
use candle_core::{DType, Device, Tensor};
use occlude_kernels::check::sample;
use occlude_random::Streams;
use occlude_settings::{Ruler, Span};

const SIDE: usize = 16;
const PATCHES: usize = 16;
const IMAGES: usize = 3;
const BATCH: BatchSize = BatchSize { micro: IMAGES, accumulate: 1 };
const RULER: Ruler = Ruler { steps_per_epoch: 10.0, total_steps: 20 };

fn tiny() -> RandsacConfig {
    let mut config = RandsacConfig::default();
    let encoder = &mut config.encoder;
    (encoder.dim, encoder.depth, encoder.heads, encoder.patch, encoder.mlp_ratio) = (16, 3, 2, 4, 2.0);
    (config.decoder.dim, config.decoder.depth, config.decoder.heads) = (12, 2, 2);
    config.segments.blobs = vec![5, 3];
    config.optimizer.warmup = Span::Steps(1);
    config
}

fn of(architecture: Architecture) -> RandsacConfig {
    RandsacConfig { architecture, ..tiny() }
}

fn build_as(config: &RandsacConfig, dtype: DType) -> Randsac {
    let settings = config.check(SIDE, BATCH, RULER).unwrap();
    Randsac::new(&settings, Streams::new(7), dtype, &Device::Cpu).unwrap()
}

fn build(config: &RandsacConfig) -> Randsac {
    build_as(config, DType::F32)
}

fn images(seed: u64) -> Tensor {
    sample(seed, (IMAGES, 3, SIDE, SIDE)).unwrap().to_dtype(DType::F32).unwrap()
}

fn context(step: u64) -> StepContext<'static> {
    StepContext::single(step, Streams::new(7))
}

const ARCHITECTURES: [Architecture; 3] = [Architecture::Plain, Architecture::Skip, Architecture::TwoStream];
