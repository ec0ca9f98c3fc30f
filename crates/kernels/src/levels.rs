//! Tests only: one kernel on every instruction set that this processor has.

use crate::simd::{AVX2, AVX512, BASELINE, level};

/// Fails unless `run` gives the same numbers, within `bound` of the largest, on the baseline and on every better set.
/// Sets that the processor lacks are left out.
pub(crate) fn same_on_all(bound: f32, run: impl Fn(u8) -> Vec<f32>) {
    let baseline = run(BASELINE);
    let scale = baseline.iter().fold(0.0_f32, |most, value| most.max(value.abs()));
    assert!(scale > 0.0, "numbers to compare");
    for better in [AVX2, AVX512].into_iter().filter(|&better| better <= level()) {
        for (i, (a, b)) in run(better).iter().zip(&baseline).enumerate() {
            assert!((a - b).abs() <= bound * scale, "element {i} on set {better}: {a}, on the baseline {b}");
        }
    }
}

/// Values in (-1, 1) that depend on `seed` and position alone.
pub(crate) fn values(seed: u64, len: usize) -> Vec<f32> {
    (0..len as u64)
        .map(|i| {
            ((seed << 32 | i).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect()
}
