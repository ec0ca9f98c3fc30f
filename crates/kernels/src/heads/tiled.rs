//! One head whose products go through tiles: operands rounded to bf16; sums, softmax and slopes in f32.
//!
//! Blocks of queries are larger than those of native products, since a tile wants long sums: they depend on the sizes
//! alone.

use super::{Rows, Scratch, Sizes, probabilities_row, softmax_row};
use crate::cpu::Real;
use crate::simd::{dot, vectorised};
use crate::tiles::{Matrix, PackedB, Store, Tiles};
use crate::visibility::Seen;
use std::ops::Range;

/// Scores of a block, about: 256 KB of f32, twice in the backward pass, which the second cache holds.
const SCORES: usize = 64 * 1024;
/// Rows of a block come in so many.
const ROWS: usize = 32;
/// Most rows of a block.
const MOST_ROWS: usize = 512;

/// Queries of a block.
pub(super) fn block(sizes: Sizes) -> usize {
    let most = (SCORES / sizes.nk.max(1)).min(MOST_ROWS) / ROWS * ROWS;
    most.max(ROWS).min(sizes.nq.next_multiple_of(ROWS)).max(1)
}

/// The right operands of a head, and what multiplies.
pub(super) struct Packed {
    tiles: Tiles,
    keys_t: PackedB,   // [size, nk]
    values: PackedB,   // [nk, size]
    keys: PackedB,     // [nk, size]
    values_t: PackedB, // [size, nk]
    queries: PackedB,  // [block, size]
    outward: PackedB,  // [block, size]
}

impl Packed {
    pub(super) fn new(tiles: Tiles) -> Self {
        let room = || tiles.room();
        Self { tiles, keys_t: room(), values: room(), keys: room(), values_t: room(), queries: room(), outward: room() }
    }
}

/// Rows as a matrix of f32; `None` of f64, which no tiles multiply, and of rows in an order of their own.
fn rows<'a, T: Real>(of: Rows<'a, T>, range: Range<usize>, size: usize) -> Option<Matrix<'a>> {
    if of.order.is_some() {
        return None;
    }
    let values = T::singles(of.values.get(range.start * of.stride..)?)?;
    Matrix::strided(values, (range.len(), size), (of.stride, 1)).ok()
}

/// Rows in scratch memory, `step` apart.
fn held<T: Real>(values: &[T], shape: (usize, usize), step: usize) -> Option<Matrix<'_>> {
    Matrix::strided(T::singles(values)?, shape, (step, 1)).ok()
}

fn pack(tiles: Tiles, to: &mut PackedB, from: Matrix<'_>) -> Option<()> {
    to.refill_here(tiles, from).ok()
}

fn multiply<T: Real>(tiles: Tiles, a: Matrix<'_>, b: &PackedB, c: &mut [T], step: usize, store: Store) -> Option<()> {
    tiles.multiply_here(a, b, (T::singles_mut(c)?, step), store).ok()
}

/// As [`super::forward`]. `None`: the elements are not f32.
pub(super) fn forward<T: Real>(
    packed: &mut Packed,
    scratch: &mut Scratch<T>,
    sizes: Sizes,
    [q, k, v]: [Rows<'_, T>; 3],
    seen: Seen<'_>,
) -> Option<()> {
    let Sizes { nq, nk, size, .. } = sizes;
    let (tiles, row, padded) = (packed.tiles, scratch.row, sizes.padded_keys());
    pack(tiles, &mut packed.keys_t, rows(k, 0..nk, size)?.t())?;
    pack(tiles, &mut packed.values, rows(v, 0..nk, size)?)?;
    for start in (0..nq).step_by(scratch.block) {
        let count = scratch.block.min(nq - start);
        let queries = rows(q, start..start + count, size)?;
        multiply(tiles, queries, &packed.keys_t, &mut scratch.scores, padded, Store::Write)?;
        let log_sums = &mut scratch.log_sums[start..start + count];
        softmax_block(&mut scratch.scores, &mut scratch.shares, log_sums, sizes, start, seen);
        let weights = held(&scratch.scores, (count, nk), padded)?;
        let out = &mut scratch.out[start * row..];
        multiply(tiles, weights, &packed.values, out, row, Store::Write)?;
        for (out, share) in out.chunks_exact_mut(row.max(1)).zip(&scratch.shares[..count]) {
            out.iter_mut().for_each(|value| *value *= *share);
        }
    }
    Some(())
}

vectorised! {
    /// Products of queries and keys to softmax weights, row by row, without their common factor, which goes to `shares`.
    fn softmax_block / softmax_block_at<T, ISA>(
        scores: &mut [T], shares: &mut [T], log_sums: &mut [T], sizes: Sizes, start: usize, seen: Seen<'_>,
    ) {
        let (nk, padded, scale) = (sizes.nk, sizes.padded_keys(), sizes.scale::<T>());
        let rows = scores.chunks_exact_mut(padded).zip(shares).zip(log_sums);
        for (r, ((scores, share), log_sum)) in rows.enumerate() {
            scores[..nk].iter_mut().for_each(|score| *score *= scale);
            (*share, *log_sum) = softmax_row::<T, ISA>(scores, nk, seen.row(start + r, nk));
        }
    }
}

/// As [`super::backward`]. `None`: the elements are not f32.
pub(super) fn backward<T: Real>(
    packed: &mut Packed,
    scratch: &mut Scratch<T>,
    sizes: Sizes,
    [q, k, v]: [Rows<'_, T>; 3],
    (gradient, log_sums): (Rows<'_, T>, &[T]),
    seen: Seen<'_>,
) -> Option<()> {
    let Sizes { nq, nk, size, .. } = sizes;
    let (tiles, row, padded) = (packed.tiles, scratch.row, sizes.padded_keys());
    let (keys, values) = (rows(k, 0..nk, size)?, rows(v, 0..nk, size)?);
    pack(tiles, &mut packed.keys_t, keys.t())?;
    pack(tiles, &mut packed.keys, keys)?;
    pack(tiles, &mut packed.values_t, values.t())?;
    for start in (0..nq).step_by(scratch.block) {
        let count = scratch.block.min(nq - start);
        let store = if start == 0 { Store::Write } else { Store::Add };
        let queries = rows(q, start..start + count, size)?;
        let outward = rows(gradient, start..start + count, size)?;
        pack(tiles, &mut packed.queries, queries)?;
        pack(tiles, &mut packed.outward, outward)?;
        let Scratch { scores, slopes, .. } = scratch;
        multiply(tiles, queries, &packed.keys_t, scores, padded, Store::Write)?;
        multiply(tiles, outward, &packed.values_t, slopes, padded, Store::Write)?;
        slopes_block(scores, slopes, &log_sums[start..start + count], sizes, start, seen);
        let (weights, slopes) = (held(scores, (count, nk), padded)?, held(slopes, (count, nk), padded)?);
        multiply(tiles, weights.t(), &packed.outward, &mut scratch.values_gradient, row, store)?;
        multiply(tiles, slopes, &packed.keys, &mut scratch.out[start * row..], row, Store::Write)?;
        multiply(tiles, slopes.t(), &packed.queries, &mut scratch.keys_gradient, row, store)?;
    }
    Some(())
}

vectorised! {
    /// Products of queries and keys to probabilities, and gradients of the probabilities to those of the products.
    fn slopes_block / slopes_block_at<T, ISA>(
        scores: &mut [T], slopes: &mut [T], log_sums: &[T], sizes: Sizes, start: usize, seen: Seen<'_>,
    ) {
        let (nk, padded, scale) = (sizes.nk, sizes.padded_keys(), sizes.scale::<T>());
        let rows = scores.chunks_exact_mut(padded).zip(slopes.chunks_exact_mut(padded)).zip(log_sums);
        for (r, ((scores, slopes), log_sum)) in rows.enumerate() {
            scores[..nk].iter_mut().for_each(|score| *score *= scale);
            probabilities_row::<T, ISA>(scores, nk, seen.row(start + r, nk), *log_sum);
            slopes[nk..].fill(T::zero());
            let mean = dot::<T, ISA>(scores, slopes);
            for (slope, probability) in slopes.iter_mut().zip(scores.iter()) {
                *slope = *probability * (*slope - mean) * scale;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::block;
    use crate::check::{output_and_gradients, same_for_any_threads, sample};
    use crate::heads::Sizes;
    use crate::tiles::{Path, Split, Tiles};
    use crate::{PrecisionScope, RankRule, Visibility, attention, reference};
    use candle_core::{DType, Device, Tensor};

    /// batch, nq, nk, heads, size.
    type Case = (usize, usize, usize, usize, usize);

    fn inputs((batch, nq, nk, heads, size): Case) -> Vec<Tensor> {
        let tokens = |seed, n| sample(seed, (batch, n, heads * size)).unwrap();
        vec![tokens(1, nq), tokens(2, nk), tokens(3, nk)]
    }

    fn run(case: Case, visibility: &Visibility, tiles: Option<Tiles>) -> Vec<Tensor> {
        let _scope = PrecisionScope::of(tiles);
        let run = |v: &[Tensor]| attention(&v[0], &v[1], &v[2], case.3, visibility);
        output_and_gradients(&inputs(case), DType::F32, run).unwrap()
    }

    fn exact(case: Case, visibility: &Visibility) -> Vec<Tensor> {
        let run = |v: &[Tensor]| reference::attention(&v[0], &v[1], &v[2], case.3, visibility);
        output_and_gradients(&inputs(case), DType::F64, run).unwrap()
    }

    /// Relative L2 distance.
    fn apart(got: &Tensor, exact: &Tensor) -> f64 {
        let flat = |x: &Tensor| x.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
        let (got, exact) = (flat(got), flat(exact));
        let off: f64 = got.iter().zip(&exact).map(|(a, b)| (a - b).powi(2)).sum();
        (off / exact.iter().map(|x| x * x).sum::<f64>()).sqrt()
    }

    fn visibilities((batch, nq, nk, ..): Case) -> Vec<Visibility> {
        let ranks = |seed: usize, n: usize| (0..n).map(|i| ((i + seed) * (i + 5) / 3 % 6) as u32).collect::<Vec<_>>();
        let seen = (0..batch * nq * nk).map(|i| u8::from((i * i + i / 3) % 3 != 0)).collect();
        vec![
            Visibility::All,
            Visibility::Mask(Tensor::from_vec(seen, (batch, nq, nk), &Device::Cpu).unwrap()),
            Visibility::Ranks { queries: ranks(1, nq), keys: ranks(2, nk), rule: RankRule::AtMost },
            Visibility::Ranks { queries: ranks(1, batch * nq), keys: ranks(2, nk), rule: RankRule::Below },
        ]
    }

    #[test]
    fn every_path_is_near_f64_for_ragged_sizes_and_several_blocks() {
        // The last two take more than one block of queries.
        for case in [
            (2, 3, 5, 2, 4),
            (1, 33, 65, 1, 16),
            (2, 70, 31, 3, 40),
            (1, 33, 256, 1, 16),
            (1, 150, 1100, 1, 8),
            (1, 700, 40, 1, 20),
        ] {
            for visibility in visibilities(case) {
                let exact = exact(case, &visibility);
                for path in Path::available() {
                    let tiles = Tiles::new(path, Split::One).unwrap();
                    for (i, (got, exact)) in run(case, &visibility, Some(tiles)).iter().zip(&exact).enumerate() {
                        let apart = apart(got, exact);
                        assert!(apart < 2e-2, "{case:?} {path:?} tensor {i}: {apart}");
                        assert!(apart > 1e-6, "{case:?} {path:?} tensor {i}: native products");
                    }
                }
            }
        }
    }

    #[test]
    fn in_parts_heads_are_native() {
        let (case, bits) = ((2, 70, 31, 3, 40), |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap());
        for visibility in visibilities(case) {
            let native = run(case, &visibility, None);
            for split in [Split::Two, Split::Three] {
                let parts = run(case, &visibility, Some(Tiles::new(Path::best(), split).unwrap()));
                assert!(parts.iter().zip(&native).all(|(a, b)| bits(a) == bits(b)), "{split:?}, {visibility:?}");
            }
        }
    }

    #[test]
    fn blocks_depend_on_the_sizes_alone() {
        let sizes = |nq, nk| Sizes { batch: 1, nq, nk, heads: 1, size: 8 };
        assert_eq!(block(sizes(212, 212)), 224, "all of a usual image");
        assert_eq!(block(sizes(1024, 1024)), 64);
        assert_eq!(block(sizes(5, 100_000)), 32);
        assert_eq!(block(sizes(0, 0)), 1);
    }

    #[test]
    fn threads_do_not_change_a_bit() {
        let case = (5, 70, 33, 3, 24);
        let tiles = Tiles::new(Path::best(), Split::One).unwrap();
        same_for_any_threads(|| Ok(run(case, &Visibility::All, Some(tiles)))).unwrap();
    }

    #[test]
    fn nan_stays_in_its_image_and_head_and_nothing_seen_gives_zero() {
        let tiles = Some(Tiles::new(Path::best(), Split::One).unwrap());
        let mut values = inputs((2, 3, 3, 2, 4))[0].flatten_all().unwrap().to_vec1::<f64>().unwrap();
        values[0] = f64::NAN; // Image 0, token 0, head 0.
        let q = Tensor::from_vec(values, (2, 3, 8), &Device::Cpu).unwrap().to_dtype(DType::F32).unwrap();
        let k = inputs((2, 3, 3, 2, 4))[1].to_dtype(DType::F32).unwrap();
        let _scope = PrecisionScope::of(tiles);
        let y = attention(&q, &k, &k, 2, &Visibility::All).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert!(y[..4].iter().all(|value| value.is_nan()) && y[4..].iter().all(|value| value.is_finite()));
        let ranks = Visibility::Ranks { queries: vec![0, 2, 2], keys: vec![0, 1, 2], rule: RankRule::Below };
        let y = attention(&k, &k, &k, 2, &ranks).unwrap().to_vec3::<f32>().unwrap();
        assert_eq!(y[0][0], [0.0; 8]);
    }
}
