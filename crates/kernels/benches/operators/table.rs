//! Criterion's measurement of an operator, kept for a table beside the ceilings of the same run.

use candle_core::Tensor;
use criterion::{Criterion, Throughput};
use occlude_kernels::{Result, ceiling};
use std::cell::LazyCell;
use std::fmt::Write;
use std::hint::black_box;
use std::time::{Duration, Instant};

/// How often a ceiling is tried, before and after the operators: on a shared machine the best of many is the ceiling.
const TRIES: usize = 12;

/// What a run of an operator does at least.
#[derive(Clone, Copy)]
pub(crate) enum Work {
    /// Floating-point operations of matrix products, two for each multiply-add.
    Flops(usize),
    /// Numbers of four bytes that are read or written.
    Numbers(usize),
}

struct Row {
    name: String,
    pass: &'static str,
    work: Work,
    seconds: f64,
}

#[derive(Clone, Copy)]
struct Ceilings {
    flops: f64,
    bytes: f64,
}

pub(crate) struct Table<'a> {
    criterion: &'a mut Criterion,
    before: Ceilings,
    rows: Vec<Row>,
    notes: Vec<String>,
}

impl Ceilings {
    fn measure() -> Self {
        Self { flops: ceiling::multiply_adds(TRIES), bytes: ceiling::memory(TRIES) }
    }

    fn best(self, other: Self) -> Self {
        Self { flops: self.flops.max(other.flops), bytes: self.bytes.max(other.bytes) }
    }
}

impl<'a> Table<'a> {
    pub(crate) fn new(criterion: &'a mut Criterion) -> Self {
        Self { before: Ceilings::measure(), criterion, rows: Vec::new(), notes: Vec::new() }
    }

    /// A line under the table.
    pub(crate) fn note(&mut self, line: String) {
        self.notes.push(line);
    }

    /// Times a call of what `make` gives. `make` itself is called only if the benchmark was asked for.
    pub(crate) fn call<T, F: Fn() -> Result<T>>(
        &mut self,
        name: &str,
        pass: &'static str,
        work: Work,
        make: impl FnOnce() -> F,
    ) {
        let op = LazyCell::new(make);
        self.time(name, pass, work, |count| {
            let op = &*op;
            let started = Instant::now();
            (0..count).for_each(|_| drop(black_box(op().unwrap())));
            started.elapsed()
        });
    }

    /// Times the backward pass of what `make` gives, from a gradient of ones; the forward pass is not counted. What
    /// candle's graph adds to the operator's own work (a buffer of zeros and a sum for each gradient) is.
    pub(crate) fn backward<F: Fn() -> Result<Tensor>>(&mut self, name: &str, work: Work, make: impl FnOnce() -> F) {
        self.backward_of(name, "backward", work, make);
    }

    /// [`Self::backward`] under a name of its own, for one gradient of several.
    pub(crate) fn backward_of<F: Fn() -> Result<Tensor>>(
        &mut self,
        name: &str,
        pass: &'static str,
        work: Work,
        make: impl FnOnce() -> F,
    ) {
        let op = LazyCell::new(make);
        self.time(name, pass, work, |count| {
            let one = |_| {
                let y = (*op)().unwrap();
                let started = Instant::now();
                drop(black_box(y.backward().unwrap()));
                started.elapsed()
            };
            (0..count).map(one).sum()
        });
    }

    fn time(&mut self, name: &str, pass: &'static str, work: Work, mut run: impl FnMut(u64) -> Duration) {
        let mut samples = Vec::new();
        let mut group = self.criterion.benchmark_group(name);
        group.throughput(match work {
            Work::Flops(count) => Throughput::Elements(count as u64),
            Work::Numbers(count) => Throughput::BytesDecimal(4 * count as u64),
        });
        group.bench_function(pass, |b| {
            b.iter_custom(|count| {
                let took = run(count);
                samples.push(took.as_secs_f64() / count as f64);
                took
            });
        });
        group.finish();
        samples.sort_by(f64::total_cmp);
        if let Some(seconds) = samples.get(samples.len() / 2).copied() {
            self.rows.push(Row { name: name.to_owned(), pass, work, seconds });
        }
    }

    /// The rows measured, each beside its ceiling; nothing where nothing was.
    pub(crate) fn text(&self) -> String {
        if self.rows.is_empty() {
            return String::new();
        }
        let ceilings = self.before.best(Ceilings::measure());
        let (threads, flops, bytes) = (rayon::current_num_threads(), ceilings.flops / 1e9, ceilings.bytes / 1e9);
        let mut text = format!(
            "\nceilings with {threads} threads: {flops:.0} GFLOP/s of f32 multiply-adds, {bytes:.1} GB/s of memory\n\n{:<54}{:<12}{:>10}{:>18}{:>12}\n",
            "operator", "pass", "median ms", "rate", "of ceiling"
        );
        for Row { name, pass, work, seconds } in &self.rows {
            let (rate, unit, ceiling) = match work {
                Work::Flops(count) => (*count as f64 / seconds, "GFLOP/s", ceilings.flops),
                Work::Numbers(count) => (4.0 * *count as f64 / seconds, "GB/s   ", ceilings.bytes),
            };
            let (ms, shown, share) = (seconds * 1e3, rate / 1e9, 100.0 * rate / ceiling);
            // Writing to a string does not fail.
            let _ = writeln!(text, "{name:<54}{pass:<12}{ms:>10.2}{shown:>10.1} {unit}{share:>10.0} %");
        }
        self.notes.iter().for_each(|line| text.extend(["\n", line]));
        text + "\n"
    }
}
