//! Vector code chosen at run time. [`vectorised!`] compiles one body three times - for AVX-512, for AVX2 with fused
//! multiply-add, and for the baseline - and picks the best the processor has; [`Real`] holds the elementary functions
//! in a form the compiler can vectorise.
//!
//! Invariants: NaN in, NaN out. In f32 the exponential is good to 1.5e-7 relative, sine and cosine to 1.5e-7 absolute,
//! the normal distribution to 5e-7 relative above -2 and to less below, where its exponential magnifies the rounding of
//! x^2. In f64 they are the standard library's, the error function candle's.

use candle_core::WithDType;
use std::ops::Neg;
use std::sync::OnceLock;

/// No assumption about the processor.
pub(crate) const BASELINE: u8 = 0;
/// AVX2 and fused multiply-add.
pub(crate) const AVX2: u8 = 1;
/// AVX-512 with byte, word and doubleword instructions.
pub(crate) const AVX512: u8 = 2;

/// The best set of instructions of this processor.
pub(crate) fn level() -> u8 {
    static LEVEL: OnceLock<u8> = OnceLock::new();
    *LEVEL.get_or_init(detect)
}

#[cfg(target_arch = "x86_64")]
fn detect() -> u8 {
    let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
    let avx512 = is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl");
    match (avx2, avx512) {
        (true, true) => AVX512,
        (true, false) => AVX2,
        _ => BASELINE,
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn detect() -> u8 {
    BASELINE
}

/// Defines a function over a [`Real`] type whose body is compiled for each instruction set. The body sees the constant
/// named second (`ISA`) and passes it to [`Real::fused`]; the function
/// named second runs on a given set: for tests, and for bodies that were compiled for a set already.
macro_rules! vectorised {
    ($(#[$meta:meta])* $vis:vis fn $name:ident / $at:ident <$T:ident, $ISA:ident>($($arg:ident: $ty:ty),* $(,)?)
        $(-> $ret:ty)? $body:block) => {
        $(#[$meta])*
        $vis fn $name<$T: $crate::simd::Real>($($arg: $ty),*) $(-> $ret)? {
            $at::<$T>($crate::simd::level(), $($arg),*)
        }

        $crate::simd::vectorised! { fn $at<$T, $ISA>($($arg: $ty),*) $(-> $ret)? $body }
    };
    ($(#[$meta:meta])* fn $at:ident <$T:ident, $ISA:ident>($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $(#[$meta])*
        #[allow(unsafe_code)]
        fn $at<$T: $crate::simd::Real>(level: u8, $($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            fn body<$T: $crate::simd::Real, const $ISA: u8>($($arg: $ty),*) $(-> $ret)? $body

            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
                fn avx512<$T: $crate::simd::Real>($($arg: $ty),*) $(-> $ret)? {
                    body::<$T, { $crate::simd::AVX512 }>($($arg),*)
                }
                #[target_feature(enable = "avx2,fma")]
                fn avx2<$T: $crate::simd::Real>($($arg: $ty),*) $(-> $ret)? {
                    body::<$T, { $crate::simd::AVX2 }>($($arg),*)
                }
                // The smaller of the two, so that no caller can ask for what the processor lacks.
                match level.min($crate::simd::level()) {
                    // SAFETY: `level()` found these instructions on this processor.
                    $crate::simd::AVX512 => return unsafe { avx512::<$T>($($arg),*) },
                    // SAFETY: as above.
                    $crate::simd::AVX2 => return unsafe { avx2::<$T>($($arg),*) },
                    _ => {}
                }
            }
            let _ = level;
            body::<$T, { $crate::simd::BASELINE }>($($arg),*)
        }
    };
}
pub(crate) use vectorised;

/// The two element types of the CPU operators.
pub(crate) trait Real: WithDType + Neg<Output = Self> + Default + std::fmt::Debug {
    /// From f64, rounded.
    fn of(value: f64) -> Self;
    /// To f64, exact.
    fn wide(self) -> f64;
    /// These very elements, if they are f32.
    fn singles(values: &[Self]) -> Option<&[f32]>;
    /// As [`Real::singles`], to be written.
    fn singles_mut(values: &mut [Self]) -> Option<&mut [f32]>;
    /// The reverse of [`Real::singles_mut`]: f32 as elements of this type, if it is f32.
    fn of_singles_mut(values: &mut [f32]) -> Option<&mut [Self]>;
    /// These very f32 as a vector of this type, if it is f32.
    fn vec_of_singles(values: Vec<f32>) -> Option<Vec<Self>>;
    /// `a * b + c`, in one rounding where the instruction set has it.
    fn fused<const ISA: u8>(a: Self, b: Self, c: Self) -> Self;
    /// The larger; where one is NaN, the other.
    fn larger(self, other: Self) -> Self;
    /// Whether it is NaN.
    fn nan(self) -> bool;
    /// The magnitude.
    fn magnitude(self) -> Self;
    /// Square root.
    fn root(self) -> Self;
    /// Natural logarithm; not vectorised.
    fn logarithm(self) -> Self;
    /// e^x; exactly 0 far below.
    fn exponential<const ISA: u8>(self) -> Self;
    /// Sine and cosine. f32: for magnitudes up to [`SINE_LIMIT`].
    fn sine_cosine<const ISA: u8>(self) -> (Self, Self);
    /// Distribution function and density of the standard normal distribution.
    fn normal<const ISA: u8>(self) -> (Self, Self);
}

/// Largest magnitude for which the f32 sine reduces its argument exactly.
pub(crate) const SINE_LIMIT: f64 = 8000.0;

/// What reads the same for f32 and f64.
macro_rules! both_alike {
    () => {
        #[inline(always)]
        fn fused<const ISA: u8>(a: Self, b: Self, c: Self) -> Self {
            // Without the instruction, `mul_add` is a slow library call.
            if ISA == BASELINE { a * b + c } else { a.mul_add(b, c) }
        }
        #[inline(always)]
        fn larger(self, other: Self) -> Self {
            self.max(other)
        }
        #[inline(always)]
        fn nan(self) -> bool {
            self.is_nan()
        }
        #[inline(always)]
        fn magnitude(self) -> Self {
            self.abs()
        }
        #[inline(always)]
        fn root(self) -> Self {
            self.sqrt()
        }
        #[inline(always)]
        fn logarithm(self) -> Self {
            self.ln()
        }
    };
}

impl Real for f64 {
    #[inline(always)]
    fn of(value: f64) -> Self {
        value
    }
    #[inline(always)]
    fn wide(self) -> f64 {
        self
    }
    fn singles(_: &[Self]) -> Option<&[f32]> {
        None
    }
    fn singles_mut(_: &mut [Self]) -> Option<&mut [f32]> {
        None
    }
    fn of_singles_mut(_: &mut [f32]) -> Option<&mut [Self]> {
        None
    }
    fn vec_of_singles(_: Vec<f32>) -> Option<Vec<Self>> {
        None
    }
    both_alike!();
    #[inline(always)]
    fn exponential<const ISA: u8>(self) -> Self {
        self.exp()
    }
    #[inline(always)]
    fn sine_cosine<const ISA: u8>(self) -> (Self, Self) {
        self.sin_cos()
    }
    #[inline(always)]
    fn normal<const ISA: u8>(self) -> (Self, Self) {
        let erf = candle_core::cpu::erf::erf_f64(self * std::f64::consts::FRAC_1_SQRT_2);
        (0.5 * (1.0 + erf), (-0.5 * self * self).exp() * FRAC_1_SQRT_TAU)
    }
}

/// 1 / sqrt(2 pi).
const FRAC_1_SQRT_TAU: f64 = 0.398_942_280_401_432_7;
/// Adding and subtracting this rounds an f32 to a whole number and leaves that number in the low bits.
const ROUNDER: f32 = 12_582_912.0;

/// Horner's scheme, highest power first.
#[inline(always)]
fn polynomial<const ISA: u8, const N: usize>(x: f32, coefficients: [f32; N]) -> f32 {
    let mut sum = coefficients[0];
    for i in 1..N {
        sum = f32::fused::<ISA>(sum, x, coefficients[i]);
    }
    sum
}

impl Real for f32 {
    #[inline(always)]
    fn of(value: f64) -> Self {
        value as f32
    }
    #[inline(always)]
    fn wide(self) -> f64 {
        f64::from(self)
    }
    fn singles(values: &[Self]) -> Option<&[f32]> {
        Some(values)
    }
    fn singles_mut(values: &mut [Self]) -> Option<&mut [f32]> {
        Some(values)
    }
    fn of_singles_mut(values: &mut [f32]) -> Option<&mut [Self]> {
        Some(values)
    }
    fn vec_of_singles(values: Vec<f32>) -> Option<Vec<Self>> {
        Some(values)
    }
    both_alike!();

    /// 2^n times a polynomial on +-ln(2)/2. Above 88.7 infinite, below -86.6 zero.
    #[inline(always)]
    fn exponential<const ISA: u8>(self) -> Self {
        const HIGH: f32 = 88.722_83;
        // 2^-125: half of it, the first of two steps below, is the smallest normal number. Products below that take a
        // processor over a hundred cycles, and every hidden score of attention would make one.
        const LOW: f32 = -86.6;
        let x = self.clamp(LOW, HIGH);
        let shifted = f32::fused::<ISA>(x, std::f32::consts::LOG2_E, ROUNDER);
        let n = shifted - ROUNDER;
        // ln 2 in two parts: the first has few bits, so n times it is exact.
        let r = f32::fused::<ISA>(n, -0.693_359_4, x);
        let r = f32::fused::<ISA>(n, 2.121_944_4e-4, r);
        let p =
            polynomial::<ISA, 6>(r, [1.987_569_1e-4, 1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5]);
        let p = f32::fused::<ISA>(p * r, r, r) + 1.0;
        // The factor 2^n in two steps, 2^(n-1) and 2, because 2^128 is not a number.
        let scaled = p * f32::from_bits((shifted.to_bits() << 23).wrapping_add(126 << 23)) * 2.0;
        let scaled = if self < LOW { 0.0 } else { scaled };
        if self > HIGH { f32::INFINITY } else { scaled }
    }

    /// Reduction to +-pi/4 in three parts, then two short polynomials.
    #[inline(always)]
    fn sine_cosine<const ISA: u8>(self) -> (Self, Self) {
        let shifted = f32::fused::<ISA>(self, std::f32::consts::FRAC_2_PI, ROUNDER);
        let (n, quarter) = (shifted - ROUNDER, shifted.to_bits());
        let r = f32::fused::<ISA>(n, -1.570_312_5, self);
        let r = f32::fused::<ISA>(n, -4.837_513e-4, r);
        let r = f32::fused::<ISA>(n, -7.549_79e-8, r);
        let z = r * r;
        let sine = polynomial::<ISA, 3>(z, [-1.951_529_6e-4, 8.332_161e-3, -1.666_665_5e-1]);
        let sine = f32::fused::<ISA>(sine * z, r, r);
        let cosine = polynomial::<ISA, 4>(z, [2.443_315_7e-5, -1.388_731_6e-3, 4.166_664_6e-2, -0.5]);
        let cosine = f32::fused::<ISA>(cosine, z, 1.0);
        let (sine, cosine) = if quarter & 1 == 0 { (sine, cosine) } else { (cosine, sine) };
        let sine = if quarter & 2 == 0 { sine } else { -sine };
        let cosine = if quarter.wrapping_add(1) & 2 == 0 { cosine } else { -cosine };
        (sine, cosine)
    }

    /// The upper tail is exp(-x^2/2) times t Q(t) with t = 1 / (1 + 0.26 |x|); the fit of Q is good to 2.5e-8
    /// relative over the whole tail, so the lower tail keeps its relative precision and one exponential serves both.
    #[inline(always)]
    fn normal<const ISA: u8>(self) -> (Self, Self) {
        let x = self.abs();
        let t = 1.0 / f32::fused::<ISA>(x, 0.26, 1.0);
        let q = polynomial::<ISA, 9>(
            t,
            [
                3.050_487_6e-2,
                -1.528_288e-1,
                2.514_912_7e-1,
                -1.509_489_8e-1,
                1.609_478_8e-1,
                5.102_766_3e-2,
                1.030_302_6e-1,
                1.030_167_5e-1,
                1.037_590_6e-1,
            ],
        );
        let bell = (-0.5 * x * x).exponential::<ISA>();
        let tail = bell * t * q;
        (if self < 0.0 { tail } else { 1.0 - tail }, bell * FRAC_1_SQRT_TAU as f32)
    }
}

/// Independent partial results per reduction: enough to fill the registers, and the same on every machine.
const LANES: usize = 32;

/// The sum, in lanes.
#[inline(always)]
pub(crate) fn sum_of<T: Real>(values: &[T]) -> T {
    let mut lanes = [T::zero(); LANES];
    let chunks = values.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        for l in 0..LANES {
            lanes[l] += chunk[l];
        }
    }
    for (l, value) in rest.iter().enumerate() {
        lanes[l] += *value;
    }
    fold(lanes)
}

/// The sum of products, in lanes.
#[inline(always)]
pub(crate) fn dot<T: Real, const ISA: u8>(a: &[T], b: &[T]) -> T {
    let mut lanes = [T::zero(); LANES];
    let (a_chunks, b_chunks) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let (a_rest, b_rest) = (a_chunks.remainder(), b_chunks.remainder());
    for (a, b) in a_chunks.zip(b_chunks) {
        for l in 0..LANES {
            lanes[l] = T::fused::<ISA>(a[l], b[l], lanes[l]);
        }
    }
    for (l, (a, b)) in a_rest.iter().zip(b_rest).enumerate() {
        lanes[l] = T::fused::<ISA>(*a, *b, lanes[l]);
    }
    fold(lanes)
}

#[inline(always)]
fn fold<T: Real>(mut lanes: [T; LANES]) -> T {
    let mut width = LANES / 2;
    while width > 0 {
        for l in 0..width {
            let other = lanes[l + width];
            lanes[l] += other;
        }
        width /= 2;
    }
    lanes[0]
}

/// The largest value, minus infinity of none; NaN is passed over.
#[inline(always)]
pub(crate) fn largest<T: Real>(values: &[T]) -> T {
    let low = T::of(f64::NEG_INFINITY);
    let mut lanes = [low; LANES];
    let chunks = values.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        for l in 0..LANES {
            lanes[l] = lanes[l].larger(chunk[l]);
        }
    }
    for (l, value) in rest.iter().enumerate() {
        lanes[l] = lanes[l].larger(*value);
    }
    let mut width = LANES / 2;
    while width > 0 {
        for l in 0..width {
            lanes[l] = lanes[l].larger(lanes[l + width]);
        }
        width /= 2;
    }
    lanes[0]
}

vectorised! {
    /// `a += b`, element by element.
    pub(crate) fn add_assign / add_assign_at<T, ISA>(a: &mut [T], b: &[T]) {
        for (a, b) in a.iter_mut().zip(b) {
            *a += *b;
        }
    }
}

vectorised! {
    /// `a += scale * b`, element by element.
    pub(crate) fn add_scaled / add_scaled_at<T, ISA>(a: &mut [T], b: &[T], scale: T) {
        for (a, b) in a.iter_mut().zip(b) {
            *a += *b * scale;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{AVX2, AVX512, BASELINE, Real, dot, largest, sum_of};

    fn worst(xs: impl Iterator<Item = f64>, got: impl Fn(f32) -> f32, exact: impl Fn(f64) -> f64) -> f64 {
        xs.map(|x| {
            let x = x as f32;
            let exact = exact(f64::from(x));
            (f64::from(got(x)) - exact).abs() / exact.abs().max(1e-38)
        })
        .fold(0.0, f64::max)
    }

    fn grid(low: f64, high: f64) -> impl Iterator<Item = f64> {
        (0..=200_000).map(move |i| low + (high - low) * f64::from(i) / 200_000.0)
    }

    #[test]
    fn the_exponential_is_good_to_a_few_ulp() {
        for exp in [f32::exponential::<BASELINE>, f32::exponential::<AVX2>, f32::exponential::<AVX512>] {
            assert!(worst(grid(-86.6, 88.7), exp, f64::exp) < 1.5e-7);
            assert!(grid(-104.0, -86.0).map(|x| exp(x as f32)).all(|y| y == 0.0 || y >= 2.0 * f32::MIN_POSITIVE));
            assert_eq!(exp(0.0), 1.0);
            assert_eq!((exp(-88.0), exp(f32::NEG_INFINITY)), (0.0, 0.0));
            assert_eq!((exp(89.0), exp(f32::INFINITY)), (f32::INFINITY, f32::INFINITY));
            assert!(exp(f32::NAN).is_nan());
        }
    }

    #[test]
    fn sine_and_cosine_are_good_to_an_ulp_of_one() {
        for both in [f32::sine_cosine::<BASELINE>, f32::sine_cosine::<AVX512>] {
            for x in grid(-100.0, 100.0).chain(grid(7900.0, 8000.0)) {
                let x = x as f32;
                let (sine, cosine) = both(x);
                let exact = f64::from(x).sin_cos();
                assert!((f64::from(sine) - exact.0).abs() < 1.5e-7, "{x}");
                assert!((f64::from(cosine) - exact.1).abs() < 1.5e-7, "{x}");
            }
            assert!(both(f32::NAN).0.is_nan() && both(f32::INFINITY).1.is_nan());
        }
    }

    #[test]
    fn the_normal_distribution_keeps_its_relative_precision_in_the_lower_tail() {
        let exact = |x: f64| 0.5 * (1.0 + candle_core::cpu::erf::erf_f64(x / 2.0_f64.sqrt()));
        for normal in [f32::normal::<BASELINE>, f32::normal::<AVX512>] {
            assert!(worst(grid(-2.0, 10.0), |x| normal(x).0, exact) < 5e-7);
            // Phi(-6) to 17 digits; its exponential rounds x^2 / 2, hence the looser bound.
            assert!((f64::from(normal(-6.0).0) / 9.865_876_450_376_98e-10 - 1.0).abs() < 2e-6);
            assert!((normal(0.0).0 - 0.5).abs() < 1e-7);
            assert_eq!((normal(f32::INFINITY).0, normal(f32::NEG_INFINITY).0), (1.0, 0.0));
            assert!(normal(f32::NAN).0.is_nan() && normal(f32::NAN).1.is_nan());
        }
    }

    #[test]
    fn reductions_take_every_element() {
        for len in [0, 1, 31, 32, 33, 100] {
            let values: Vec<f64> = (0..len).map(f64::from).collect();
            let ones = vec![1.0; values.len()];
            let sum = f64::from(len * (len - 1) / 2);
            assert_eq!(sum_of(&values), sum);
            assert_eq!(dot::<_, BASELINE>(&values, &ones), sum);
            assert_eq!(dot::<_, AVX2>(&values, &ones), sum);
            let most = if len == 0 { f64::NEG_INFINITY } else { f64::from(len - 1) };
            assert_eq!(largest(&values), most);
        }
    }
}
