//! Every variant trains: after one step each trained tensor has a finite, non-zero gradient, and moves.

use super::{ARCHITECTURES, IMAGES, PATCHES, SIDE, build, build_as, context, images, of, tiny};
use crate::randsac::{Architecture, Randsac, RandsacConfig};
use crate::{Method, ViewBatch, Weights};
use candle_core::{DType, Tensor};
use occlude_heads::SkipInit;
use occlude_kernels::check::{check_parameters, stir};
use occlude_masking::SegmentsKind;
use occlude_optim::Optimizer;
use occlude_random::Streams;
use occlude_vit::{Extras, Sights};

type Change = fn(&mut RandsacConfig);

/// One changed setting a row; some rows combine two.
const VARIANTS: &[(&str, Change)] = &[
    ("skip", |_| ()),
    ("plain", |c| c.architecture = Architecture::Plain),
    ("two streams", |c| c.architecture = Architecture::TwoStream),
    ("skips of all blocks", |c| c.skip_init = SkipInit::Uniform),
    ("decoder as wide as the encoder", |c| c.decoder.dim = 16),
    ("plain, as wide as the encoder", |c| (c.architecture, c.decoder.dim) = (Architecture::Plain, 16)),
    ("pixels as they are", |c| c.norm_pix = false),
    ("without the first segment", |c| c.loss_on_first = false),
    ("two streams, without the first", |c| {
        (c.architecture, c.loss_on_first) = (Architecture::TwoStream, false);
    }),
    ("raster", |c| c.segments.kind = SegmentsKind::Raster),
    ("random", |c| c.segments.kind = SegmentsKind::Random),
    ("squares", |c| c.segments.kind = SegmentsKind::Square),
    ("flat blobs", |c| c.segments.blobs = vec![4]),
    ("three levels", |c| c.segments.blobs = vec![6, 4, 2]),
    ("shuffled", |c| c.segments.shuffled = true),
    ("pixel tokens", |c| (c.encoder.patch, c.norm_pix) = (1, false)),
    ("recompute", |c| c.encoder.recompute = true),
    ("two streams, recompute", |c| {
        (c.architecture, c.encoder.recompute) = (Architecture::TwoStream, true);
    }),
];

fn variant(change: Change) -> RandsacConfig {
    let mut config = tiny();
    change(&mut config);
    config
}

fn batch(seed: u64) -> ViewBatch {
    ViewBatch { views: vec![images(seed)], ids: (0..IMAGES as u64).collect() }
}

/// The sum of all magnitudes: not finite if any entry is not (candle's `max` passes over NaN).
fn size(tensor: &Tensor) -> f64 {
    tensor.to_dtype(DType::F64).unwrap().abs().unwrap().sum_all().unwrap().to_scalar().unwrap()
}

fn square(tensor: &Tensor) -> f64 {
    tensor.to_dtype(DType::F64).unwrap().sqr().unwrap().sum_all().unwrap().to_scalar().unwrap()
}

#[test]
fn every_trained_tensor_has_a_gradient() {
    for (name, change) in VARIANTS {
        let mut method = build(&variant(*change));
        let output = method.step(&batch(1), &context(3)).unwrap();
        let mut numbers = output.losses.iter().chain(&output.metrics);
        assert!(numbers.all(|(_, number)| number.is_finite()), "{name}: {:?} {:?}", output.losses, output.metrics);
        let grouped: usize = method.groups().iter().map(|group| group.params.len()).sum();
        assert_eq!(grouped, method.trained.trained().count(), "{name}: every parameter is in one group");
        for param in method.trained.trained() {
            let gradient = output.gradients.get(&param.tensor);
            let size = size(gradient.unwrap_or_else(|| panic!("{name}: {} has no gradient", param.name)));
            assert!(size.is_finite() && size > 0.0, "{name}: gradient of {} has size {size}", param.name);
        }
        assert_eq!(output.gradients.len(), grouped, "{name}: nothing else has a gradient");
        let squares: f64 =
            method.trained.trained().map(|param| square(output.gradients.get(&param.tensor).unwrap())).sum();
        let norm = output.metrics.iter().find(|(name, _)| *name == "gradient_norm").unwrap().1;
        assert!((norm / squares.sqrt() - 1.0).abs() < 1e-6, "{name}: {norm}");
    }
}

#[test]
fn every_variant_is_stepped() {
    for (name, change) in VARIANTS {
        let mut method = build(&variant(*change));
        let before: Vec<(String, Tensor)> =
            method.state().into_iter().map(|(name, tensor)| (name, tensor.copy().unwrap())).collect();
        let mut optimizer = Optimizer::new(method.groups(), None).unwrap();
        for step in 1..4 {
            let output = method.step(&batch(step), &context(step)).unwrap();
            optimizer.step(&output.gradients, step).unwrap();
            method.after_step(&context(step)).unwrap();
        }
        let after = method.state();
        for (parameter, old) in &before {
            let moved = size(&(&after[parameter] - old).unwrap());
            assert!(moved.is_finite(), "{name}: {parameter}");
            assert_eq!(moved > 0.0, !parameter.ends_with("pos_embed"), "{name}: {parameter}");
        }
    }
}

#[test]
fn gradients_of_the_loss_are_those_of_differences() {
    for architecture in ARCHITECTURES {
        let method = build_as(&RandsacConfig { loss_on_first: false, ..of(architecture) }, DType::F64);
        stir(&method.trained, 0.2).unwrap();
        let (images, ranks) = (images(2).to_dtype(DType::F64).unwrap(), method.ranks(IMAGES, &context(1)));
        let sights = Sights::of(&ranks, PATCHES);
        let still = |name: &str| name.ends_with(".k.bias");
        check_parameters(&method.trained, still, || Ok((method.losses(&images, &sights)?.sum_all()? * 10.0)?)).unwrap();
    }
}

#[test]
fn recomputing_gives_equal_bits() {
    for architecture in ARCHITECTURES {
        let bits = |recompute: bool| -> Vec<Vec<f32>> {
            let mut config = of(architecture);
            config.encoder.recompute = recompute;
            let mut method = build(&config);
            let output = method.step(&batch(1), &context(2)).unwrap();
            let gradient = |tensor| output.gradients.get(tensor).unwrap().flatten_all().unwrap().to_vec1().unwrap();
            method.trained.trained().map(|param| gradient(&param.tensor)).collect()
        };
        assert_eq!(bits(false), bits(true), "{architecture:?}");
    }
}

#[test]
fn segments_are_drawn_anew_and_depend_on_the_step_alone() {
    let (mut a, mut b) = (build(&tiny()), build(&tiny()));
    b.step(&batch(8), &context(8)).unwrap();
    let losses = |method: &mut Randsac, step| method.step(&batch(1), &context(step)).unwrap().losses;
    assert_eq!(losses(&mut a, 9), losses(&mut b, 9));
    assert_ne!(losses(&mut a, 9), losses(&mut b, 10));
    let ranks = a.ranks(IMAGES, &context(9));
    assert_ne!(ranks[..PATCHES], ranks[PATCHES..2 * PATCHES], "each image has its own");
}

#[test]
fn the_first_segment_counts_or_not() {
    let ranks = build(&tiny()).ranks(IMAGES, &context(4));
    let step = |loss_on_first| {
        let method = build(&RandsacConfig { loss_on_first, ..tiny() });
        let losses: Vec<f32> = method.losses(&images(1), &Sights::of(&ranks, PATCHES)).unwrap().to_vec1().unwrap();
        let counted = losses.iter().zip(&ranks).filter(|(_, rank)| loss_on_first || **rank > 0);
        let counted: Vec<f64> = counted.map(|(loss, _)| f64::from(*loss)).collect();
        let expected = counted.iter().sum::<f64>() / counted.len() as f64;
        let got = method.step_with(&images(1), &ranks).unwrap().losses[0].1;
        assert!((got / expected - 1.0).abs() < 1e-5, "{got} {expected}");
        got
    };
    assert_ne!(step(true), step(false));
    // One segment an image, and it does not count: nothing to learn, and no NaN.
    let method = build(&RandsacConfig { loss_on_first: false, ..tiny() });
    let output = method.step_with(&images(1), &[0; IMAGES * PATCHES]).unwrap();
    assert_eq!(output.losses[0].1, 0.0);
    let total: f64 = method.trained.trained().map(|param| size(output.gradients.get(&param.tensor).unwrap())).sum();
    assert_eq!(total, 0.0);
}

#[test]
fn features_have_their_shapes() {
    for architecture in ARCHITECTURES {
        let method = build(&of(architecture));
        let extractor = method.extractor(Weights::Teacher);
        // Another size than the training images, not square.
        let wide = images(1).narrow(2, 0, 8).unwrap().contiguous().unwrap();
        let features = extractor.features_with(&wide, Extras { before_norm: true, class_blocks: 1 }).unwrap();
        assert_eq!((features.grid.rows, features.grid.cols), (2, 4));
        assert_eq!((features.patches.dims(), features.patches.track_op()), (&[IMAGES, 8, 16][..], false));
        assert!(features.class.is_none(), "there is no class token");
        let normed = method.network().encoder().norm().forward(&features.before_norm.unwrap()).unwrap();
        assert_eq!(normed.to_vec3::<f32>().unwrap(), features.patches.to_vec3::<f32>().unwrap());
        let mean = features.patches.mean(1).unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(features.global.unwrap().to_vec2::<f32>().unwrap(), mean);
        assert!(extractor.clusters(&features.patches).unwrap().is_none());
    }
}

#[test]
fn skips_and_pictures_are_shown() {
    for architecture in ARCHITECTURES {
        let method = build(&of(architecture));
        let matrices = method.matrices().unwrap();
        assert_eq!(matrices.len(), usize::from(architecture == Architecture::Skip));
        if let [skips] = matrices.as_slice() {
            assert_eq!((skips.name, skips.rows, skips.cols), ("skips", 2, 3));
            assert_eq!(skips.values, [0.0, 0.0, 1.0, 0.0, 0.0, 1.0]);
        }
        let mut stream = |image: usize| Streams::new(3).stream("shown", 0, image as u64);
        let painted = method.paint(&images(1), &mut stream).unwrap().unwrap();
        assert_eq!((painted.ranks.len(), painted.images.dims()), (IMAGES * PATCHES, &[IMAGES, 3, SIDE, SIDE][..]));
        assert!(size(&painted.images).is_finite());
    }
}

#[test]
fn other_batches_are_refused() {
    let mut method = build(&tiny());
    let two = ViewBatch { views: vec![images(1), images(2)], ids: vec![] };
    assert!(method.step(&two, &context(0)).unwrap_err().to_string().contains("one view of an image, got 2"));
    let small = images(1).narrow(3, 0, 8).unwrap().contiguous().unwrap();
    assert!(method.step(&ViewBatch { views: vec![small], ids: vec![] }, &context(0)).is_err(), "another size");
    assert!(method.step_with(&images(1), &[0; 7]).is_err(), "ranks of other patches");
}
