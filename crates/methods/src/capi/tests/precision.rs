//! What rounding the operands of products does to the gradients of a whole step.

use super::{TINY_BATCH, TINY_IMAGE, TINY_RULER, pictures, tiny};
use crate::capi::Capi;
use crate::{Method, StepContext, ViewBatch};
use candle_core::{DType, Device};
use occlude_kernels::PrecisionScope;
use occlude_kernels::tiles::{Path, Split, Tiles};
use occlude_random::Streams;

/// The gradients of all trained tensors of one step, in one row.
fn gradients(dtype: DType, tiles: Option<Tiles>) -> Vec<f64> {
    let mut config = tiny();
    (config.encoder.dim, config.predictor.dim, config.clustering.prototypes) = (64, 64, 40);
    let settings = config.check(TINY_IMAGE, TINY_BATCH, TINY_RULER).unwrap();
    let mut capi = Capi::new(&settings, Streams::new(7), dtype, &Device::Cpu).unwrap();
    let views = vec![pictures(TINY_BATCH, TINY_IMAGE).to_dtype(dtype).unwrap()];
    let batch = ViewBatch { views, ids: (0..TINY_BATCH as u64).collect() };
    let _scope = PrecisionScope::of(tiles);
    let output = capi.step(&batch, &StepContext::single(3, Streams::new(7))).unwrap();
    let params: Vec<_> = capi.groups().into_iter().flat_map(|group| group.params).collect();
    let of = params.iter().filter_map(|param| output.gradients.get(&param.tensor));
    of.flat_map(|g| g.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap()).collect()
}

#[test]
fn gradients_of_a_step_in_two_parts_are_near_f64() {
    let exact = gradients(DType::F64, None);
    let norm = exact.iter().map(|x| x * x).sum::<f64>().sqrt();
    let apart = |dtype, tiles| {
        let got = gradients(dtype, tiles);
        assert_eq!(got.len(), exact.len());
        got.iter().zip(&exact).map(|(a, b)| (a - b).powi(2)).sum::<f64>().sqrt() / norm
    };
    let native = apart(DType::F32, None);
    assert!(native < 1e-5, "native f32: {native:e}");
    for path in Path::available() {
        let two = apart(DType::F32, Some(Tiles::new(path, Split::Two).unwrap()));
        assert!(two < 5e-5, "{path:?}, two parts: {two:e}");
        let one = apart(DType::F32, Some(Tiles::new(path, Split::One).unwrap()));
        assert!(one > two && one < 5e-2, "{path:?}, bf16: {one:e}, two parts: {two:e}");
    }
}
