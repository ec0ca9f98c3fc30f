//! Packing and multiplying with AVX-512 and its bf16 instructions.

#![allow(unsafe_code)]

use super::lanes::{DEPTH, Job, Kernel, Lanes, Line, Operands, PAIRS, Tile};
use super::matrix::Matrix;
use super::pack;
use super::path::Path;
use crate::turn::turn_words;
use std::arch::x86_64::*;
use std::mem::transmute;
use std::ops::Range;

/// Proof that the processor has AVX-512 (F, BW, VL) and its bf16 instructions: every SAFETY note below means this.
#[derive(Clone, Copy)]
pub(super) struct Avx512(());

impl Avx512 {
    pub(super) fn detect() -> Option<Self> {
        Path::Avx512Bf16.is_available().then_some(Self(()))
    }
}

impl Lanes for Avx512 {
    type Vector = __m512;

    #[inline(always)]
    fn enter(self, job: impl Job) {
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16,avx2,fma")]
        fn inside(job: impl Job) {
            job.run();
        }
        // SAFETY: the token's; AVX-512 implies AVX2 and fused multiply-add.
        unsafe { inside(job) }
    }

    #[inline(always)]
    fn load(self, values: &[f32]) -> __m512 {
        // SAFETY: the token's; the mask admits no more elements than `values` has.
        unsafe {
            match values.len() {
                PAIRS.. => _mm512_loadu_ps(values.as_ptr()),
                len => _mm512_maskz_loadu_ps(mask(len), values.as_ptr()),
            }
        }
    }

    #[inline(always)]
    fn rest(self, x: __m512) -> __m512 {
        // SAFETY: the token's.
        unsafe {
            let near = _mm512_cvtpbh_ps(_mm512_cvtneps_pbh(x));
            let finite = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(_mm512_abs_ps(near), _mm512_set1_ps(f32::INFINITY));
            _mm512_maskz_sub_ps(finite, x, near)
        }
    }

    #[inline(always)]
    fn in_order(self, low: __m512, high: __m512) -> Line {
        // SAFETY: the token's; both types are 64 bytes without padding.
        unsafe { transmute(_mm512_cvtne2ps_pbh(high, low)) }
    }

    #[inline(always)]
    fn zipped(self, first: __m512, second: __m512) -> Line {
        const TURNS: [u16; DEPTH] = {
            let mut turns = [0; DEPTH];
            let mut i = 0;
            while i < DEPTH {
                turns[i] = (i / 2 + i % 2 * PAIRS) as u16;
                i += 1;
            }
            turns
        };
        // SAFETY: the token's; all types here are 64 bytes without padding.
        unsafe {
            let blocks: __m512i = transmute(_mm512_cvtne2ps_pbh(second, first));
            transmute(_mm512_permutexvar_epi16(transmute::<[u16; DEPTH], __m512i>(TURNS), blocks))
        }
    }

    #[inline(always)]
    fn transpose(self, from: &[Line; PAIRS], to: &mut [Line; PAIRS]) {
        // SAFETY: the token's; a line is 16 words without padding.
        unsafe { turn_words(&*from.as_ptr().cast(), &mut *to.as_mut_ptr().cast()) }
    }
}

#[inline(always)]
fn mask(len: usize) -> u16 {
    ((1_u32 << len.min(PAIRS)) - 1) as u16
}

/// Rows of a tile, and of a group of packed A.
const GROUP: usize = 12;

impl Kernel for Avx512 {
    /// 24 sums, two vectors of B and one of A: 27 of the 32 registers.
    const ROWS: usize = GROUP;
    const GROUP: usize = GROUP;

    #[inline(always)]
    fn pack<const P: usize>(self, a: Matrix<'_>, rows: Range<usize>, block: &Range<usize>, to: &mut [Line]) {
        pack::rows::<Self, P, GROUP>(self, a, rows, block, to);
    }

    #[inline(always)]
    fn tile(self, operands: Operands<'_>, mut c: Tile<'_>) {
        operands.check(1, GROUP);
        macro_rules! by_rows {
            ($($rows:literal)*) => {
                match (c.rows(), c.columns() <= PAIRS) {
                    // SAFETY: the token's; `check` has seen that many rows, and C has them.
                    $(($rows, false) => unsafe { multiply::<$rows, 2>(&operands, &mut c) },
                    ($rows, true) => unsafe { multiply::<$rows, 1>(&operands, &mut c) },)*
                    (rows, _) => unreachable!("{rows} rows in a tile"),
                }
            };
        }
        by_rows!(1 2 3 4 5 6 7 8 9 10 11 12);
    }
}

/// # Safety
/// `operands.check(1, GROUP)` passed and C has `ROWS` rows, no more than a group.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
unsafe fn multiply<const ROWS: usize, const HALVES: usize>(operands: &Operands<'_>, c: &mut Tile<'_>) {
    let columns = c.columns();
    let masks: [u16; HALVES] = std::array::from_fn(|half| mask(columns.saturating_sub(half * PAIRS)));
    let mut sum = [[_mm512_setzero_ps(); HALVES]; ROWS];
    for &(a_part, b_part) in operands.split.terms() {
        let a = operands.a[a_part * operands.lines * GROUP..].as_ptr().cast::<i32>();
        let b = operands.b[b_part * operands.lines * DEPTH..].as_ptr();
        for pair in 0..operands.pairs {
            let (line, pair) = (pair / PAIRS, pair % PAIRS);
            // SAFETY: `check` found 2 * PAIRS lines of B and GROUP of A for each line of this part.
            unsafe {
                let mut columns = [_mm512_setzero_si512(); HALVES];
                for (half, columns) in columns.iter_mut().enumerate() {
                    *columns = transmute::<Line, __m512i>(*b.add(line * DEPTH + half * PAIRS + pair));
                }
                let a = a.add(line * GROUP * PAIRS + pair);
                for (row, sum) in sum.iter_mut().enumerate() {
                    let a = transmute::<__m512i, __m512bh>(_mm512_set1_epi32(*a.add(row * PAIRS)));
                    for half in 0..HALVES {
                        sum[half] = _mm512_dpbf16_ps(sum[half], a, transmute::<__m512i, __m512bh>(columns[half]));
                    }
                }
            }
        }
    }
    let add = c.add;
    for (row, sum) in sum.iter().enumerate() {
        let c = c.at(row);
        for half in 0..HALVES {
            let c = c.wrapping_add(half * PAIRS);
            // SAFETY: the mask ends where the row does.
            unsafe {
                let old = if add { _mm512_maskz_loadu_ps(masks[half], c) } else { _mm512_setzero_ps() };
                _mm512_mask_storeu_ps(c, masks[half], _mm512_add_ps(old, sum[half]));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Avx512, Lanes, Line, PAIRS};
    use crate::tiles::portable::Portable;

    #[test]
    fn each_step_of_packing_gives_the_bits_of_plain_rust() {
        let (Some(lanes), plain) = (Avx512::detect(), Portable::ANY) else {
            return;
        };
        let values: Vec<f32> = (0..32).map(|i| i as f32 * 1.37 - 20.0).collect();
        for len in [0, 1, 3, 15, 16] {
            let (low, high) = (&values[..len], &values[16..]);
            assert_eq!(
                lanes.in_order(lanes.load(low), lanes.load(high)),
                plain.in_order(plain.load(low), plain.load(high))
            );
            assert_eq!(
                lanes.zipped(lanes.load(low), lanes.load(high)),
                plain.zipped(plain.load(low), plain.load(high))
            );
            let (rest, judge) = (lanes.rest(lanes.load(low)), plain.rest(plain.load(low)));
            assert_eq!(lanes.zipped(rest, rest), plain.zipped(judge, judge));
        }
        let square: [Line; PAIRS] = std::array::from_fn(|i| Line(std::array::from_fn(|j| (100 * i + j) as u32)));
        let (mut turned, mut judge) = ([Line::ZERO; PAIRS], [Line::ZERO; PAIRS]);
        lanes.transpose(&square, &mut turned);
        plain.transpose(&square, &mut judge);
        assert_eq!(turned, judge);
    }
}
