//! The nearest centroid of each row, fused with the product.
//!
//! Scores exist one block at a time, small enough for the cache: never as a matrix of all rows and centroids. Products are
//! native f32 or f64 whatever the [`Precision`](crate::Precision): a token is no place to round.

use crate::cpu::{self, Matrix, Real, Values, by_dtype};
use crate::simd::{dot, largest, vectorised};
use crate::{Error, Result, input, reference};
use candle_core::Tensor;

/// What makes a centroid near.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Measure {
    /// A small distance.
    Euclidean,
    /// A large product: the cosine, where rows and centroids have length 1.
    Dot,
}

/// The nearest centroid of each row.
#[derive(Clone, Debug)]
pub struct Nearest {
    /// Which one. `[rows]`, u32
    pub indices: Tensor,
    /// Its squared distance from the row or, for [`Measure::Dot`], its product with the row. `[rows]`, in the dtype
    /// of x
    pub values: Tensor,
}

/// The centroid nearest to each row of `x`, of equally near ones the first. x: [rows, dim], centroids: [k, dim]; f32 or
/// f64. Not differentiable: inputs are read as constants and the results record no graph. Sources: MaPeT specification,
/// sections 8.2 (k-means tokens) and 8.3 (quantiser).
///
/// Euclidean distances are compared as `x.c - |c|^2 / 2`, in the dtype of x: of centroids whose distances differ by less
/// than the rounding of that, either may be chosen (where all rows lie far from zero beside their distances, take their
/// mean off first). Equal centroids score equal bits. The value of the chosen one is summed from the differences, so a row
/// on its centroid is at distance 0.
///
/// A score that is NaN wins, the first of them: the row gets its index and the value NaN. A NaN in a row gives index 0, a
/// NaN in a centroid gives that centroid to every row.
///
/// # Errors
/// Another rank, rows of another width than the centroids, no centroids, or a dtype that is not f32 or f64.
pub fn nearest(x: &Tensor, centroids: &Tensor, measure: Measure) -> Result<Nearest> {
    let op = "nearest";
    input::same_float(op, x, centroids)?;
    let &[rows, dim] = x.dims() else { return Err(Error::shape(op, "x [rows, dim]", x.dims())) };
    let &[k, _] = centroids.dims() else { return Err(Error::shape(op, "centroids [k, dim]", centroids.dims())) };
    input::shape(op, "centroids", centroids, &[k, dim])?;
    if k == 0 {
        return Err(Error::shape(op, "at least one centroid", centroids.dims()));
    }
    if x.elem_count() == 0 || !cpu::on_cpu(x) {
        return reference::nearest(x, centroids, measure);
    }
    let (x, centroids) = (x.detach().contiguous()?, centroids.detach().contiguous()?);
    by_dtype!(op, x.dtype(), T => {
        let (x, centroids) = (Values::<T>::of(&x)?, Values::<T>::of(&centroids)?);
        let (indices, values) = search::<T>(&x, &centroids, dim, measure);
        Ok(Nearest {
            indices: Tensor::from_vec(indices, rows, &candle_core::Device::Cpu)?,
            values: cpu::tensor(values, rows)?,
        })
    })
}

/// Most rows and centroids of one product: 1 MB of f32 scores. More rows than centroids, because each product packs its
/// centroids anew.
const BLOCK: (usize, usize) = (1024, 256);
/// Rows whose scores one thread compares at a time.
const ROWS: usize = 16;
/// Scores whose comparison is one step of the vectorised search.
const LANES: usize = 32;

fn search<T: Real>(x: &[T], centroids: &[T], dim: usize, measure: Measure) -> (Vec<u32>, Vec<T>) {
    let (rows, k) = (x.len() / dim, centroids.len() / dim);
    let shift = cpu::fill_chunks(k, cpu::rows_of(dim), k * dim, |i, shift: &mut [T]| {
        if measure == Measure::Euclidean {
            half_squares(&centroids[i * cpu::rows_of(dim) * dim..][..shift.len() * dim], dim, shift);
        }
    });
    let group = rows.min(BLOCK.0);
    let width = k.min(BLOCK.1);
    let (mut indices, mut values) = (vec![0_u32; rows], vec![T::of(f64::NEG_INFINITY); rows]);
    let mut scores = vec![T::zero(); group * width];
    for (x, (best, indices)) in x.chunks(group * dim).zip(values.chunks_mut(group).zip(indices.chunks_mut(group))) {
        let scores = &mut scores[..best.len() * width];
        for block in 0..k.div_ceil(width) {
            // The last block reaches back to be as wide as the others: products of one shape round equal centroids alike.
            let first = (block * width).min(k - width);
            let part = Matrix::new(&centroids[first * dim..][..width * dim], width, dim);
            cpu::write_native_product(scores, Matrix::new(x, best.len(), dim), part.t());
            let shift = &shift[first..][..width];
            cpu::for_chunk_pairs((best, ROWS), (indices, ROWS), scores.len(), |i, best, indices| {
                keep_best(&scores[i * ROWS * width..], shift, first, best, indices);
            });
        }
        if measure == Measure::Euclidean {
            cpu::for_chunk_pairs((best, ROWS), (indices, ROWS), x.len(), |i, best, indices| {
                distances(&x[i * ROWS * dim..], centroids, indices, dim, best);
            });
        }
    }
    (indices, values)
}

vectorised! {
    /// Minus half the squared length of each centroid.
    fn half_squares / half_squares_at<T, ISA>(centroids: &[T], dim: usize, shift: &mut [T]) {
        for (centroid, shift) in centroids.chunks_exact(dim).zip(shift) {
            *shift = -dot::<T, ISA>(centroid, centroid) * T::of(0.5);
        }
    }
}

vectorised! {
    /// Replaces what `best` and `indices` hold of each row where a score of this block, plus its shift, is larger or the
    /// first NaN. `first` is the index of the block's first centroid.
    fn keep_best / keep_best_at<T, ISA>(scores: &[T], shift: &[T], first: usize, best: &mut [T], indices: &mut [u32]) {
        for ((scores, best), index) in scores.chunks_exact(shift.len()).zip(best).zip(indices) {
            if best.nan() {
                continue;
            }
            let (top, broken) = top_of(scores, shift);
            if broken {
                *best = T::of(f64::NAN);
                *index = (first + position(scores, shift, T::nan)) as u32;
            } else if top > *best {
                *best = top;
                *index = (first + position(scores, shift, |score| score == top)) as u32;
            }
        }
    }
}

/// The largest score, and whether one is NaN.
#[inline(always)]
fn top_of<T: Real>(scores: &[T], shift: &[T]) -> (T, bool) {
    let (mut lanes, mut broken) = ([T::of(f64::NEG_INFINITY); LANES], [0_u32; LANES]);
    let (score_chunks, shift_chunks) = (scores.chunks_exact(LANES), shift.chunks_exact(LANES));
    let rest = score_chunks.remainder().iter().zip(shift_chunks.remainder());
    for (l, (score, shift)) in rest.enumerate() {
        lanes[l] = *score + *shift;
        broken[l] = u32::from(lanes[l].nan());
    }
    for (scores, shift) in score_chunks.zip(shift_chunks) {
        for l in 0..LANES {
            let score = scores[l] + shift[l];
            lanes[l] = lanes[l].larger(score);
            broken[l] |= u32::from(score.nan());
        }
    }
    (largest(&lanes), broken != [0; LANES])
}

/// Where the first score stands that `is` the one.
#[inline(always)]
fn position<T: Real>(scores: &[T], shift: &[T], is: impl Fn(T) -> bool) -> usize {
    for (block, (scores, shift)) in scores.chunks(LANES).zip(shift.chunks(LANES)).enumerate() {
        let mut found = 0;
        for (score, shift) in scores.iter().zip(shift) {
            found |= u32::from(is(*score + *shift));
        }
        if found != 0 {
            let place = scores.iter().zip(shift).position(|(score, shift)| is(*score + *shift));
            return block * LANES + place.unwrap_or(0);
        }
    }
    0
}

vectorised! {
    /// Squared distances of rows from their centroids; a NaN of `best` stays.
    fn distances / distances_at<T, ISA>(x: &[T], centroids: &[T], indices: &[u32], dim: usize, best: &mut [T]) {
        for ((x, index), best) in x.chunks_exact(dim).zip(indices).zip(best) {
            let centroid = &centroids[*index as usize * dim..][..dim];
            let mut sum = T::zero();
            let mut apart = [T::zero(); LANES];
            for (x, c) in x.chunks(LANES).zip(centroid.chunks(LANES)) {
                let apart = &mut apart[..x.len()];
                for i in 0..x.len() {
                    apart[i] = x[i] - c[i];
                }
                sum += dot::<T, ISA>(apart, apart);
            }
            if !best.nan() {
                *best = sum;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{BLOCK, Measure, Nearest, nearest};
    use crate::check::{same, same_for_any_threads, sample};
    use crate::levels::{same_on_all, values};
    use crate::tiles::{Path, Split, Tiles};
    use crate::{Error, PrecisionScope, linear, reference};
    use candle_core::{DType, Device, Tensor, Var};

    const MEASURES: [Measure; 2] = [Measure::Euclidean, Measure::Dot];

    const CENTROIDS: usize = BLOCK.1;

    fn indices(found: &Nearest) -> Vec<u32> {
        found.indices.to_vec1().unwrap()
    }

    fn assert_same(got: &Nearest, expected: &Nearest, tolerance: f64) {
        assert_eq!(indices(got), indices(expected));
        same("values", &got.values, &expected.values, tolerance).unwrap();
    }

    #[test]
    fn agrees_with_its_reference() {
        // One row, one centroid, one column; ragged lanes; several blocks of centroids and groups of rows.
        for (rows, k, dim) in
            [(1, 1, 1), (5, 3, 1), (1, 40, 7), (33, 1, 5), (17, 33, 16), (70, 513, 31), (1100, 1100, 9), (4200, 3, 2)]
        {
            let (x, centroids) = (sample(1, (rows, dim)).unwrap(), sample(2, (k, dim)).unwrap());
            for measure in MEASURES {
                let expected = reference::nearest(&x, &centroids, measure).unwrap();
                assert_same(&nearest(&x, &centroids, measure).unwrap(), &expected, 1e-12);
                // In f32 two near ones may change places; what is found must be as near.
                let single = |t: &Tensor| t.to_dtype(DType::F32).unwrap();
                let got = nearest(&single(&x), &single(&centroids), measure).unwrap();
                assert_eq!(got.values.dtype(), DType::F32);
                same("f32", &got.values, &expected.values, 5e-6).unwrap();
            }
        }
    }

    #[test]
    fn agrees_with_a_search_one_by_one() {
        let (x, centroids) = (sample(3, (40, 6)).unwrap(), sample(4, (700, 6)).unwrap());
        let (rows, bank) = (x.to_vec2::<f64>().unwrap(), centroids.to_vec2::<f64>().unwrap());
        let distance = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum::<f64>();
        let product = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let closest = nearest(&x, &centroids, Measure::Euclidean).unwrap();
        let largest = nearest(&x, &centroids, Measure::Dot).unwrap();
        for (i, row) in rows.iter().enumerate() {
            let by = |better: &dyn Fn(&[f64]) -> f64| {
                (0..700).min_by(|&a, &b| better(&bank[a]).total_cmp(&better(&bank[b]))).unwrap()
            };
            assert_eq!(indices(&closest)[i] as usize, by(&|c| distance(row, c)));
            assert_eq!(indices(&largest)[i] as usize, by(&|c| -product(row, c)));
        }
    }

    #[test]
    fn of_equal_centroids_the_first_is_taken() {
        // Copies of a few centroids all over several blocks: in one block, at its edges, in the last.
        let k = 2 * CENTROIDS + 1;
        for dim in [1, 5, 32, 67] {
            let few = sample(5, (7, dim)).unwrap().to_dtype(DType::F32).unwrap();
            let order: Vec<u32> = (0..k as u32).map(|i| i % 7).collect();
            let copies = few.index_select(&Tensor::from_vec(order, k, &Device::Cpu).unwrap(), 0).unwrap();
            for rows in [1, 33, 1100] {
                let x = sample(6, (rows, dim)).unwrap().to_dtype(DType::F32).unwrap();
                for measure in MEASURES {
                    let found = indices(&nearest(&x, &copies, measure).unwrap());
                    assert!(found.iter().all(|&index| index < 7), "{dim} {measure:?}: {found:?}");
                }
            }
        }
        // Exact ties of unequal ones.
        let x = Tensor::new(&[[0_f32], [2.0], [-2.0]], &Device::Cpu).unwrap();
        let centroids = Tensor::new(&[[9_f32], [1.0], [-1.0], [3.0], [-3.0]], &Device::Cpu).unwrap();
        assert_eq!(indices(&nearest(&x, &centroids, Measure::Euclidean).unwrap()), [1, 1, 2]);
    }

    #[test]
    fn a_row_on_its_centroid_is_at_no_distance() {
        // One block, and a last block that reaches back to an odd and to an even place.
        for k in [20, CENTROIDS + 3, 2 * CENTROIDS + 100] {
            // From the scores, f32 would give distances of 1e-2 or so.
            let x = (sample(1, (k, 40)).unwrap() + 30.0).unwrap().to_dtype(DType::F32).unwrap();
            let found = nearest(&x, &x, Measure::Euclidean).unwrap();
            assert_eq!(indices(&found), (0..k as u32).collect::<Vec<u32>>());
            assert_eq!(found.values.to_vec1::<f32>().unwrap(), vec![0.0; k]);
        }
    }

    #[test]
    fn a_nan_wins_and_is_shown() {
        let nan = f64::NAN;
        let rows = Tensor::new(&[[nan, 0.0], [1.0, 0.0], [0.0, nan]], &Device::Cpu).unwrap();
        let k = CENTROIDS + 9;
        let bank = sample(1, (k, 2)).unwrap();
        for measure in MEASURES {
            let found = nearest(&rows, &bank, measure).unwrap();
            let values = found.values.to_vec1::<f64>().unwrap();
            assert_eq!((indices(&found)[0], indices(&found)[2]), (0, 0));
            assert!(values[0].is_nan() && values[1].is_finite() && values[2].is_nan(), "{values:?}");
            // Two broken centroids, the first in either block.
            for broken in [3, CENTROIDS + 2] {
                let mut values = bank.flatten_all().unwrap().to_vec1::<f64>().unwrap();
                values[2 * broken] = nan;
                values[2 * k - 1] = nan;
                let broken_bank = Tensor::from_vec(values, (k, 2), &Device::Cpu).unwrap();
                let x = sample(2, (5, 2)).unwrap();
                let found = nearest(&x, &broken_bank, measure).unwrap();
                assert_eq!(indices(&found), [broken as u32; 5]);
                assert!(found.values.to_vec1::<f64>().unwrap().iter().all(|value| value.is_nan()));
                let expected = reference::nearest(&x, &broken_bank, measure).unwrap();
                assert_eq!(indices(&found), indices(&expected));
            }
            // Infinity less infinity has no place among numbers either.
            let far = Tensor::new(&[[f64::INFINITY, f64::INFINITY]], &Device::Cpu).unwrap();
            let opposite = Tensor::new(&[[1.0, 1.0], [1.0, -1.0]], &Device::Cpu).unwrap();
            let found = nearest(&far, &opposite, measure).unwrap();
            assert_eq!(indices(&found), [1]);
            assert!(found.values.to_vec1::<f64>().unwrap()[0].is_nan());
        }
    }

    #[test]
    fn strided_inputs_give_the_same_and_nothing_is_tracked() {
        let x = Var::from_tensor(&sample(1, (6, 40)).unwrap()).unwrap();
        let centroids = Var::from_tensor(&sample(2, (9, 33)).unwrap()).unwrap();
        let (turned, part) = (x.t().unwrap(), centroids.narrow(1, 4, 6).unwrap());
        for measure in MEASURES {
            let got = nearest(&turned, &part, measure).unwrap();
            let expected = nearest(&turned.contiguous().unwrap(), &part.contiguous().unwrap(), measure).unwrap();
            assert_same(&got, &expected, 0.0);
            assert!(!got.values.track_op() && !got.indices.track_op());
        }
    }

    #[test]
    fn any_number_of_threads_gives_equal_bits() {
        let (x, centroids) = (sample(1, (301, 67)).unwrap(), sample(2, (700, 67)).unwrap());
        for dtype in [DType::F32, DType::F64] {
            let (x, centroids) = (x.to_dtype(dtype).unwrap(), centroids.to_dtype(dtype).unwrap());
            same_for_any_threads(|| {
                let mut all = Vec::new();
                for measure in MEASURES {
                    let found = nearest(&x, &centroids, measure)?;
                    all.extend([found.indices, found.values]);
                }
                Ok(all)
            })
            .unwrap();
        }
    }

    #[test]
    fn the_precision_of_products_does_not_matter() {
        let single = |seed, shape: (usize, usize)| sample(seed, shape).unwrap().to_dtype(DType::F32).unwrap();
        let (x, centroids) = (single(1, (64, 32)), single(2, (300, 32)));
        let expected = nearest(&x, &centroids, Measure::Dot).unwrap();
        let product = linear(&x, &centroids, None).unwrap();
        let _scope = PrecisionScope::of(Some(Tiles::new(Path::Scalar, Split::One).unwrap()));
        assert!(same("bf16", &linear(&x, &centroids, None).unwrap(), &product, 1e-5).is_err());
        assert_same(&nearest(&x, &centroids, Measure::Dot).unwrap(), &expected, 0.0);
    }

    #[test]
    fn no_rows_have_no_neighbours_and_no_columns_are_all_alike() {
        for measure in MEASURES {
            for (rows, dim) in [(0, 3), (4, 0), (0, 0)] {
                let zeros = |n| Tensor::zeros((n, dim), DType::F32, &Device::Cpu).unwrap();
                let found = nearest(&zeros(rows), &zeros(5), measure).unwrap();
                assert_eq!(indices(&found), vec![0; rows]);
                assert_eq!(found.values.to_vec1::<f32>().unwrap(), vec![0.0; rows]);
            }
        }
    }

    #[test]
    fn other_shapes_and_dtypes_are_refused() {
        let (x, centroids) = (sample(1, (3, 4)).unwrap(), sample(2, (5, 4)).unwrap());
        let run = |x: &Tensor, centroids: &Tensor| nearest(x, centroids, Measure::Dot);
        let none = Tensor::zeros((0, 4), DType::F64, &Device::Cpu).unwrap();
        assert!(matches!(run(&x, &none), Err(Error::Shape { op: "nearest", .. })));
        assert!(matches!(run(&x, &sample(2, (5, 3)).unwrap()), Err(Error::Shape { op: "nearest", .. })));
        assert!(matches!(run(&x.flatten_all().unwrap(), &centroids), Err(Error::Shape { .. })));
        assert!(matches!(run(&x, &centroids.flatten_all().unwrap()), Err(Error::Shape { .. })));
        assert!(matches!(run(&x, &centroids.to_dtype(DType::F32).unwrap()), Err(Error::Dtype { .. })));
        let half = |t: &Tensor| t.to_dtype(DType::F16).unwrap();
        assert!(matches!(run(&half(&x), &half(&centroids)), Err(Error::Dtype { got: DType::F16, .. })));
    }

    #[test]
    fn every_instruction_set_gives_the_same() {
        let (rows, width, dim) = (3, 70, 45);
        let (scores, centroids, x) = (values(1, rows * width), values(2, width * dim), values(3, rows * dim));
        same_on_all(1e-5, |level| {
            let mut shift = vec![0.0; width];
            super::half_squares_at(level, &centroids, dim, &mut shift);
            let (mut best, mut indices) = (vec![f32::NEG_INFINITY; rows], vec![0; rows]);
            super::keep_best_at(level, &scores, &shift, 0, &mut best, &mut indices);
            let mut apart = best.clone();
            super::distances_at(level, &x, &centroids, &indices, dim, &mut apart);
            let indices: Vec<f32> = indices.into_iter().map(|index| index as f32).collect();
            [shift, best, indices, apart].concat()
        });
    }
}
