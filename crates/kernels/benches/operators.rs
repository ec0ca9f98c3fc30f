//! Throughput of the operators at the sizes of a small vision transformer, forward and backward.
//! Elements are those of the operator's input; divide by the time for a rate.
#![allow(missing_docs, clippy::unwrap_used)]

use candle_core::{DType, Tensor, Var};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use occlude_kernels::check::sample;
use occlude_kernels::{
    Angles, Result, Visibility, attention, backward, frequency_table, gelu, linear, memory, mlp, position_encode,
    rms_norm, threads,
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
    let down = var(12, &[DIM, 4 * DIM], 0.1);
    measure(criterion, "mlp 128 to 512 to 128", rows * DIM, || mlp(&x, &up, &down));
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

/// A pre-norm block out of the operators: what a model costs per layer.
fn block(criterion: &mut Criterion) {
    let x = var(1, &[BATCH, TOKENS, DIM], 1.0);
    let square: Vec<Tensor> = (0..4).map(|i| var(10 + i, &[DIM, DIM], 0.1)).collect();
    let (up, down) = (var(20, &[4 * DIM, DIM], 0.1), var(21, &[DIM, 4 * DIM], 0.1));
    let norms = [var(22, &[DIM], 1.0), var(23, &[DIM], 1.0)];
    let angles = angles();
    measure(criterion, "block", BATCH * TOKENS * DIM, || {
        let y = rms_norm(&x, Some(&norms[0]), 1e-5)?;
        let q = position_encode(&linear(&y, &square[0], None)?, &angles, HEADS)?;
        let k = position_encode(&linear(&y, &square[1], None)?, &angles, HEADS)?;
        let v = linear(&y, &square[2], None)?;
        let x = (&x + linear(&attention(&q, &k, &v, HEADS, &Visibility::All)?, &square[3], None)?)?;
        let y = rms_norm(&x, Some(&norms[1]), 1e-5)?;
        Ok((&x + mlp(&y, &up, &down)?)?)
    });
}

criterion_group!(benches, operators, block);
criterion_main!(benches);
