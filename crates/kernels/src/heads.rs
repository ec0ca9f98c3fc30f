//! Attention inside one head of one image: small products and a softmax, in scratch memory that stays in the cache.
//!
//! Queries go in blocks, so nothing of size nq * nk is held but a table of what is visible, where the caller has one. The
//! blocks do not depend on the number of threads.

mod tiled;

use crate::cpu::Real;
use crate::simd::{AVX512, dot, largest, sum_of, vectorised};
use crate::tiles::Tiles;
use crate::turn::{SIDE, Square};
use crate::visibility::{Seen, SeenRow};

/// Rows of scores held at a time.
const BLOCK: usize = 64;
/// The same where tokens are sorted by rank and so few that a block of the usual size would see most of them.
const SORTED_BLOCK: usize = 24;
/// Most keys that are so few.
const FEW_KEYS: usize = 256;
/// Columns of a register tile; matrices in scratch are padded to a multiple of it.
const WIDTH: usize = 16;

/// Sizes of one call of attention.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    pub(crate) batch: usize,
    pub(crate) nq: usize,
    pub(crate) nk: usize,
    pub(crate) heads: usize,
    /// Channels of a head.
    pub(crate) size: usize,
}

impl Sizes {
    /// Channels of a token.
    pub(crate) fn dim(&self) -> usize {
        self.heads * self.size
    }

    /// Multiply-adds of a forward pass.
    pub(crate) fn work(&self) -> usize {
        2 * self.batch * self.nq * self.nk * self.dim()
    }

    fn scale<T: Real>(&self) -> T {
        T::of(1.0 / (self.size.max(1) as f64).sqrt())
    }

    fn padded_size(&self) -> usize {
        self.size.next_multiple_of(WIDTH)
    }

    /// Elements from one row of "[.., nk]" in scratch to the next. Never whole kilobytes: lines that far apart share few
    /// places in the first cache, and a column of a block takes 64 of them.
    fn padded_keys(&self) -> usize {
        let padded = self.nk.next_multiple_of(WIDTH);
        if padded.is_multiple_of(256) { padded + WIDTH } else { padded }
    }
}

/// Scratch matrices of one head. `block` is [`BLOCK`], or another number where tiles multiply. Rows of "[.., size]" are padded to a multiple of the tile; padding is never written,
/// so it stays zero.
pub(crate) struct Scratch<T> {
    queries: Vec<T>,  // [block, size]
    keys: Vec<T>,     // [nk, size]
    keys_t: Vec<T>,   // [size, nk]
    values: Vec<T>,   // [nk, size]
    values_t: Vec<T>, // [size, nk]
    scores: Vec<T>,   // [block, nk]
    slopes: Vec<T>,   // [block, nk]
    outward: Vec<T>,  // [block, size], gradient of the output
    /// Output of the forward pass or gradient of the queries, [nq, row].
    pub(crate) out: Vec<T>,
    /// Gradient of the keys, [nk, row].
    pub(crate) keys_gradient: Vec<T>,
    /// Gradient of the values, [nk, row].
    pub(crate) values_gradient: Vec<T>,
    /// Logarithm of each row's softmax denominator, [nq]; infinite for a query that sees nothing.
    pub(crate) log_sums: Vec<T>,
    /// Elements from one row of the three results to the next.
    pub(crate) row: usize,
    /// Rows of scores held at a time.
    block: usize,
    shares: Vec<T>, // [block]
    /// What multiplies, unless it is native code.
    packed: Option<tiled::Packed>,
}

impl<T: Real> Scratch<T> {
    /// For forward passes, with the products of `tiles`, of rows that may come `sorted` by rank.
    pub(crate) fn forward(sizes: Sizes, tiles: Option<Tiles>, sorted: bool) -> Self {
        let (size, keys) = (sizes.padded_size(), sizes.padded_keys());
        let zeros = |len: usize| vec![T::zero(); len];
        // What native products read; tiles pack their operands from where they lie.
        let native = |len: usize| zeros(if tiles.is_none() { len } else { 0 });
        let native_block = if sorted && sizes.nk <= FEW_KEYS { SORTED_BLOCK } else { BLOCK };
        let block = tiles.map_or(native_block, |_| tiled::block(sizes));
        Self {
            queries: native(BLOCK * size),
            keys: Vec::new(),
            keys_t: native(sizes.size * keys),
            values: native(sizes.nk * size),
            values_t: Vec::new(),
            scores: zeros(block * keys),
            slopes: Vec::new(),
            outward: Vec::new(),
            out: zeros(sizes.nq * size),
            keys_gradient: Vec::new(),
            values_gradient: Vec::new(),
            log_sums: zeros(sizes.nq),
            row: size,
            block,
            shares: zeros(block),
            packed: tiles.map(tiled::Packed::new),
        }
    }

    /// For backward passes, as [`Scratch::forward`].
    pub(crate) fn backward(sizes: Sizes, tiles: Option<Tiles>, sorted: bool) -> Self {
        let (size, keys) = (sizes.padded_size(), sizes.padded_keys());
        let zeros = |len: usize| vec![T::zero(); len];
        let native = |len: usize| zeros(if tiles.is_none() { len } else { 0 });
        let forward = Self::forward(sizes, tiles, sorted);
        Self {
            keys: native(sizes.nk * size),
            values: Vec::new(),
            values_t: native(sizes.size * keys),
            slopes: zeros(forward.block * keys),
            outward: native(BLOCK * size),
            keys_gradient: zeros(sizes.nk * size),
            values_gradient: zeros(sizes.nk * size),
            log_sums: Vec::new(),
            ..forward
        }
    }
}

/// Rows of one head inside a tensor: that of token t starts at `t * stride`.
#[derive(Clone, Copy)]
pub(crate) struct Rows<'a, T> {
    pub(crate) values: &'a [T],
    pub(crate) stride: usize,
    /// The token of each row, where they come in an order of their own. Native products alone read this.
    pub(crate) order: Option<&'a [u32]>,
}

impl<'a, T: Real> Rows<'a, T> {
    /// The token of row i.
    #[inline(always)]
    fn token(&self, i: usize) -> usize {
        self.order.map_or(i, |order| order[i] as usize)
    }

    #[inline(always)]
    fn row(&self, i: usize, size: usize) -> &'a [T] {
        &self.values[self.token(i) * self.stride..][..size]
    }
}

/// Output and log-sums of one head, into the scratch.
pub(crate) fn forward<T: Real>(scratch: &mut Scratch<T>, sizes: Sizes, inputs: [Rows<'_, T>; 3], seen: Seen<'_>) {
    if let Some(mut packed) = scratch.packed.take() {
        let done = tiled::forward(&mut packed, scratch, sizes, inputs, seen);
        assert!(done.is_some(), "tiles are chosen for f32 alone");
        scratch.packed = Some(packed);
        return;
    }
    let [q, k, v] = inputs;
    native_forward(scratch, sizes, q, k, v, seen);
}

/// Gradients of one head, into the scratch. `given`: the gradient of the output, and the log-sums, `[nq]`.
pub(crate) fn backward<T: Real>(
    scratch: &mut Scratch<T>,
    sizes: Sizes,
    inputs: [Rows<'_, T>; 3],
    given: (Rows<'_, T>, &[T]),
    seen: Seen<'_>,
) {
    if let Some(mut packed) = scratch.packed.take() {
        let done = tiled::backward(&mut packed, scratch, sizes, inputs, given, seen);
        assert!(done.is_some(), "tiles are chosen for f32 alone");
        scratch.packed = Some(packed);
        return;
    }
    let [q, k, v] = inputs;
    native_backward(scratch, sizes, q, k, v, given.0, given.1, seen);
}

vectorised! {
    fn native_forward / native_forward_at<T, ISA>(
        scratch: &mut Scratch<T>, sizes: Sizes, q: Rows<'_, T>, k: Rows<'_, T>, v: Rows<'_, T>, seen: Seen<'_>,
    ) {
        let Sizes { nq, nk, size, .. } = sizes;
        let (row, padded) = (scratch.row, sizes.padded_keys());
        load_transposed::<T, ISA>(&mut scratch.keys_t, k, nk, size, padded);
        load(&mut scratch.values, v, 0..nk, size, row, T::one());
        for start in (0..nq).step_by(scratch.block) {
            let rows = scratch.block.min(nq - start);
            let leading = seen.leading(start..start + rows, nk);
            let columns = leading.next_multiple_of(WIDTH);
            load(&mut scratch.queries, q, start..start + rows, size, row, sizes.scale());
            let queries = Left::Rows(&scratch.queries, row);
            multiply_at(ISA, &mut scratch.scores, queries, (&scratch.keys_t, padded), (rows, size, columns), false);
            let out = &mut scratch.out[start * row..];
            let mut shares = [T::zero(); BLOCK];
            for r in 0..rows {
                let scores = &mut scratch.scores[r * padded..][..columns];
                let (share, log_sum) = softmax_row::<T, ISA>(scores, leading, seen.row(start + r, nk));
                shares[r] = share;
                scratch.log_sums[q.token(start + r)] = log_sum;
            }
            let weights = Left::Rows(&scratch.scores, padded);
            multiply_at(ISA, out, weights, (&scratch.values, row), (rows, leading, row), false);
            for (out, share) in out.chunks_exact_mut(row.max(1)).zip(&shares[..rows]) {
                for value in out {
                    *value *= *share;
                }
            }
        }
    }
}

vectorised! {
    fn native_backward / native_backward_at<T, ISA>(
        scratch: &mut Scratch<T>, sizes: Sizes, q: Rows<'_, T>, k: Rows<'_, T>, v: Rows<'_, T>,
        gradient: Rows<'_, T>, log_sums: &[T], seen: Seen<'_>,
    ) {
        let Sizes { nq, nk, size, .. } = sizes;
        let (row, padded) = (scratch.row, sizes.padded_keys());
        load(&mut scratch.keys, k, 0..nk, size, row, T::one());
        load_transposed::<T, ISA>(&mut scratch.keys_t, k, nk, size, padded);
        load_transposed::<T, ISA>(&mut scratch.values_t, v, nk, size, padded);
        scratch.keys_gradient.fill(T::zero());
        scratch.values_gradient.fill(T::zero());
        for start in (0..nq).step_by(scratch.block) {
            let rows = scratch.block.min(nq - start);
            let leading = seen.leading(start..start + rows, nk);
            let columns = leading.next_multiple_of(WIDTH);
            load(&mut scratch.queries, q, start..start + rows, size, row, sizes.scale());
            load(&mut scratch.outward, gradient, start..start + rows, size, row, T::one());
            let Scratch { scores, slopes, queries, outward, .. } = scratch;
            let (keys_t, values_t) = ((&scratch.keys_t[..], padded), (&scratch.values_t[..], padded));
            multiply_at(ISA, scores, Left::Rows(queries, row), keys_t, (rows, size, columns), false);
            multiply_at(ISA, slopes, Left::Rows(outward, row), values_t, (rows, size, columns), false);
            for r in 0..rows {
                let scores = &mut scores[r * padded..][..columns];
                let log_sum = log_sums[q.token(start + r)];
                probabilities_row::<T, ISA>(scores, leading, seen.row(start + r, nk), log_sum);
            }
            let weights = Left::Columns(scores, padded);
            multiply_at(ISA, &mut scratch.values_gradient, weights, (outward, row), (leading, rows, row), true);
            for r in 0..rows {
                let (scores, slopes) = (&scores[r * padded..][..columns], &mut slopes[r * padded..][..columns]);
                let mean = dot::<T, ISA>(scores, slopes);
                for (slope, probability) in slopes.iter_mut().zip(scores) {
                    *slope = *probability * (*slope - mean);
                }
            }
            let out = &mut scratch.out[start * row..];
            multiply_at(ISA, out, Left::Rows(slopes, padded), (&scratch.keys, row), (rows, leading, row), false);
            let scale = sizes.scale::<T>();
            out[..rows * row].iter_mut().for_each(|value| *value *= scale);
            let slopes = Left::Columns(slopes, padded);
            multiply_at(ISA, &mut scratch.keys_gradient, slopes, (queries, row), (leading, rows, row), true);
        }
    }
}

/// Hides what is not visible, and the padding.
#[inline(always)]
fn hide<T: Real>(scores: &mut [T], nk: usize, seen: SeenRow<'_>) {
    let low = T::of(f64::NEG_INFINITY);
    scores[nk..].fill(low);
    match seen {
        SeenRow::All => {}
        SeenRow::Pairs(visible) => {
            for (score, visible) in scores.iter_mut().zip(visible) {
                *score = if *visible == 0 { low } else { *score };
            }
        }
        SeenRow::Rank(rank, [first, last]) => {
            // No short circuit: a branch would keep this loop out of the vector registers.
            for (score, (first, last)) in scores.iter_mut().zip(first.iter().zip(last)) {
                *score = if (*first <= rank) & (rank <= *last) { *score } else { low };
            }
        }
    }
}

/// Turns scores into weights; gives 1 / (sum of the weights) and the logarithm of the softmax denominator.
#[inline(always)]
fn softmax_row<T: Real, const ISA: u8>(scores: &mut [T], nk: usize, seen: SeenRow<'_>) -> (T, T) {
    hide(scores, nk, seen);
    let most = largest(scores);
    // Visible scores may be minus infinity or NaN, so that alone does not say that nothing is seen.
    if most == T::of(f64::NEG_INFINITY) && seen.nothing(nk) {
        // An infinite denominator makes every probability of the backward pass 0.
        scores.fill(T::zero());
        return (T::zero(), T::of(f64::INFINITY));
    }
    for score in scores.iter_mut() {
        *score = (*score - most).exponential::<ISA>();
    }
    let sum = sum_of(scores);
    (T::one() / sum, most + sum.logarithm())
}

#[inline(always)]
fn probabilities_row<T: Real, const ISA: u8>(scores: &mut [T], nk: usize, seen: SeenRow<'_>, log_sum: T) {
    hide(scores, nk, seen);
    for score in scores.iter_mut() {
        *score = (*score - log_sum).exponential::<ISA>();
    }
}

/// Copies rows, scaled, to rows of `padded` elements.
#[inline(always)]
fn load<T: Real>(to: &mut [T], from: Rows<'_, T>, rows: std::ops::Range<usize>, size: usize, padded: usize, scale: T) {
    for (to, i) in to.chunks_exact_mut(padded.max(1)).zip(rows) {
        for (to, from) in to.iter_mut().zip(from.row(i, size)) {
            *to = *from * scale;
        }
    }
}

/// Copies rows to columns; a row of the result has `padded` elements.
#[inline(always)]
fn load_transposed<T: Real, const ISA: u8>(to: &mut [T], from: Rows<'_, T>, rows: usize, size: usize, padded: usize) {
    let (mut square, mut turned) = (Square::zero(), Square::zero());
    for top in (0..rows).step_by(SIDE) {
        let high = SIDE.min(rows - top);
        for left in (0..size).step_by(SIDE) {
            let wide = SIDE.min(size - left);
            for row in 0..high {
                let from = &from.row(top + row, size)[left..left + wide];
                match <&[T; SIDE]>::try_from(from) {
                    Ok(whole) => square.0[row] = *whole,
                    Err(_) => square.0[row][..wide].copy_from_slice(from),
                }
            }
            square.turn::<ISA>(&mut turned);
            for column in 0..wide {
                to[(left + column) * padded + top..][..high].copy_from_slice(&turned.0[column][..high]);
            }
        }
    }
}

/// The left factor of a small product, [m, k].
#[derive(Clone, Copy)]
enum Left<'a, T> {
    /// Row-major with rows of so many elements.
    Rows(&'a [T], usize),
    /// The transpose of a row-major matrix with rows of so many elements.
    Columns(&'a [T], usize),
}

vectorised! {
    /// `out = a b`, or `out += a b` if `add`. out: [m, n], a: [m, k], b: [k, n], with n a multiple of the tile's width. Beside
    /// `b` stands how far its rows, and those of `out`, lie apart.
    fn multiply_at<T, ISA>(
        out: &mut [T], a: Left<'_, T>, b: (&[T], usize), size: (usize, usize, usize), add: bool,
    ) {
        let (m, k, n) = size;
        let mut j = 0;
        // Of 32 registers of 16 f32, 24 hold sums: each number of `b` that is read serves twelve rows, each of `a` two columns.
        while ISA == AVX512 && size_of::<T>() == 4 && j + 2 * WIDTH <= n {
            rows_at::<T, ISA, 12, { 2 * WIDTH }>(out, a, b, j, (m, k), add);
            j += 2 * WIDTH;
        }
        while j < n {
            // 8 of 32 registers, or 8 of 16 where two hold 16 numbers.
            if ISA == AVX512 {
                rows_at::<T, ISA, 8, WIDTH>(out, a, b, j, (m, k), add);
            } else {
                rows_at::<T, ISA, 4, WIDTH>(out, a, b, j, (m, k), add);
            }
            j += WIDTH;
        }
    }
}

/// `W` columns of the product from column `j` on: `R` rows at a time, then four, then one.
#[inline(always)]
fn rows_at<T: Real, const ISA: u8, const R: usize, const W: usize>(
    out: &mut [T],
    a: Left<'_, T>,
    b: (&[T], usize),
    j: usize,
    (m, k): (usize, usize),
    add: bool,
) {
    let mut i = 0;
    while i + R <= m {
        tile::<T, ISA, R, W>(out, a, b, (i, j), k, add);
        i += R;
    }
    while i + 4 <= m {
        tile::<T, ISA, 4, W>(out, a, b, (i, j), k, add);
        i += 4;
    }
    while i < m {
        tile::<T, ISA, 1, W>(out, a, b, (i, j), k, add);
        i += 1;
    }
}

/// `R` rows by `W` columns of the product, from row and column `at`.
#[inline(always)]
fn tile<T: Real, const ISA: u8, const R: usize, const W: usize>(
    out: &mut [T],
    a: Left<'_, T>,
    (b, step): (&[T], usize),
    at: (usize, usize),
    k: usize,
    add: bool,
) {
    let (i, j) = at;
    let mut sums = [[T::zero(); W]; R];
    // Both arms keep index arithmetic and bounds checks out of the innermost loops.
    match a {
        Left::Rows(values, apart) => {
            let rows: [&[T]; R] = std::array::from_fn(|r| &values[(i + r) * apart..][..k]);
            for p in 0..k {
                let right = &b[p * step + j..][..W];
                for r in 0..R {
                    add_scaled::<T, ISA, W>(&mut sums[r], rows[r][p], right);
                }
            }
        }
        Left::Columns(values, apart) => {
            for p in 0..k {
                let (left, right) = (&values[p * apart + i..][..R], &b[p * step + j..][..W]);
                for r in 0..R {
                    add_scaled::<T, ISA, W>(&mut sums[r], left[r], right);
                }
            }
        }
    }
    for r in 0..R {
        let out = &mut out[(i + r) * step + j..][..W];
        for l in 0..W {
            out[l] = if add { out[l] + sums[r][l] } else { sums[r][l] };
        }
    }
}

#[inline(always)]
fn add_scaled<T: Real, const ISA: u8, const W: usize>(sums: &mut [T; W], factor: T, row: &[T]) {
    for l in 0..W {
        sums[l] = T::fused::<ISA>(factor, row[l], sums[l]);
    }
}

#[cfg(test)]
mod tests {
    use super::{Rows, Scratch, Sizes, native_backward_at, native_forward_at};
    use crate::levels::{same_on_all, values};
    use crate::visibility::Seen;

    #[test]
    fn every_instruction_set_gives_the_same_up_to_rounding() {
        let sizes = Sizes { batch: 1, nq: 77, nk: 29, heads: 1, size: 20 };
        let (q, k, v) = (values(1, 77 * 20), values(2, 29 * 20), values(3, 29 * 20));
        let [q, k, v] = [&q, &k, &v].map(|values| Rows { values, stride: 20, order: None });
        let visible: Vec<u8> = (0..77 * 29).map(|i| u8::from(i % 5 != 0)).collect();
        let ranks: Vec<u32> = (0..77).map(|i| i * 3 % 11).collect();
        for seen in [Seen::Pairs(&visible), Seen::Ranks(&ranks, [&ranks[1..30], &[9; 29]])] {
            same_on_all(2e-6, |level| {
                let mut scratch = Scratch::forward(sizes, None, false);
                native_forward_at(level, &mut scratch, sizes, q, k, v, seen);
                [scratch.out, scratch.log_sums.into_iter().map(|sum| sum.min(99.0)).collect()].concat()
            });
            let log_sums = vec![3.0; 77];
            same_on_all(2e-6, |level| {
                let mut scratch = Scratch::backward(sizes, None, false);
                native_backward_at(level, &mut scratch, sizes, q, k, v, q, &log_sums, seen);
                [scratch.out, scratch.keys_gradient, scratch.values_gradient].concat()
            });
        }
    }
}
