//! Every operator at the sizes of a small vision transformer, forward and backward, beside what the machine gives at
//! most: `cargo bench -p occlude-kernels`, or a part of it: `cargo bench -p occlude-kernels --bench operators -- linear`.
//!
//! The table at the end counts multiply-adds where products are the work, else bytes: every input read once and every
//! output written once, whatever the operator really moves. A share is that of the f32 ceiling in every precision, so bf16
//! may lie above 100 %.
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout)]

mod memory;
mod products;
mod table;

use candle_core::{DType, Tensor, Var};
use criterion::Criterion;
use occlude_kernels::check::sample;
use occlude_kernels::{Angles, frequency_table, threads};
use std::time::Duration;

fn main() {
    // As the program does: without the two, page faults and candle's spinning threads are most of what is measured.
    occlude_kernels::memory::keep_freed();
    threads::init(std::thread::available_parallelism().unwrap().get()).unwrap();
    let criterion = Criterion::default().sample_size(10).warm_up_time(Duration::from_millis(200));
    let mut criterion = criterion.measurement_time(Duration::from_millis(700)).configure_from_args();
    let mut table = table::Table::new(&mut criterion);
    products::all(&mut table);
    memory::all(&mut table);
    print!("{}", table.text());
    criterion.final_summary();
}

/// Numbers without a gradient.
fn plain(seed: u64, shape: &[usize], scale: f64) -> Tensor {
    (sample(seed, shape).unwrap() * scale).unwrap().to_dtype(DType::F32).unwrap()
}

/// Numbers whose gradient is asked for.
fn var(seed: u64, shape: &[usize], scale: f64) -> Tensor {
    Var::from_tensor(&plain(seed, shape, scale)).unwrap().into_inner()
}

/// Angles of a batch whose tokens lie at places of their own.
fn angles(batch: usize, tokens: usize, head_size: usize) -> Angles {
    let coords = plain(11, &[batch, tokens, 2], 1.0);
    let table = frequency_table(head_size).unwrap();
    let table = Tensor::from_vec(table, (2, head_size), coords.device()).unwrap().to_dtype(DType::F32).unwrap();
    Angles::new(&coords, &table).unwrap()
}
