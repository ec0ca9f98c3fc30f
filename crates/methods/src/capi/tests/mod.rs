//! Golden tests against the public code, gradient flow of every variant, refusals.

mod ablations;
mod golden_evaluation;
mod golden_forward;
mod golden_steps;
mod initialisation;
mod precision;
mod settings;

use super::{Capi, CapiConfig};
use crate::Method;
use candle_core::{DType, Device, Tensor};
use occlude_golden::{Tensors, set};
use occlude_masking::{BatchMask, Grid};
use occlude_random::Streams;
use occlude_settings::{Ruler, Span};
use serde_json::Value;

/// The reference set: settings, weights and batch.
pub(super) struct Golden {
    pub(super) config: Value,
    pub(super) weights: Tensors,
    pub(super) batch: Tensors,
}

impl Golden {
    pub(super) fn find() -> Option<Self> {
        let set = set("capi");
        Some(Self { config: set.config()?, weights: set.tensors("weights")?, batch: set.tensors("batch")? })
    }

    /// The settings of the reference run.
    pub(super) fn capi_config(&self) -> CapiConfig {
        let c = &self.config;
        let int = |value: &Value| usize::try_from(value.as_u64().unwrap()).unwrap();
        let float = |value: &Value| value.as_f64().unwrap();
        let mut config = CapiConfig { student_temp: float(&c["student_temp"]), ..CapiConfig::default() };
        let encoder = &mut config.encoder;
        (encoder.dim, encoder.depth) = (int(&c["encoder"]["embed_dim"]), int(&c["encoder"]["depth"]));
        (encoder.heads, encoder.patch) = (int(&c["encoder"]["num_heads"]), int(&c["patch_size"]));
        (encoder.registers, encoder.mlp_ratio) = (int(&c["n_registers"]), float(&c["mlp_ratio"]));
        encoder.register_coords = serde_json::from_value(c["register_coordinates"].clone()).unwrap();
        encoder.scale_registers = c["scale_reg_to_visible"].as_bool().unwrap();
        encoder.drop_path = float(&c["drop_path_rate_in_step_files"]);
        let predictor = &mut config.predictor;
        (predictor.dim, predictor.depth) = (int(&c["predictor"]["embed_dim"]), int(&c["predictor"]["depth"]));
        predictor.heads = int(&c["predictor"]["num_heads"]);
        let (clustering, given) = (&mut config.clustering, &c["clustering"]);
        clustering.prototypes = int(&c["num_clusters"]);
        clustering.target_temp = float(&given["target_temp"]);
        clustering.pred_temp = float(&given["pred_temp"]);
        clustering.iterations = int(&given["n_sk_iter"]);
        clustering.bias = given["bias"].as_bool().unwrap();
        clustering.lr = float(&c["schedule"]["clustering_lr"]);
        let given = &c["clustering_optimizer"];
        clustering.weight_decay = float(&given["weight_decay"]);
        clustering.betas = (float(&given["betas"][0]), float(&given["betas"][1]));
        clustering.eps = float(&given["eps"]);
        config.mask.ratio = float(&c["mask_ratio"]);
        config.prediction.subsampling = float(&c["prediction_subsampling"]);
        let (optimizer, given, schedule) = (&mut config.optimizer, &c["optimizer"], &c["schedule"]);
        optimizer.lr = float(&schedule["lr"]);
        optimizer.warmup = Span::Steps(schedule["warmup_iters"].as_u64().unwrap());
        optimizer.truncate = float(&schedule["truncate_cos"]);
        optimizer.weight_decay = float(&given["weight_decay"]);
        optimizer.betas = (float(&given["betas"][0]), float(&given["betas"][1]));
        optimizer.eps = float(&given["eps"]);
        optimizer.patch_embed_lr = float(&given["patch_embed_lr_mult"]);
        optimizer.norm_wd = float(&given["layernorm_wd_mult"]);
        optimizer.momentum.start = float(&schedule["momentum_start"]);
        optimizer.momentum.base = float(&schedule["momentum_base"]);
        optimizer.momentum.end = float(&schedule["momentum_final"]);
        config
    }

    /// The method with the reference's start values.
    pub(super) fn capi(&self, config: &CapiConfig, dtype: DType) -> Capi {
        let image = usize::try_from(self.config["image_size"].as_u64().unwrap()).unwrap();
        let total_steps = self.config["schedule"]["total_iters"].as_u64().unwrap();
        let ruler = Ruler { steps_per_epoch: 1.0, total_steps };
        let settings = config.check(image, self.images(dtype).dim(0).unwrap(), ruler).unwrap();
        let mut capi = Capi::new(&settings, Streams::new(0), dtype, &Device::Cpu).unwrap();
        // Variants lack some of the reference's parameters (no registers).
        let known = capi.state();
        capi.load(&self.weights.clone().into_iter().filter(|(name, _)| known.contains_key(name)).collect()).unwrap();
        capi
    }

    pub(super) fn images(&self, dtype: DType) -> Tensor {
        self.batch["images"].to_dtype(dtype).unwrap()
    }

    /// The recorded mask of a step.
    pub(super) fn mask(&self, step: usize) -> BatchMask {
        let (batch, rows, cols) = self.batch[&format!("step{step}.mask")].dims3().unwrap();
        let visible = indices(&self.batch[&format!("step{step}.visible_indices")]);
        let predict = indices(&self.batch[&format!("step{step}.predict_indices")]);
        batch_mask(Grid::new(rows, cols), batch, visible, predict)
    }
}

pub(super) fn batch_mask(grid: Grid, batch: usize, visible: Vec<u32>, predict: Vec<u32>) -> BatchMask {
    let (visible_per_image, predict_per_image) = (visible.len() / batch, predict.len() / batch);
    BatchMask { grid, batch, visible, predict, visible_per_image, predict_per_image }
}

pub(super) fn indices(tensor: &Tensor) -> Vec<u32> {
    let values: Vec<i64> = tensor.flatten_all().unwrap().to_vec1().unwrap();
    values.into_iter().map(|value| u32::try_from(value).unwrap()).collect()
}

pub(super) fn scalar(tensor: &Tensor) -> f64 {
    tensor.to_dtype(DType::F64).unwrap().to_scalar().unwrap()
}

/// Fails unless `got` is within `bound` of `reference`, relative to `reference`; 0 must be met exactly.
pub(super) fn assert_number(name: &str, got: f64, reference: f64, bound: f64) {
    let difference = (got - reference).abs();
    assert!(difference <= bound * reference.abs(), "{name}: {got} against {reference}, {difference:.2e} apart");
}

/// A configuration that runs in milliseconds.
pub(super) fn tiny() -> CapiConfig {
    let mut config = CapiConfig::default();
    config.encoder.dim = 16;
    config.encoder.depth = 2;
    config.encoder.heads = 2;
    config.encoder.patch = 4;
    config.encoder.registers = 4;
    config.encoder.drop_path = 0.0;
    config.predictor.dim = 16;
    config.predictor.depth = 2;
    config.predictor.heads = 2;
    config.head.hidden = 24;
    config.head.bottleneck = 12;
    config.clustering.prototypes = 8;
    config.prediction.subsampling = 0.5;
    config.optimizer.warmup = Span::Steps(1);
    config
}

pub(super) const TINY_IMAGE: usize = 16;
pub(super) const TINY_BATCH: usize = 4;
pub(super) const TINY_RULER: Ruler = Ruler { steps_per_epoch: 10.0, total_steps: 20 };

/// The method of a tiny configuration.
pub(super) fn build(config: &CapiConfig) -> Capi {
    let settings = config.check(TINY_IMAGE, TINY_BATCH, TINY_RULER).unwrap();
    Capi::new(&settings, Streams::new(7), DType::F32, &Device::Cpu).unwrap()
}

/// A batch of pictures with something in them.
pub(super) fn pictures(batch: usize, side: usize) -> Tensor {
    let values: Vec<f32> = (0..batch * 3 * side * side)
        .map(|i| ((i as f32 * 0.37).sin() + (i as f32 * 0.011 + (i / side) as f32).cos()) * 0.8)
        .collect();
    Tensor::from_vec(values, (batch, 3, side, side), &Device::Cpu).unwrap()
}
