//! Throughput of the operators at the sizes of a small vision transformer, forward and backward.
//! Elements are those of the operator's input; divide by the time for a rate.
#![allow(missing_docs, clippy::unwrap_used)]

use candle_core::{DType, Tensor, Var};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use occlude_kernels::check::sample;
use occlude_kernels::{
    Affine, Angles, BlockOptions, BlockWeights, NormWeights, Result, Visibility, attention, backward, block,
    frequency_table, gelu, linear, memory, position_encode, rms_norm, threads,
};
use std::hint::black_box;

const BATCH: usize = 256;
const TOKENS: usize = 20;
const DIM: usize = 128;
const HEADS: usize = 4;

fn var(seed: u64, shape: &[usize], scale: f64) -> Tensor {
    let values = (sample(seed, shape).unwrap() * scale).unwrap().to_dtype(DType::F32).unwrap();
    Var::from_tensor(&values).unwrap().into_inner()
}

fn measure(criterion: &mut Criterion, name: &str, elements: usize, op: impl Fn() -> Result<Tensor>) {
    let mut group = criterion.benchmark_group(name);
    group.throughput(Throughput::Elements(elements as u64)).sample_size(20);
    group.bench_function("forward", |b| b.iter(|| black_box(op().unwrap())));
    let both = || backward(&op()?.sum_all()?);
    group.bench_function("forward and backward", |b| b.iter(|| black_box(both().unwrap())));
    group.finish();
}

fn operators(criterion: &mut Criterion) {
    // As the program does: without the two, page faults and candle's spinning threads are most of what is measured.
    memory::keep_freed();
    threads::init(std::thread::available_parallelism().unwrap().get()).unwrap();
    let rows = BATCH * TOKENS;
    let x = var(1, &[BATCH, TOKENS, DIM], 1.0);
    let wide = var(2, &[BATCH, TOKENS, 4 * DIM], 1.0);
    let (square, up) = (var(3, &[DIM, DIM], 0.1), var(4, &[4 * DIM, DIM], 0.1));
    measure(criterion, "linear 128 to 128", rows * DIM, || linear(&x, &square, None));
    measure(criterion, "linear 128 to 512", rows * DIM, || linear(&x, &up, None));
    measure(criterion, "gelu", rows * 4 * DIM, || gelu(&wide));
    let weight = var(5, &[DIM], 1.0);
    measure(criterion, "rms_norm", rows * DIM, || rms_norm(&x, Some(&weight), 1e-5));
    let (q, k) = (var(6, &[BATCH, TOKENS, DIM], 1.0), var(7, &[BATCH, TOKENS, DIM], 1.0));
    measure(criterion, "attention", rows * DIM, || attention(&q, &k, &x, HEADS, &Visibility::All));
    let many = |seed| var(seed, &[8, 200, 384], 1.0);
    let (q, k, v) = (many(8), many(9), many(10));
    measure(criterion, "attention of 200 tokens", 1600 * 384, || attention(&q, &k, &v, 6, &Visibility::All));
    let angles = angles();
    measure(criterion, "position_encode", rows * DIM, || position_encode(&x, &angles, HEADS));
}

fn angles() -> Angles {
    let coords = sample(11, (BATCH, TOKENS, 2)).unwrap().to_dtype(DType::F32).unwrap();
    let table = frequency_table(DIM / HEADS).unwrap();
    let table = Tensor::from_vec(table, (2, DIM / HEADS), coords.device()).unwrap().to_dtype(DType::F32).unwrap();
    Angles::new(&coords, &table).unwrap()
}

/// A pre-norm block in one operator, and out of the others: what a model costs per layer.
fn blocks(criterion: &mut Criterion) {
    let x = var(1, &[BATCH, TOKENS, DIM], 1.0);
    let norm = |seed| NormWeights { weight: var(seed, &[DIM], 1.0), bias: None, centred: false, eps: 1e-5 };
    let map = |seed, out, inner| Affine { weight: var(seed, &[out, inner], 0.1), bias: None };
    let weights = BlockWeights {
        norm1: norm(22),
        queries: map(10, DIM, DIM),
        keys: map(11, DIM, DIM),
        values: map(12, DIM, DIM),
        projection: map(13, DIM, DIM),
        norm2: norm(23),
        expand: map(20, 4 * DIM, DIM),
        contract: map(21, DIM, 4 * DIM),
    };
    let angles = angles();
    let options = BlockOptions { angles: Some((angles.clone(), angles.clone())), ..BlockOptions::new(HEADS) };
    let elements = BATCH * TOKENS * DIM;
    measure(criterion, "block", elements, || block(&x, None, &weights, options.clone()));
    measure(criterion, "block of single operators", elements, || {
        let y = rms_norm(&x, Some(&weights.norm1.weight), weights.norm1.eps)?;
        let q = position_encode(&linear(&y, &weights.queries.weight, None)?, &angles, HEADS)?;
        let k = position_encode(&linear(&y, &weights.keys.weight, None)?, &angles, HEADS)?;
        let v = linear(&y, &weights.values.weight, None)?;
        let attended = attention(&q, &k, &v, HEADS, &Visibility::All)?;
        let x = (&x + linear(&attended, &weights.projection.weight, None)?)?;
        let y = rms_norm(&x, Some(&weights.norm2.weight), weights.norm2.eps)?;
        let hidden = gelu(&linear(&y, &weights.expand.weight, None)?)?;
        Ok((&x + linear(&hidden, &weights.contract.weight, None)?)?)
    });
}

criterion_group!(benches, operators, blocks);
criterion_main!(benches);
