//! Rows to columns, in squares that registers hold.

use crate::simd::{AVX512, Real};
#[cfg(target_arch = "x86_64")]
use std::{
    arch::x86_64::{
        __m512i, _mm512_shuffle_i32x4, _mm512_unpackhi_epi32, _mm512_unpackhi_epi64, _mm512_unpacklo_epi32,
        _mm512_unpacklo_epi64,
    },
    mem::transmute,
};

/// Rows and columns of a square.
pub(crate) const SIDE: usize = 16;

/// Numbers that are turned together.
#[repr(C, align(64))]
pub(crate) struct Square<T>(pub(crate) [[T; SIDE]; SIDE]);

impl<T: Real> Square<T> {
    pub(crate) fn zero() -> Self {
        Self([[T::zero(); SIDE]; SIDE])
    }

    /// Writes rows as columns, with the instructions that the code around it is compiled for.
    #[inline(always)]
    pub(crate) fn turn<const ISA: u8>(&self, to: &mut Self) {
        #[cfg(target_arch = "x86_64")]
        if ISA == AVX512
            && let (Some(from), Some(to)) = (T::singles(self.0.as_flattened()), T::singles_mut(to.0.as_flattened_mut()))
        {
            // SAFETY: code for these instructions runs only on processors that have them; f32 and words of 32 bits have one
            // layout, and the slices are whole squares.
            #[allow(unsafe_code)]
            return unsafe { turn_words(&*from.as_ptr().cast(), &mut *to.as_mut_ptr().cast()) };
        }
        for (row, values) in self.0.iter().enumerate() {
            for (column, value) in values.iter().enumerate() {
                to.0[column][row] = *value;
            }
        }
    }
}

/// Writes the rows of 16 x 16 words as columns. Without a loop, so that they stay in registers.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
#[inline]
pub(crate) fn turn_words(from: &[[u32; SIDE]; SIDE], to: &mut [[u32; SIDE]; SIDE]) {
    // SAFETY: a row and a register are 64 bytes, without padding.
    #[allow(unsafe_code)]
    let x: [__m512i; SIDE] = unsafe { transmute(*from) };
    // Of four rows each, columns 0, 4, 8 and 12 side by side, then 1, 5, 9 and 13, and so on.
    let a = turn_four([x[0], x[1], x[2], x[3]]);
    let b = turn_four([x[4], x[5], x[6], x[7]]);
    let c = turn_four([x[8], x[9], x[10], x[11]]);
    let d = turn_four([x[12], x[13], x[14], x[15]]);
    let (first, second) = (gather_lanes([a[0], b[0], c[0], d[0]]), gather_lanes([a[1], b[1], c[1], d[1]]));
    let (third, fourth) = (gather_lanes([a[2], b[2], c[2], d[2]]), gather_lanes([a[3], b[3], c[3], d[3]]));
    let columns = [
        [first[0], second[0], third[0], fourth[0]],
        [first[1], second[1], third[1], fourth[1]],
        [first[2], second[2], third[2], fourth[2]],
        [first[3], second[3], third[3], fourth[3]],
    ];
    // SAFETY: as above.
    #[allow(unsafe_code)]
    let turned = unsafe { transmute::<[[__m512i; 4]; 4], [[u32; SIDE]; SIDE]>(columns) };
    *to = turned;
}

/// Four rows -> four registers: lane l of register c has column 4 l + c.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
#[inline]
fn turn_four([a, b, c, d]: [__m512i; 4]) -> [__m512i; 4] {
    let (low, high) = (_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
    let (low_next, high_next) = (_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
    [
        _mm512_unpacklo_epi64(low, low_next),
        _mm512_unpackhi_epi64(low, low_next),
        _mm512_unpacklo_epi64(high, high_next),
        _mm512_unpackhi_epi64(high, high_next),
    ]
}

/// Lane l of four registers, side by side, for each l.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
#[inline]
fn gather_lanes([a, b, c, d]: [__m512i; 4]) -> [__m512i; 4] {
    const EVEN: i32 = 0b10_00_10_00;
    const ODD: i32 = 0b11_01_11_01;
    let (even, even_next) = (_mm512_shuffle_i32x4::<EVEN>(a, b), _mm512_shuffle_i32x4::<EVEN>(c, d));
    let (odd, odd_next) = (_mm512_shuffle_i32x4::<ODD>(a, b), _mm512_shuffle_i32x4::<ODD>(c, d));
    [
        _mm512_shuffle_i32x4::<EVEN>(even, even_next),
        _mm512_shuffle_i32x4::<EVEN>(odd, odd_next),
        _mm512_shuffle_i32x4::<ODD>(even, even_next),
        _mm512_shuffle_i32x4::<ODD>(odd, odd_next),
    ]
}

#[cfg(test)]
mod tests {
    use super::{SIDE, Square};
    use crate::simd::{Real, vectorised};

    vectorised! {
        fn turn_at<T, ISA>(from: &Square<T>, to: &mut Square<T>) {
            from.turn::<ISA>(to);
        }
    }

    #[test]
    fn rows_become_columns() {
        fn check<T: Real>() {
            let number = |row: usize, column: usize| T::of((row * SIDE + column) as f64);
            let from = Square(std::array::from_fn(|row| std::array::from_fn(|column| number(row, column))));
            for level in 0..=crate::simd::level() {
                let mut to = Square::zero();
                turn_at(level, &from, &mut to);
                for (row, values) in to.0.iter().enumerate() {
                    assert_eq!(*values, std::array::from_fn(|column| number(column, row)), "level {level}, row {row}");
                }
            }
        }
        check::<f32>();
        check::<f64>();
    }
}
