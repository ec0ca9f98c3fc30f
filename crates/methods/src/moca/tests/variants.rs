//! Every variant trains: after one step each trained tensor has a finite, non-zero gradient, and moves.

use super::{TINY_BATCH, TINY_IMAGE, TINY_RULER, build, context, pictures, tiny};
use crate::moca::{GlobalToken, LocTarget, Moca, MocaConfig};
use crate::{Method, MethodConfig, ViewBatch, Weights};
use candle_core::{DType, Device, Tensor};
use occlude_heads::DecoderInput;
use occlude_masking::RoundConfig;
use occlude_optim::Optimizer;
use occlude_random::Streams;
use occlude_tokenizers::CodebookUpdate;
use occlude_vit::Extras;

type Change = fn(&mut MocaConfig);

const PIXELS: LocTarget = LocTarget::Pixels;
const EMBEDDINGS: LocTarget = LocTarget::Embeddings;

/// One changed setting a row, as in the paper's tables (some rows combine two).
const VARIANTS: &[(&str, Change)] = &[
    ("default", |_| ()),
    ("lambda: 1", |c| c.lambda = 1.0),
    ("lambda: 0.75", |c| c.lambda = 0.75),
    ("lambda: 0", |c| c.lambda = 0.0),
    ("one round", |c| c.masking.rounds.truncate(1)),
    ("one round, everything decoded", |c| c.masking.rounds = vec![RoundConfig { mask: 0.65, decode_mask: 0.0 }]),
    ("three rounds", |c| c.masking.rounds.push(RoundConfig { mask: 0.6, decode_mask: 0.4 })),
    ("independent rounds", |c| c.masking.complementary = false),
    ("global: class token", |c| c.global_token = GlobalToken::Cls),
    ("decoder: last layer", |c| c.decoder.input = DecoderInput::LastLayer),
    ("decoder: plain", |c| c.decoder.input = DecoderInput::Plain),
    ("decoder: plain, lambda 0", |c| (c.decoder.input, c.lambda) = (DecoderInput::Plain, 0.0)),
    ("decoder: condenser of the last block", |c| c.intermediate = Some(3)),
    ("decoder: as wide as the encoder", |c| c.decoder.dim = 16),
    ("two decoders", |c| c.two_decoders = true),
    ("two decoders, lambda 0", |c| (c.two_decoders, c.lambda) = (true, 0.0)),
    ("target: pixels", |c| c.loc_target = PIXELS),
    ("target: pixels, plain", |c| (c.loc_target, c.decoder.input) = (PIXELS, DecoderInput::Plain)),
    ("target: pixels, two decoders", |c| (c.loc_target, c.two_decoders) = (PIXELS, true)),
    ("target: embeddings", |c| c.loc_target = EMBEDDINGS),
    ("target: embeddings, two decoders", |c| (c.loc_target, c.two_decoders) = (EMBEDDINGS, true)),
    ("words: means", |c| c.codebook.update = CodebookUpdate::AvgToken),
    ("words: farthest points", |c| c.codebook.update = CodebookUpdate::Fps),
    ("words: farthest points, from the words too", |c| {
        (c.codebook.update, c.codebook.fps_include_codebook) = (CodebookUpdate::Fps, true);
    }),
    ("recompute", |c| c.encoder.recompute = true),
];

fn variant(change: Change) -> MocaConfig {
    let mut config = tiny();
    change(&mut config);
    config
}

fn batch() -> ViewBatch {
    let view = |seed| pictures(seed, TINY_BATCH.micro, TINY_IMAGE);
    ViewBatch { views: vec![view(1), view(2)], ids: (0..TINY_BATCH.micro as u64).collect() }
}

/// The sum of all magnitudes: not finite if any entry is not (candle's `max` passes over NaN).
fn size(tensor: &Tensor) -> f64 {
    tensor.to_dtype(DType::F64).unwrap().abs().unwrap().sum_all().unwrap().to_scalar().unwrap()
}

#[test]
fn every_trained_tensor_has_a_gradient() {
    for (name, change) in VARIANTS {
        let config = variant(*change);
        let mut moca = build(&config);
        let output = moca.step(&batch(), &context(3)).unwrap();
        let mut losses = output.losses.iter().chain(&output.metrics);
        assert!(losses.all(|(_, loss)| loss.is_finite()), "{name}: {:?}", output.losses);
        let grouped: usize = moca.groups().iter().map(|group| group.params.len()).sum();
        assert_eq!(grouped, moca.trained.trained().count(), "{name}: every parameter is in one group");
        for param in moca.trained.trained() {
            let gradient = output.gradients.get(&param.tensor);
            let size = size(gradient.unwrap_or_else(|| panic!("{name}: {} has no gradient", param.name)));
            assert!(size.is_finite(), "{name}: gradient of {} has size {size}", param.name);
            // Without an image loss its generator is there, and learns nothing.
            let idle = config.lambda == 0.0 && param.name.starts_with("encoder_pred.");
            assert_eq!(size > 0.0, !idle, "{name}: gradient of {} has size {size}", param.name);
        }
        assert_eq!(output.gradients.len(), grouped, "{name}: nothing else has a gradient");
    }
}

#[test]
fn every_variant_is_stepped_and_its_teacher_and_words_follow() {
    for (name, change) in VARIANTS {
        let config = variant(*change);
        let mut moca = build(&config);
        let copied = |moca: &Moca| -> Vec<(String, Tensor)> {
            moca.state().into_iter().map(|(name, tensor)| (name, tensor.copy().unwrap())).collect()
        };
        let before = copied(&moca);
        let mut optimizer = Optimizer::new(moca.groups(), Some(0.1)).unwrap();
        for step in 1..4 {
            moca.before_update(&context(step)).unwrap();
            let output = moca.step(&batch(), &context(step)).unwrap();
            optimizer.step(&output.gradients, step).unwrap();
            moca.after_step(&context(step)).unwrap();
        }
        let after = moca.state();
        for (parameter, old) in &before {
            let moved =
                size(&(after[parameter].to_dtype(DType::F64).unwrap() - old.to_dtype(DType::F64).unwrap()).unwrap());
            assert!(moved.is_finite(), "{name}: {parameter}");
            let fixed = ["pos_embed", ".scale"].iter().any(|suffix| parameter.ends_with(suffix));
            // Biases of a generator that learns nothing are neither pulled nor decayed, nor is its norm.
            let idle = config.lambda == 0.0 && parameter.starts_with("encoder_pred.");
            let idle = idle && ["bias", "bn.weight"].iter().any(|suffix| parameter.ends_with(suffix));
            assert_eq!(moved > 0.0, !fixed && !idle, "{name}: {parameter}");
        }
    }
}

#[test]
fn a_step_changes_nothing() {
    let mut moca = build(&tiny());
    let values = |moca: &Moca| -> Vec<(String, Vec<f64>)> {
        let of = |t: &Tensor| t.flatten_all().unwrap().to_dtype(DType::F64).unwrap().to_vec1().unwrap();
        moca.state().iter().map(|(name, tensor)| (name.clone(), of(tensor))).collect()
    };
    let before = values(&moca);
    let first = moca.step(&batch(), &context(4)).unwrap().losses;
    assert_eq!(values(&moca), before);
    assert_eq!(moca.step(&batch(), &context(4)).unwrap().losses, first, "a step can be repeated");
    moca.after_step(&context(4)).unwrap();
    let mut once = build(&tiny());
    once.step(&batch(), &context(4)).unwrap();
    once.after_step(&context(4)).unwrap();
    assert_eq!(values(&moca), values(&once), "and counts once");
}

#[test]
fn steps_depend_on_the_step_only() {
    let (mut a, mut b) = (build(&tiny()), build(&tiny()));
    b.step(&batch(), &context(8)).unwrap();
    let losses = |moca: &mut Moca, step| moca.step(&batch(), &context(step)).unwrap().losses;
    assert_eq!(losses(&mut a, 9), losses(&mut b, 9));
    assert_ne!(losses(&mut a, 9), losses(&mut b, 10), "masks are drawn anew");
}

#[test]
fn recomputing_gives_equal_bits() {
    let bits = |change: Change| -> Vec<Vec<f32>> {
        let mut moca = build(&variant(change));
        let output = moca.step(&batch(), &context(2)).unwrap();
        let gradient = |tensor| output.gradients.get(tensor).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        moca.trained.trained().map(|param| gradient(&param.tensor)).collect()
    };
    assert_eq!(bits(|_| ()), bits(|c| c.encoder.recompute = true));
}

#[test]
fn the_image_loss_crosses_views_and_the_local_loss_does_not() {
    let losses = |first: usize, second: usize, change: Change| {
        let mut moca = build(&variant(change));
        let views = [first, second].map(|seed| pictures(seed, TINY_BATCH.micro, TINY_IMAGE));
        let output = moca.step(&ViewBatch { views: views.into(), ids: Vec::new() }, &context(1)).unwrap();
        output.losses.iter().map(|(_, loss)| *loss).collect::<Vec<f64>>()
    };
    // What the second view is decides what the first is told of images, not of patches: with a mask of its own, a view's
    // local loss stays. So the sum over pairs of views is the same however they are paired.
    let sum = |pairs: [(usize, usize); 2], at: usize| -> f64 {
        pairs.iter().map(|(first, second)| losses(*first, *second, |_| ())[at]).sum()
    };
    let (straight, crossed) = ([(1, 2), (3, 4)], [(1, 4), (3, 2)]);
    assert!((sum(straight, 2) - sum(crossed, 2)).abs() < 1e-5, "local");
    assert!((sum(straight, 1) - sum(crossed, 1)).abs() > 1e-5, "image");
}

#[test]
fn features_have_their_shapes_in_every_variant() {
    for (name, change) in VARIANTS {
        let config = variant(*change);
        let moca = build(&config);
        for weights in [Weights::Student, Weights::Teacher] {
            let extractor = moca.extractor(weights);
            // Another size than the training images, not square.
            let images = pictures(1, 2, 24).narrow(3, 0, 12).unwrap().contiguous().unwrap();
            let features = extractor.features(&images).unwrap();
            assert_eq!((features.grid.rows, features.grid.cols), (6, 3), "{name}");
            assert_eq!(features.patches.dims(), [2, 18, 16], "{name}");
            assert!(!features.patches.track_op(), "{name}: tracked");
            assert!(features.before_norm.is_none() && features.class.is_none(), "{name}: not asked for");
            let asked = extractor.features_with(&images, Extras { before_norm: true, class_blocks: 2 }).unwrap();
            let class = asked.class.unwrap();
            assert_eq!(class.dims(), [2, 2, 16], "{name}");
            let last = class.narrow(1, 1, 1).unwrap().squeeze(1).unwrap().to_vec2::<f32>().unwrap();
            let global = features.global.unwrap().to_vec2::<f32>().unwrap();
            assert_eq!(last == global, config.global_token == GlobalToken::Cls, "{name}");
            let normed = moca.teacher().norm().forward(&asked.before_norm.unwrap()).unwrap();
            assert_eq!(normed.to_vec3::<f32>().unwrap(), features.patches.to_vec3::<f32>().unwrap(), "{name}");
            let clusters = extractor.clusters(&features.patches).unwrap().unwrap();
            assert_eq!(clusters.dims(), [2, 18], "{name}");
            for cluster in clusters.flatten_all().unwrap().to_vec1::<u32>().unwrap() {
                assert!((cluster as usize) < config.codebook.words);
            }
            let many = extractor.features_with(&images, Extras { before_norm: false, class_blocks: 4 });
            assert!(many.unwrap_err().to_string().contains("4 blocks: there are 3"), "{name}");
        }
    }
}

#[test]
fn the_nearest_word_is_that_of_the_largest_assignment() {
    let moca = build(&tiny());
    let images = pictures(3, 2, TINY_IMAGE);
    let extractor = moca.extractor(Weights::Teacher);
    let patches = extractor.features(&images).unwrap().patches;
    let clusters = extractor.clusters(&patches).unwrap().unwrap().to_vec2::<u32>().unwrap();
    let assigned = moca.codebook().assign(&patches).unwrap().targets.argmax(2).unwrap().to_vec2::<u32>().unwrap();
    assert_eq!(clusters, assigned);
}

#[test]
fn other_batches_are_refused() {
    let mut moca = build(&tiny());
    let mut one = batch();
    one.views.pop();
    assert!(moca.step(&one, &context(0)).unwrap_err().to_string().contains("two views of an image, got 1"));
    let view = || pictures(1, TINY_BATCH.micro, 24);
    let other = ViewBatch { views: vec![view(), view()], ids: vec![] };
    assert!(moca.step(&other, &context(0)).is_err(), "another size than the settings were checked for");
    let unequal = ViewBatch { views: vec![batch().views[0].clone(), pictures(1, 3, TINY_IMAGE)], ids: vec![] };
    assert!(moca.step(&unequal, &context(0)).is_err(), "views of different images");
}

#[test]
fn a_method_is_built_from_its_config_and_shows_its_masks() {
    let config = MethodConfig::Moca(Box::new(tiny()));
    let checked = config.check(TINY_IMAGE, TINY_BATCH, TINY_RULER).unwrap();
    let method = checked.build(Streams::new(7), DType::F32, &Device::Cpu).unwrap();
    assert_eq!((method.name(), checked.patch_size(), config.views()), (config.name(), 4, 2));
    assert_eq!(config.describe(), "MOCA: an encoder of 3 blocks, 16 wide, patches of 4 pixels, 55 % and 75 % hidden");
    let masks = checked.masks(3, |image| Streams::new(1).stream("shown", 0, image as u64)).unwrap();
    assert_eq!(masks.len(), 3);
    for mask in masks {
        // 16 patches: 7 visible, 10 in the decoder.
        assert_eq!((mask.hidden.len(), mask.hidden.iter().filter(|hidden| **hidden).count()), (16, 9));
        assert!(mask.predicted.len() == 3 && mask.predicted.iter().all(|patch| mask.hidden[*patch]));
    }
}
