//! Every variant trains: after one step each trained tensor has a finite, non-zero gradient, and moves.

use super::{TINY_BATCH, TINY_IMAGE, TINY_RULER, build, pictures, tiny};
use crate::capi::{Capi, CapiConfig, LossKind};
use crate::{BatchSize, Method, MethodConfig, StepContext, ViewBatch, Weights};
use candle_core::{DType, Tensor};
use occlude_golden::assert_close;
use occlude_heads::{HeadKind, PredictorKind};
use occlude_kernels::Role;
use occlude_masking::MaskerKind;
use occlude_optim::Optimizer;
use occlude_random::Streams;
use occlude_tokenizers::SinkhornKind;
use occlude_vit::{DropPathKind, Extras, PositionKind, RegisterCoords, final_norm};

type Change = fn(&mut CapiConfig);

/// One changed setting a row, as in the paper's tables (some rows combine two).
const VARIANTS: &[(&str, Change)] = &[
    ("default", |_| ()),
    ("mask: random", |c| c.mask.kind = MaskerKind::Random),
    ("mask: block", |c| c.mask.kind = MaskerKind::Block),
    ("mask: no roll", |c| c.mask.roll = false),
    ("no registers", |c| c.encoder.registers = 0),
    ("registers at zero", |c| c.encoder.register_coords = RegisterCoords::Zeros),
    ("registers unscaled", |c| c.encoder.scale_registers = false),
    ("predictor: wider", |c| c.predictor.dim = 24),
    ("predictor: self", |c| c.predictor.kind = PredictorKind::SelfAttention),
    ("predictor: self, narrower", |c| {
        (c.predictor.kind, c.predictor.dim) = (PredictorKind::SelfAttention, 8);
    }),
    ("predictor: self, sampled only", |c| {
        (c.predictor.kind, c.predictor.only_sampled) = (PredictorKind::SelfAttention, true);
    }),
    ("predictor: fused", |c| c.predictor.kind = PredictorKind::Fused),
    ("Sinkhorn: standard", |c| c.clustering.sinkhorn = SinkhornKind::Standard),
    ("clustering without bias", |c| c.clustering.bias = false),
    ("position: learnable", |c| c.encoder.position = PositionKind::Learnable),
    ("position: learnable, self", |c| {
        (c.encoder.position, c.predictor.kind) = (PositionKind::Learnable, PredictorKind::SelfAttention);
    }),
    ("position: learnable, fused", |c| {
        (c.encoder.position, c.predictor.kind) = (PositionKind::Learnable, PredictorKind::Fused);
    }),
    ("loss: I-JEPA", |c| c.loss = LossKind::Ijepa),
    ("loss: I-JEPA, other width, normed", |c| {
        (c.loss, c.predictor.dim, c.normalize_targets) = (LossKind::Ijepa, 24, true);
    }),
    ("loss: iBOT", |c| c.loss = LossKind::Ibot),
    ("loss: iBOT, linear head", |c| (c.loss, c.head.kind) = (LossKind::Ibot, Some(HeadKind::Linear))),
    ("head: MLP", |c| c.head.kind = Some(HeadKind::Mlp)),
    ("drop path: subset", |c| c.encoder.drop_path = 0.3),
    ("drop path: naive", |c| {
        (c.encoder.drop_path, c.encoder.drop_path_kind) = (0.3, DropPathKind::Naive);
    }),
];

fn variant(change: Change) -> CapiConfig {
    let mut config = tiny();
    change(&mut config);
    config
}

fn context(step: u64) -> StepContext<'static> {
    StepContext::single(step, Streams::new(7))
}

fn batch() -> ViewBatch {
    ViewBatch { views: vec![pictures(TINY_BATCH, TINY_IMAGE)], ids: (0..TINY_BATCH as u64).collect() }
}

/// The sum of all magnitudes: not finite if any entry is not (candle's `max` passes over NaN).
fn size(tensor: &Tensor) -> f64 {
    tensor.to_dtype(DType::F64).unwrap().abs().unwrap().sum_all().unwrap().to_scalar().unwrap()
}

#[test]
fn every_trained_tensor_has_a_gradient() {
    for (name, change) in VARIANTS {
        let mut capi = build(&variant(*change));
        let output = capi.step(&batch(), &context(3)).unwrap();
        assert!(output.losses.iter().all(|(_, loss)| loss.is_finite()), "{name}: {:?}", output.losses);
        for param in capi.groups().iter().flat_map(|group| &group.params) {
            let gradient = output.gradients.get(&param.tensor);
            if param.role == Role::Constant {
                assert!(gradient.is_none(), "{name}: {} is constant", param.name);
                continue;
            }
            let gradient = gradient.unwrap_or_else(|| panic!("{name}: {} has no gradient", param.name));
            let size = size(gradient);
            assert!(size.is_finite() && size > 0.0, "{name}: gradient of {} has size {size}", param.name);
        }
    }
}

#[test]
fn every_variant_is_stepped_and_its_teacher_follows() {
    for (name, change) in VARIANTS {
        let mut capi = build(&variant(*change));
        let before = capi.state();
        let before: Vec<(String, Tensor)> = before.into_iter().map(|(n, t)| (n, t.copy().unwrap())).collect();
        let mut optimizer = Optimizer::new(capi.groups(), None).unwrap();
        for step in 1..3 {
            let output = capi.step(&batch(), &context(step)).unwrap();
            optimizer.step(&output.gradients, step).unwrap();
            capi.after_step(&context(step)).unwrap();
        }
        let after = capi.state();
        for (parameter, old) in &before {
            let moved = size(&(&after[parameter] - old).unwrap());
            assert!(moved.is_finite(), "{name}: {parameter}");
            assert_eq!(moved > 0.0, !parameter.ends_with("rope.freqs"), "{name}: {parameter}");
        }
    }
}

#[test]
fn steps_depend_on_the_step_only() {
    let config = variant(|c| c.encoder.drop_path = 0.3);
    let (mut a, mut b) = (build(&config), build(&config));
    b.step(&batch(), &context(8)).unwrap();
    let losses = |capi: &mut Capi, step| capi.step(&batch(), &context(step)).unwrap().losses;
    assert_eq!(losses(&mut a, 9), losses(&mut b, 9));
    assert_ne!(losses(&mut a, 9), losses(&mut b, 10), "masks are drawn anew");
}

#[test]
fn the_fused_and_the_joint_predictor_see_no_hidden_patch() {
    for kind in [PredictorKind::Fused, PredictorKind::SelfAttention, PredictorKind::Cross] {
        let mut config = tiny();
        config.predictor.kind = kind;
        let capi = build(&config);
        let mask = capi.masks(TINY_BATCH, &context(0)).unwrap();
        let images = pictures(TINY_BATCH, TINY_IMAGE);
        let patch = config.encoder.patch;
        // The same picture with every hidden patch blackened.
        let grid = mask.grid;
        let keep: Vec<f32> = (0..TINY_BATCH * TINY_IMAGE * TINY_IMAGE)
            .map(|at| {
                let (image, row, col) = (at / (TINY_IMAGE * TINY_IMAGE), at / TINY_IMAGE % TINY_IMAGE, at % TINY_IMAGE);
                let index = image * grid.count() + row / patch * grid.cols + col / patch;
                f32::from(u8::from(mask.visible.binary_search(&(index as u32)).is_ok()))
            })
            .collect();
        let keep = Tensor::from_vec(keep, (TINY_BATCH, 1, TINY_IMAGE, TINY_IMAGE), images.device()).unwrap();
        let blackened = images.broadcast_mul(&keep).unwrap();
        let predict = |images: &Tensor| {
            let out = capi.student().predict(images, &mask, &mut occlude_vit::DropPath::off()).unwrap();
            out.to_vec2::<f32>().unwrap()
        };
        assert_eq!(predict(&images), predict(&blackened), "{kind:?}");
    }
}

#[test]
fn predictions_follow_the_order_they_are_asked_in() {
    for only_sampled in [false, true] {
        let mut config = tiny();
        (config.predictor.kind, config.predictor.only_sampled) = (PredictorKind::SelfAttention, only_sampled);
        let capi = build(&config);
        let mask = capi.masks(TINY_BATCH, &context(0)).unwrap();
        let mut reversed = mask.clone();
        for image in reversed.predict.chunks_mut(mask.predict_per_image) {
            image.reverse();
        }
        let images = pictures(TINY_BATCH, TINY_IMAGE);
        let rows = |mask| {
            let out = capi.student().predict(&images, mask, &mut occlude_vit::DropPath::off()).unwrap();
            out.to_vec2::<f32>().unwrap()
        };
        let (straight, turned) = (rows(&mask), rows(&reversed));
        for (image, place) in (0..TINY_BATCH).flat_map(|i| (0..mask.predict_per_image).map(move |p| (i, p))) {
            let first = image * mask.predict_per_image;
            let (a, b) = (&straight[first + place], &turned[first + mask.predict_per_image - 1 - place]);
            assert!(a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-4), "image {image}, place {place}");
        }
    }
}

#[test]
fn features_have_their_shapes_in_every_variant() {
    for (name, change) in VARIANTS {
        let config = variant(*change);
        let capi = build(&config);
        for weights in [Weights::Student, Weights::Teacher] {
            let extractor = capi.extractor(weights);
            // Another size than the training images, not square.
            let images = pictures(2, 24).narrow(3, 0, 12).unwrap().contiguous().unwrap();
            let features = extractor.features(&images).unwrap();
            let width =
                if config.predictor.kind == PredictorKind::Fused { config.encoder.dim } else { config.predictor.dim };
            assert_eq!((features.grid.rows, features.grid.cols), (6, 3), "{name}");
            assert_eq!(features.patches.dims(), [2, 18, config.encoder.dim], "{name}");
            assert_eq!(features.global.as_ref().unwrap().dims(), [2, width], "{name}");
            assert_eq!(features.registers.is_some(), config.encoder.registers > 0, "{name}");
            assert!(!features.patches.track_op() && !features.global.unwrap().track_op(), "{name}: tracked");
            assert!(features.before_norm.is_none(), "{name}: not asked for");
            let extras = Extras { before_norm: true, class_blocks: 1 };
            let asked = extractor.features_with(&images, extras).unwrap();
            let normed = final_norm(&asked.before_norm.unwrap()).unwrap();
            assert_close(name, &normed, &features.patches, 1e-6);
            assert!(asked.class.is_none(), "{name}: has no class token");
            let clusters = extractor.clusters(&features.patches).unwrap();
            assert_eq!(clusters.is_some(), config.loss == LossKind::Clustering, "{name}");
            for cluster in clusters.iter().flat_map(|c| c.flatten_all().unwrap().to_vec1::<u32>().unwrap()) {
                assert!((cluster as usize) < config.clustering.prototypes);
            }
        }
    }
}

#[test]
fn a_state_goes_out_and_in() {
    let config = tiny();
    let (mut a, b) = (build(&config), build(&variant(|c| c.student_temp = 0.2)));
    let mut state = b.state();
    state.insert(
        "student.head.last_layer.weight_g".into(),
        pictures(1, 16).flatten_all().unwrap().narrow(0, 0, 8).unwrap().reshape((8, 1)).unwrap(),
    );
    a.load(&state).unwrap();
    assert_eq!(
        a.state()["student.head.last_layer.weight_g"].to_vec2::<f32>().unwrap(),
        state["student.head.last_layer.weight_g"].to_vec2::<f32>().unwrap()
    );
    let before = a.state()["student.backbone.mask_token"].to_vec2::<f32>().unwrap();
    let mut bad = state.clone();
    bad.remove("teacher.head.layer.bias");
    bad.insert(
        "student.backbone.mask_token".into(),
        Tensor::zeros((1, 16), DType::F32, &candle_core::Device::Cpu).unwrap(),
    );
    assert!(a.load(&bad).unwrap_err().to_string().contains("teacher.head.layer.bias is missing"));
    assert_eq!(a.state()["student.backbone.mask_token"].to_vec2::<f32>().unwrap(), before, "nothing has changed");
    let mut extra = state;
    extra.insert("student.surplus".into(), Tensor::zeros(1, DType::F32, &candle_core::Device::Cpu).unwrap());
    assert!(a.load(&extra).unwrap_err().to_string().contains("student.surplus"));
}

#[test]
fn more_than_one_view_is_refused() {
    let mut capi = build(&tiny());
    let mut two = batch();
    two.views.push(two.views[0].clone());
    assert!(capi.step(&two, &context(0)).unwrap_err().to_string().contains("one view"));
    let other = ViewBatch { views: vec![pictures(TINY_BATCH, 24)], ids: vec![] };
    assert!(capi.step(&other, &context(0)).is_err(), "another size than the settings were checked for");
}

#[test]
fn a_method_is_built_from_its_config() {
    let config = MethodConfig::Capi(Box::new(tiny()));
    let checked = config.check(TINY_IMAGE, BatchSize { micro: TINY_BATCH, accumulate: 1 }, TINY_RULER).unwrap();
    let method = checked.build(Streams::new(7), DType::F32, &candle_core::Device::Cpu).unwrap();
    assert_eq!((method.name(), checked.patch_size()), (config.name(), 4));
}
