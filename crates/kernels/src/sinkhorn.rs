//! Balanced assignments by Sinkhorn's iteration.

use crate::cpu::{self, Real, SharedRows, Values, by_dtype};
use crate::simd::{sum_of, vectorised};
use crate::{Error, Result, input, reference};
use candle_core::Tensor;

/// Balanced assignments: `exp(z - max over samples + 50)` for `z = logits / temperature`, then `iterations` times each
/// prototype divided by its sum over the samples and each sample divided by its sum over the prototypes (1e-8 is added
/// to every sum). logits: [groups, samples, k]; groups are independent. No gradient; the result records no graph.
/// Source: CAPI specification, section 8.3.
///
/// A sample far from every prototype may underflow: its row then sums to less than 1, even to 0.
///
/// # Errors
/// Another rank, a temperature that is not positive, or a dtype that is not f32 or f64.
pub fn sinkhorn(logits: &Tensor, temperature: f64, iterations: usize) -> Result<Tensor> {
    let op = "sinkhorn";
    input::float(op, logits)?;
    let &[groups, samples, k] = logits.dims() else {
        return Err(Error::shape(op, "logits [groups, samples, k]", logits.dims()));
    };
    input::positive(op, "temperature", temperature)?;
    if logits.elem_count() == 0 || !cpu::on_cpu(logits) {
        return reference::sinkhorn(logits, temperature, iterations);
    }
    let logits = logits.detach().contiguous()?;
    let blocks = Blocks::new(groups, samples, k);
    by_dtype!(op, logits.dtype(), T => {
        let assigned = assign(&Values::<T>::of(&logits)?, &blocks, T::of(1.0 / temperature), iterations);
        Ok(cpu::tensor(assigned, logits.shape())?)
    })
}

/// Added to the exponents, so that a sample far below the best still has a number in f32.
const LIFT: f64 = 50.0;
/// Added to every sum before the division.
const GUARD: f64 = 1e-8;
/// An exponential costs about as much as this many copies.
const EXPONENTIAL: usize = 8;

/// How the samples of each group are cut: blocks of rows that one thread works through, with one partial sum each.
struct Blocks {
    samples: usize,
    k: usize,
    /// Samples per block.
    rows: usize,
    /// Blocks per group.
    per_group: usize,
    /// All blocks.
    count: usize,
}

impl Blocks {
    fn new(groups: usize, samples: usize, k: usize) -> Self {
        // At least 32: partial sums then take no more than a 32nd of the memory. At most 256: f32 sums stay short.
        let rows = (2 * cpu::ELEMENTS / k).clamp(32, 256);
        let per_group = samples.div_ceil(rows);
        Self { samples, k, rows, per_group, count: groups * per_group }
    }

    /// Elements of the array that block `i` covers.
    fn range(&self, i: usize) -> std::ops::Range<usize> {
        let (group, block) = (i / self.per_group, i % self.per_group);
        let (first, last) = (block * self.rows, self.samples.min((block + 1) * self.rows));
        (group * self.samples + first) * self.k..(group * self.samples + last) * self.k
    }

    /// Per block, the row of `k` numbers that `f` makes. [count, k]
    fn partial<T: Real>(&self, start: T, f: impl Fn(usize, &mut [T]) + Sync) -> Vec<T> {
        cpu::fill_chunks(self.count * self.k, self.k, self.count * self.rows * self.k, |i, out: &mut [T]| {
            out.fill(start);
            f(i, out);
        })
    }

    /// Rows of one group combined, in order. [groups, k]
    fn folded<T: Real>(&self, partial: Vec<T>, combine: impl Fn(T, T) -> T + Sync) -> Vec<T> {
        if self.per_group == 1 {
            return partial;
        }
        let groups = self.count / self.per_group;
        cpu::fill_chunks(groups * self.k, self.k, partial.len(), |group, out: &mut [T]| {
            let rows = &partial[group * self.per_group * self.k..][..self.per_group * self.k];
            let (first, rest) = rows.split_at(self.k);
            out.copy_from_slice(first);
            for row in rest.chunks_exact(self.k) {
                out.iter_mut().zip(row).for_each(|(out, value)| *out = combine(*out, *value));
            }
        })
    }

    /// The row of block `i`'s group in a [groups, k] array.
    fn of_group<'a, T>(&self, i: usize, values: &'a [T]) -> &'a [T] {
        &values[i / self.per_group * self.k..][..self.k]
    }

    /// Runs `f` on every block of `x` with its index and its row of a new [count, k] array of zeros, which is returned.
    fn update<T: Real>(&self, x: &mut [T], f: impl Fn(usize, &mut [T], &mut [T]) + Sync) -> Vec<T> {
        let work = EXPONENTIAL * x.len();
        let x = SharedRows::new(x);
        cpu::fill_chunks(self.count * self.k, self.k, work, |i, sum: &mut [T]| {
            let range = self.range(i);
            // SAFETY: blocks are disjoint, and no two calls get the same index.
            #[allow(unsafe_code)]
            f(i, unsafe { x.range(range.start, range.len()) }, sum);
        })
    }
}

fn assign<T: Real>(logits: &[T], blocks: &Blocks, sharpness: T, iterations: usize) -> Vec<T> {
    let low = T::of(f64::NEG_INFINITY);
    let shift = blocks.partial(low, |i, out| highest(&logits[blocks.range(i)], blocks.k, out));
    let shift = blocks.folded(shift, T::larger); // [groups, k], before the temperature
    let mut x = vec![T::zero(); logits.len()];
    let mut partial = blocks.update(&mut x, |i, x, sum| {
        lift(&logits[blocks.range(i)], blocks.of_group(i, &shift), sharpness, x, sum);
    });
    for _ in 0..iterations {
        let mut scale = blocks.folded(partial, |a, b| a + b); // [groups, k]
        scale.iter_mut().for_each(|sum| *sum = T::one() / (*sum + T::of(GUARD)));
        partial = blocks.update(&mut x, |i, x, sum| balance(x, blocks.of_group(i, &scale), sum));
    }
    x
}

vectorised! {
    /// Largest value of each column; NaN is passed over.
    fn highest / highest_at<T, ISA>(logits: &[T], k: usize, out: &mut [T]) {
        for row in logits.chunks_exact(k) {
            for i in 0..k {
                out[i] = out[i].larger(row[i]);
            }
        }
    }
}

vectorised! {
    /// The exponentials, and their column sums.
    fn lift / lift_at<T, ISA>(logits: &[T], shift: &[T], sharpness: T, x: &mut [T], sum: &mut [T]) {
        let k = shift.len();
        let sum = &mut sum[..k];
        for (logits, x) in logits.chunks_exact(k).zip(x.chunks_exact_mut(k)) {
            for i in 0..k {
                // Not scaled apart: near the largest, the difference is exact.
                let z = (logits[i] - shift[i]) * sharpness + T::of(LIFT);
                x[i] = z.exponential::<ISA>();
                sum[i] += x[i];
            }
        }
    }
}

vectorised! {
    /// Columns times `scale`, then rows over their sums; and the column sums of the result.
    fn balance / balance_at<T, ISA>(x: &mut [T], scale: &[T], sum: &mut [T]) {
        let k = scale.len();
        let sum = &mut sum[..k];
        for x in x.chunks_exact_mut(k) {
            for i in 0..k {
                x[i] *= scale[i];
            }
            let share = T::one() / (sum_of(x) + T::of(GUARD));
            for i in 0..k {
                x[i] *= share;
                sum[i] += x[i];
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::sinkhorn;
    use crate::check::{same, same_for_any_threads, sample};
    use crate::levels::{same_on_all, values};
    use crate::{Error, reference};
    use candle_core::{DType, Device, Tensor, Var};
    use occlude_golden::assert_close;

    /// Of the largest value, as the reference set asks of Sinkhorn alone.
    const GOLDEN: f64 = 2e-5;

    #[test]
    fn golden_capi_sinkhorn() {
        let Some(tensors) = occlude_golden::set("capi").tensors("sinkhorn") else { return };
        let cases: Vec<&str> = tensors.keys().filter_map(|name| name.strip_suffix(".logits")).collect();
        assert!(!cases.is_empty());
        for case in cases {
            let logits = &tensors[&format!("{case}.logits")]; // [positions, batch, k]
            let params = tensors[&format!("{case}.params")].to_vec1::<f64>().unwrap();
            let (temperature, iterations) = (params[0], params[1] as usize);
            let (positions, batch, k) = logits.dims3().unwrap();
            for dtype in [DType::F32, DType::F64] {
                let logits = logits.to_dtype(dtype).unwrap();
                let apart = sinkhorn(&logits, temperature, iterations).unwrap();
                assert_close(case, &apart, &tensors[&format!("{case}.positionwise")], GOLDEN);
                let joint = logits.reshape((1, positions * batch, k)).unwrap();
                let joint = sinkhorn(&joint, temperature, iterations).unwrap().reshape(logits.shape()).unwrap();
                assert_close(case, &joint, &tensors[&format!("{case}.standard")], GOLDEN);
            }
        }
    }

    #[test]
    fn golden_capi_assignments_of_all_positions_together() {
        let set = occlude_golden::set("capi");
        let (Some(forward), Some(config)) = (set.tensors("forward"), set.config()) else { return };
        let temperature = config["clustering"]["target_temp"].as_f64().unwrap();
        let iterations = config["clustering"]["n_sk_iter"].as_u64().unwrap() as usize;
        let logits = &forward["teacher.cluster_logits"]; // [positions, batch, k]
        let (positions, batch, k) = logits.dims3().unwrap();
        let joint = sinkhorn(&logits.reshape((1, positions * batch, k)).unwrap(), temperature, iterations).unwrap();
        assert_close("standard", &joint.reshape(logits.shape()).unwrap(), &forward["std_sk.assignments"], 1e-4);
    }

    #[test]
    fn agrees_with_its_reference() {
        for (groups, samples, k) in
            [(1, 1, 1), (3, 5, 7), (2, 1, 33), (1, 300, 17), (5, 4, 16), (1, 2, 5000), (2, 300, 700)]
        {
            let logits = sample(1, (groups, samples, k)).unwrap();
            for iterations in [0, 1, 3] {
                let expected = reference::sinkhorn(&logits, 0.06, iterations).unwrap();
                same("f64", &sinkhorn(&logits, 0.06, iterations).unwrap(), &expected, 1e-12).unwrap();
                let single = sinkhorn(&logits.to_dtype(DType::F32).unwrap(), 0.06, iterations).unwrap();
                same("f32", &single, &expected, 2e-5).unwrap();
            }
        }
    }

    #[test]
    fn logits_far_from_zero_keep_their_differences() {
        let logits = ((sample(1, (2, 9, 17)).unwrap() + 1e3).unwrap()).to_dtype(DType::F32).unwrap();
        let expected = reference::sinkhorn(&logits.to_dtype(DType::F64).unwrap(), 0.06, 3).unwrap();
        same("sinkhorn", &sinkhorn(&logits, 0.06, 3).unwrap(), &expected, 2e-5).unwrap();
    }

    #[test]
    fn a_far_sample_keeps_a_row_below_one() {
        // Sample 1 is 40 temperatures below sample 0 in both prototypes, sample 2 is 200 below.
        let logits = Tensor::new(&[[[0_f32, 0.0], [-40.0, -40.0], [-200.0, -200.0]]], &Device::Cpu).unwrap();
        let sums = sinkhorn(&logits, 1.0, 1).unwrap().sum(2).unwrap().to_vec2::<f32>().unwrap();
        assert!((sums[0][0] - 1.0).abs() < 1e-6);
        assert!(sums[0][1] > 0.0 && sums[0][1] < 1e-3, "{sums:?}");
        assert_eq!(sums[0][2], 0.0);
    }

    #[test]
    fn strided_logits_give_the_same_and_nothing_is_tracked() {
        let logits = Var::from_tensor(&sample(1, (4, 3, 5)).unwrap()).unwrap();
        let swapped = logits.transpose(0, 1).unwrap();
        let got = sinkhorn(&swapped, 0.1, 2).unwrap();
        let expected = sinkhorn(&swapped.contiguous().unwrap(), 0.1, 2).unwrap();
        assert_eq!(
            got.flatten_all().unwrap().to_vec1::<f64>().unwrap(),
            expected.flatten_all().unwrap().to_vec1::<f64>().unwrap()
        );
        assert!(!got.track_op());
    }

    #[test]
    fn any_number_of_threads_gives_equal_bits() {
        for shape in [(40, 3, 70), (1, 301, 70), (1, 3, 9000), (1, 600, 1100)] {
            let logits = sample(1, shape).unwrap();
            for dtype in [DType::F32, DType::F64] {
                let logits = logits.to_dtype(dtype).unwrap();
                same_for_any_threads(|| Ok(vec![sinkhorn(&logits, 0.06, 3)?])).unwrap();
            }
        }
    }

    #[test]
    fn a_nan_fills_its_group_alone_and_nothing_is_nothing() {
        let mut values = vec![0.5_f64; 12];
        values[1] = f64::NAN;
        let logits = Tensor::from_vec(values, (2, 3, 2), &Device::Cpu).unwrap();
        let result = sinkhorn(&logits, 0.1, 2).unwrap().to_vec3::<f64>().unwrap();
        assert!(result[0].iter().flatten().all(|value| value.is_nan()), "{result:?}");
        assert!(result[1].iter().flatten().all(|value| value.is_finite()));
        for shape in [(0, 2, 3), (2, 0, 3), (2, 3, 0)] {
            let logits = Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
            assert_eq!(sinkhorn(&logits, 0.1, 2).unwrap().dims(), logits.dims());
        }
    }

    #[test]
    fn other_ranks_dtypes_and_temperatures_are_refused() {
        let logits = sample(1, (2, 3, 4)).unwrap();
        assert!(matches!(sinkhorn(&logits.flatten_to(1).unwrap(), 0.1, 1), Err(Error::Shape { op: "sinkhorn", .. })));
        assert!(matches!(sinkhorn(&logits.to_dtype(DType::BF16).unwrap(), 0.1, 1), Err(Error::Dtype { .. })));
        assert!(matches!(sinkhorn(&logits, 0.0, 1), Err(Error::Argument { .. })));
    }

    #[test]
    fn every_instruction_set_gives_the_same() {
        let (k, logits) = (70, values(1, 210));
        same_on_all(1e-5, |level| {
            let (mut shift, mut x, mut sum) = (vec![f32::NEG_INFINITY; k], vec![0.0; 210], vec![0.0; k]);
            super::highest_at(level, &logits, k, &mut shift);
            super::lift_at(level, &logits, &shift, 10.0, &mut x, &mut sum);
            let scale: Vec<f32> = sum.iter().map(|sum| 1.0 / sum).collect();
            sum.fill(0.0);
            super::balance_at(level, &mut x, &scale, &mut sum);
            [shift, x, sum].concat()
        });
    }
}
