//! Packing and multiplying in plain Rust. With AVX2 the same code is compiled for it.
//!
//! The product of two bf16 is exact in f32 (unless it leaves f32's range), so a fused and a plain multiply-add agree.

use super::lanes::{DEPTH, Job, Kernel, Lanes, Line, Operands, PAIRS, Tile};
use super::matrix::Matrix;
use super::pack;
use std::ops::Range;

/// With `FUSED`, for processors with AVX2 and fused multiply-add.
#[derive(Clone, Copy)]
pub(super) struct Portable<const FUSED: bool>(());

impl Portable<false> {
    pub(super) const ANY: Self = Self(());
}

impl Portable<true> {
    #[cfg(target_arch = "x86_64")]
    pub(super) fn detect() -> Option<Self> {
        (is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")).then_some(Self(()))
    }

    #[cfg(not(target_arch = "x86_64"))]
    pub(super) fn detect() -> Option<Self> {
        None
    }
}

/// The nearest bf16, ties to even, in the low half. NaN stays NaN, a denormal becomes zero of its sign: so do the
/// instructions of the other paths.
#[inline(always)]
pub(super) fn round(x: f32) -> u32 {
    let bits = x.to_bits();
    let near = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    let near = if bits & 0x7f80_0000 == 0 { bits >> 16 & 0x8000 } else { near };
    if bits & 0x7fff_ffff > 0x7f80_0000 { bits >> 16 | 0x40 } else { near }
}

/// The bf16 in the low half.
#[inline(always)]
pub(super) fn first(pair: u32) -> f32 {
    f32::from_bits(pair << 16)
}

/// The bf16 in the high half.
#[inline(always)]
pub(super) fn second(pair: u32) -> f32 {
    f32::from_bits(pair & 0xffff_0000)
}

impl<const FUSED: bool> Lanes for Portable<FUSED> {
    type Vector = [f32; PAIRS];

    #[inline(always)]
    fn enter(self, job: impl Job) {
        #[cfg(target_arch = "x86_64")]
        if FUSED {
            #[target_feature(enable = "avx2,fma")]
            fn avx2(job: impl Job) {
                job.run();
            }
            // SAFETY: `detect` found both.
            #[allow(unsafe_code)]
            return unsafe { avx2(job) };
        }
        job.run();
    }

    #[inline(always)]
    fn load(self, values: &[f32]) -> [f32; PAIRS] {
        match values.first_chunk() {
            Some(values) => *values,
            None => std::array::from_fn(|i| values.get(i).copied().unwrap_or(0.0)),
        }
    }

    #[inline(always)]
    fn rest(self, x: [f32; PAIRS]) -> [f32; PAIRS] {
        x.map(|x| {
            let near = first(round(x));
            if near.abs() < f32::INFINITY { x - near } else { 0.0 }
        })
    }

    #[inline(always)]
    fn in_order(self, low: [f32; PAIRS], high: [f32; PAIRS]) -> Line {
        let (low, high) = (low.map(round), high.map(round));
        Line(std::array::from_fn(|i| {
            let half = if i < PAIRS / 2 { &low } else { &high };
            let i = 2 * (i % (PAIRS / 2));
            half[i] | half[i + 1] << 16
        }))
    }

    #[inline(always)]
    fn zipped(self, a: [f32; PAIRS], b: [f32; PAIRS]) -> Line {
        Line(std::array::from_fn(|i| round(a[i]) | round(b[i]) << 16))
    }

    #[inline(always)]
    fn transpose(self, from: &[Line; PAIRS], to: &mut [Line; PAIRS]) {
        for (i, line) in to.iter_mut().enumerate() {
            *line = Line(std::array::from_fn(|j| from[j].0[i]));
        }
    }
}

/// Rows of a tile, and of a group of packed A.
const GROUP: usize = 6;

impl<const FUSED: bool> Kernel for Portable<FUSED> {
    const ROWS: usize = GROUP;
    const GROUP: usize = GROUP;

    #[inline(always)]
    fn pack<const P: usize>(self, a: Matrix<'_>, rows: Range<usize>, block: &Range<usize>, to: &mut [Line]) {
        pack::rows::<Self, P, GROUP>(self, a, rows, block, to);
    }

    #[inline(always)]
    fn tile(self, operands: Operands<'_>, mut c: Tile<'_>) {
        operands.check(1, GROUP);
        for half in 0..c.columns().div_ceil(PAIRS) {
            match c.rows() {
                6 => columns_at::<6, FUSED>(&operands, half, &mut c, 0),
                4 => columns_at::<4, FUSED>(&operands, half, &mut c, 0),
                rows => (0..rows).for_each(|row| columns_at::<1, FUSED>(&operands, half, &mut c, row)),
            }
        }
    }
}

/// `ROWS` rows of C from row `top`, in one half of its columns.
#[inline(always)]
fn columns_at<const ROWS: usize, const FUSED: bool>(
    operands: &Operands<'_>,
    half: usize,
    c: &mut Tile<'_>,
    top: usize,
) {
    let (start, end) = (half * PAIRS, c.columns().min((half + 1) * PAIRS));
    let mut sum = [[0.0_f32; PAIRS]; ROWS];
    for (a_part, b_part) in operands.split.terms() {
        let a = &operands.a[a_part * operands.lines * GROUP + top..];
        let b = &operands.b[b_part * operands.lines * DEPTH..];
        for pair in 0..operands.pairs {
            let line = &b[pair / PAIRS * DEPTH + half * PAIRS + pair % PAIRS].0;
            // Second, then first: the order that the definition of `vdpbf16ps` gives.
            multiply::<ROWS, FUSED>(&mut sum, line, second, |row| a[pair / PAIRS * GROUP + row].0[pair % PAIRS]);
            multiply::<ROWS, FUSED>(&mut sum, line, first, |row| a[pair / PAIRS * GROUP + row].0[pair % PAIRS]);
        }
    }
    let add = c.add;
    for (row, sum) in sum.iter().enumerate() {
        if add {
            for (c, sum) in c.row(top + row)[start..end].iter_mut().zip(sum) {
                *c += sum;
            }
        } else {
            c.write(top + row, start, &sum[..end - start]);
        }
    }
}

#[inline(always)]
fn multiply<const ROWS: usize, const FUSED: bool>(
    sum: &mut [[f32; PAIRS]; ROWS],
    b: &[u32; PAIRS],
    widen: impl Fn(u32) -> f32 + Copy,
    a: impl Fn(usize) -> u32,
) {
    let b = b.map(widen);
    for (row, sum) in sum.iter_mut().enumerate() {
        let a = widen(a(row));
        for i in 0..PAIRS {
            sum[i] = if FUSED { a.mul_add(b[i], sum[i]) } else { a * b[i] + sum[i] };
        }
    }
}
