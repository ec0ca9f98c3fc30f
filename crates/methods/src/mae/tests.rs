//! The masked autoencoder: what it sees and is asked, gradients, resume, settings.

use super::{Mae, MaeConfig};
use crate::{BatchSize, Method, MethodConfig, StepContext, ViewBatch, Weights};
use candle_core::{DType, Device, Tensor};
use occlude_kernels::StateDict;
use occlude_kernels::check::{check_parameters, sample, stir};
use occlude_masking::Round;
use occlude_optim::Optimizer;
use occlude_random::Streams;
use occlude_settings::{Ruler, Span};
use occlude_vit::patch_pixels;

const SIDE: usize = 16;
const IMAGES: usize = 3;
const PATCHES: usize = 16;
const BATCH: BatchSize = BatchSize { micro: IMAGES, accumulate: 1 };
const RULER: Ruler = Ruler { steps_per_epoch: 10.0, total_steps: 20 };

fn tiny() -> MaeConfig {
    let mut config = MaeConfig::default();
    let encoder = &mut config.encoder;
    (encoder.dim, encoder.depth, encoder.heads, encoder.patch, encoder.mlp_ratio) = (16, 2, 2, 4, 2.0);
    (config.decoder.dim, config.decoder.depth, config.decoder.heads) = (12, 2, 2);
    config.optimizer.warmup = Span::Steps(1);
    config
}

fn build_as(config: &MaeConfig, dtype: DType) -> Mae {
    Mae::new(&config.check(SIDE, BATCH, RULER).unwrap(), Streams::new(7), dtype, &Device::Cpu).unwrap()
}

fn build(config: &MaeConfig) -> Mae {
    build_as(config, DType::F32)
}

fn images(seed: u64) -> Tensor {
    sample(seed, (IMAGES, 3, SIDE, SIDE)).unwrap().to_dtype(DType::F32).unwrap()
}

fn context(step: u64) -> StepContext<'static> {
    StepContext::single(step, Streams::new(7))
}

fn mask(mae: &Mae) -> Round {
    mae.mask(IMAGES, |image| Streams::new(1).stream("mask", 0, image as u64)).unwrap()
}

fn values(tensor: &Tensor) -> Vec<f64> {
    tensor.flatten_all().unwrap().to_dtype(DType::F64).unwrap().to_vec1().unwrap()
}

#[test]
fn gradients_are_those_of_differences() {
    let mae = build_as(&tiny(), DType::F64);
    stir(&mae.trained, 0.2).unwrap();
    let (images, mask) = (images(2).to_dtype(DType::F64).unwrap(), mask(&mae));
    let weights = sample(4, (IMAGES * PATCHES, 48)).unwrap();
    let loss = || Ok((mae.predict(&images, &mask)? * &weights)?.sum_all()?);
    check_parameters(&mae.trained, |name| name.ends_with(".k.bias"), loss).unwrap();
}

#[test]
fn every_trained_tensor_has_a_gradient_and_moves() {
    let variants: [fn(&mut MaeConfig); 4] =
        [|_| (), |c| c.norm_pix = false, |c| c.mask = 0.4, |c| c.encoder.recompute = true];
    for (number, change) in variants.into_iter().enumerate() {
        let mut config = tiny();
        change(&mut config);
        let mut mae = build(&config);
        let before = copied(mae.state());
        let mut optimizer = Optimizer::new(mae.groups(), None).unwrap();
        for step in 1..4 {
            let output = mae.step(&ViewBatch { views: vec![images(step)], ids: vec![] }, &context(step)).unwrap();
            assert!(output.losses[0].1.is_finite());
            assert_eq!(output.gradients.len(), mae.trained.trained().count());
            for param in mae.trained.trained() {
                let gradient = output.gradients.get(&param.tensor).unwrap();
                let size: f64 = values(gradient).iter().map(|slope| slope.abs()).sum();
                assert!(size.is_finite() && size > 0.0, "variant {number}: {}", param.name);
            }
            optimizer.step(&output.gradients, step).unwrap();
        }
        for (name, old) in before {
            let moved = values(&mae.state()[&name]) != values(&old);
            assert_eq!(moved, !name.ends_with("pos_embed"), "variant {number}: {name}");
        }
    }
}

/// The loss is that of hidden patches, each against its own pixels.
#[test]
fn hidden_patches_are_compared_with_their_pixels() {
    let mae = build(&MaeConfig { norm_pix: false, ..tiny() });
    let (images, mask) = (images(1), mask(&mae));
    let said = values(&mae.predict(&images, &mask).unwrap());
    let truth = values(&patch_pixels(&images, 4, None).unwrap());
    let (mut sum, mut count) = (0.0, 0);
    for (row, patch) in mask.decoded().into_iter().enumerate() {
        if mask.visible().contains(&patch) {
            continue;
        }
        for at in 0..48 {
            sum += (said[row * 48 + at] - truth[patch as usize * 48 + at]).powi(2);
            count += 1;
        }
    }
    assert_eq!(count, IMAGES * 12 * 48, "three quarters are hidden");
    let got = mae.step_with(&images, &mask).unwrap().losses[0].1;
    assert!((got / (sum / f64::from(count as u32)) - 1.0).abs() < 1e-5);
}

#[test]
fn what_is_hidden_is_not_seen() {
    let mae = build(&tiny());
    let (images, mask) = (images(1), mask(&mae));
    let hidden = mask.masked()[3] as usize;
    let (image, patch) = (hidden / PATCHES, hidden % PATCHES);
    let mut pixels: Vec<f32> = images.flatten_all().unwrap().to_vec1().unwrap();
    pixels[(image * 3 * SIDE + patch / 4 * 4) * SIDE + patch % 4 * 4] += 1.0;
    let other = Tensor::from_vec(pixels, images.shape(), images.device()).unwrap();
    assert_eq!(values(&mae.predict(&images, &mask).unwrap()), values(&mae.predict(&other, &mask).unwrap()));
    assert_ne!(mae.step_with(&images, &mask).unwrap().losses, mae.step_with(&other, &mask).unwrap().losses);
}

fn copied(state: StateDict) -> StateDict {
    state.into_iter().map(|(name, tensor)| (name, tensor.copy().unwrap())).collect()
}

#[test]
fn a_resumed_run_takes_the_same_steps() {
    fn advance(mae: &mut Mae, optimizer: &mut Optimizer, step: u64) -> f64 {
        let output = mae.step(&ViewBatch { views: vec![images(step)], ids: vec![] }, &context(step)).unwrap();
        optimizer.step(&output.gradients, step).unwrap();
        mae.after_step(&context(step)).unwrap();
        output.losses[0].1
    }
    let mut whole = build(&tiny());
    let mut optimizer = Optimizer::new(whole.groups(), None).unwrap();
    for step in 0..3 {
        advance(&mut whole, &mut optimizer, step);
    }
    let mut resumed = build(&tiny());
    resumed.load(&copied(whole.state())).unwrap();
    let mut second = Optimizer::new(resumed.groups(), None).unwrap();
    second.load(&copied(optimizer.state())).unwrap();
    for step in 3..6 {
        assert_eq!(advance(&mut whole, &mut optimizer, step), advance(&mut resumed, &mut second, step), "step {step}");
    }
    for (name, tensor) in whole.state() {
        assert_eq!(values(&tensor), values(&resumed.state()[&name]), "{name}");
    }
}

#[test]
fn a_picture_shows_every_patch_in_its_place() {
    let mae = build(&MaeConfig { norm_pix: false, ..tiny() });
    let mut stream = |image: usize| Streams::new(1).stream("mask", 0, image as u64);
    let painted = mae.paint(&images(1), &mut stream).unwrap().unwrap();
    let mask = mask(&mae);
    let shown: Vec<u32> = (0..48).map(|patch| u32::from(mask.masked().contains(&patch))).collect();
    assert_eq!(painted.ranks, shown);
    let (said, rows) = (mae.predict(&images(1), &mask).unwrap(), patch_pixels(&painted.images, 4, None).unwrap());
    for (row, patch) in mask.decoded().into_iter().enumerate() {
        assert_eq!(values(&said.get(row).unwrap()), values(&rows.get(patch as usize).unwrap()));
    }
}

#[test]
fn each_refusal_names_its_field() {
    let refused = |change: fn(&mut MaeConfig)| {
        let mut config = tiny();
        change(&mut config);
        config.check(SIDE, BATCH, RULER).unwrap_err().to_string()
    };
    assert!(refused(|c| c.mask = 1.0).starts_with("mask = 1: must be above 0, below 1, and show and hide some of 16"));
    assert!(refused(|c| c.mask = 0.99).starts_with("mask = 0.99"), "nothing would be shown");
    assert!(refused(|c| c.mask = f64::NAN).starts_with("mask = NaN"));
    assert!(refused(|c| c.decoder.heads = 5).starts_with("decoder.heads = 5: must divide"));
    assert!(refused(|c| c.optimizer.eps = 0.0).starts_with("optimizer.eps = 0: must be positive"));
}

#[test]
fn a_method_is_built_from_its_config() {
    let config = MethodConfig::Mae(Box::new(tiny()));
    let checked = config.check(SIDE, BATCH, RULER).unwrap();
    let method = checked.build(Streams::new(7), DType::F32, &Device::Cpu).unwrap();
    assert_eq!((method.name(), checked.patch_size(), config.views()), ("mae", 4, 1));
    assert_eq!(config.describe(), "MAE: an encoder of 2 blocks, 16 wide, patches of 4 pixels, 75 % hidden");
    let masks = checked.masks(2, |image| Streams::new(1).stream("shown", 0, image as u64)).unwrap();
    assert!(masks.iter().all(|mask| mask.hidden.iter().filter(|hidden| **hidden).count() == 12));
    let features = method.extractor(Weights::Student).features(&images(1)).unwrap();
    assert_eq!(features.global.unwrap().dims(), [IMAGES, 16]);
    for name in
        ["cls_token", "mask_token", "decoder_embed.weight", "decoder_blocks.1.attn.q.weight", "decoder_pred.bias"]
    {
        assert!(method.state().contains_key(name), "{name}");
    }
}
