//! Loops over pixels, in forms that become vector instructions, compiled for those of the processor at hand.

use pulp::{Arch, Simd, WithSimd};

/// Runs `work` with the widest vector instructions that this processor has. The bytes it makes are those of any other
/// set: operations are neither fused nor put in another order.
///
/// The compiler translates `work` once for each set, with what is inlined into it (`#[inline(always)]`, of closures
/// too); its numbers are taken by value, since what lies behind a reference might change with every byte that is written.
/// The bound is `FnMut` although it runs once: by way of `FnOnce` a closure is called through a function that is compiled
/// for the smallest set.
pub(crate) fn fast<R>(work: impl FnMut() -> R) -> R {
    Arch::new().dispatch(Work(work))
}

struct Work<F>(F);

impl<R, F: FnMut() -> R> WithSimd for Work<F> {
    type Output = R;

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, _: S) -> R {
        (self.0)()
    }
}

/// Neighbouring values that are made at a time: what fits into vector registers.
const LANES: usize = 32;

/// A line of values, each made without the others.
pub(crate) trait Line {
    /// The `N` values from `at` on.
    fn values<const N: usize>(&self, at: usize) -> [u8; N];
}

/// Fills `out` with the values of `line`.
#[inline(always)]
pub(crate) fn fill(out: &mut [u8], line: &impl Line) {
    let Some(last) = out.len().checked_sub(LANES) else {
        for (at, value) in out.iter_mut().enumerate() {
            [*value] = line.values(at);
        }
        return;
    };
    // The last block may overlap the one before: values made twice cost less than single ones.
    for at in (0..out.len()).step_by(LANES).map(|at| at.min(last)) {
        out[at..at + LANES].copy_from_slice(&line.values::<LANES>(at));
    }
}
