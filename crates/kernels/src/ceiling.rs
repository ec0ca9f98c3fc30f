//! What this processor and its memory give at most: the ceilings that benchmarks set operators against.
//!
//! Measured, not looked up: a virtual machine shares its memory, and its name does not tell its clock.

use crate::simd::{AVX2, AVX512, Real, vectorised};
use rayon::prelude::*;
use std::hint::black_box;
use std::time::Instant;

/// Independent chains of multiply-adds, in numbers: as many registers as hide the latency of the instruction, two left
/// over for the constants. With fewer the processor waits, with more they go through memory.
const CHAINS_AVX512: usize = 16 * 24;
const CHAINS_AVX2: usize = 8 * 12;
const CHAINS_BASELINE: usize = 4 * 12;
/// Rounds of all chains between two looks at the clock: some ten milliseconds.
const ROUNDS: usize = 1 << 22;
/// Elements of an array that no cache holds.
const FAR: usize = 24 << 20;
/// Elements that one task of a pass over memory takes.
const PIECE: usize = 1 << 16;

/// Floating-point operations a second of fused multiply-adds in f32 out of registers (two each), all threads of the
/// pool together: the best of `tries`.
#[must_use]
pub fn multiply_adds(tries: usize) -> f64 {
    let one = || {
        let started = Instant::now();
        // Whole, the sum too: a sum that nobody reads need not be computed.
        let threads = rayon::broadcast(|_| black_box(run(black_box(ROUNDS), black_box(0.5), black_box(1.0))));
        let done: usize = threads.into_iter().map(|(done, _)| done).sum();
        2.0 * done as f64 / started.elapsed().as_secs_f64()
    };
    (0..tries).map(|_| one()).fold(0.0, f64::max)
}

/// Bytes a second through memory, all threads together: `a = a + s * b` over arrays that no cache holds, two reads and a
/// write a pass; the best of `tries`. In place, because a write to memory that was not read makes the processor read it
/// first: a fourth pass that nobody counts.
#[must_use]
pub fn memory(tries: usize) -> f64 {
    let (mut a, b) = (vec![0_f32; FAR], vec![1_f32; FAR]);
    let mut one = || {
        let (started, s) = (Instant::now(), black_box(3.0));
        a.par_chunks_mut(PIECE).zip(b.par_chunks(PIECE)).for_each(|(a, b)| {
            for (a, b) in a.iter_mut().zip(b) {
                *a += s * *b;
            }
        });
        black_box(&mut a);
        3.0 * (FAR * size_of::<f32>()) as f64 / started.elapsed().as_secs_f64()
    };
    (0..tries).map(|_| one()).fold(0.0, f64::max)
}

/// `x = x * factor + sum` in many chains, `rounds` times. -> (multiply-adds made, the chains' sum)
fn run(rounds: usize, factor: f32, sum: f32) -> (usize, f32) {
    let count = match crate::simd::level() {
        AVX512 => CHAINS_AVX512,
        AVX2 => CHAINS_AVX2,
        _ => CHAINS_BASELINE,
    };
    (count * rounds, turn_at::<f32>(crate::simd::level(), rounds, factor, sum))
}

vectorised! {
    fn turn_at<T, ISA>(rounds: usize, factor: T, sum: T) -> T {
        match ISA {
            AVX512 => chains::<T, ISA, CHAINS_AVX512>(rounds, factor, sum),
            AVX2 => chains::<T, ISA, CHAINS_AVX2>(rounds, factor, sum),
            _ => chains::<T, ISA, CHAINS_BASELINE>(rounds, factor, sum),
        }
    }
}

#[inline(always)]
fn chains<T: Real, const ISA: u8, const N: usize>(rounds: usize, factor: T, sum: T) -> T {
    let mut chains: [T; N] = std::array::from_fn(|i| T::of(i as f64));
    for _ in 0..rounds {
        for chain in &mut chains {
            *chain = T::fused::<ISA>(*chain, factor, sum);
        }
    }
    chains.into_iter().fold(T::zero(), |total, chain| total + chain)
}

#[cfg(test)]
mod tests {
    use super::{CHAINS_AVX2, CHAINS_AVX512, CHAINS_BASELINE, memory, multiply_adds, run, turn_at};
    use crate::simd::{AVX2, AVX512, BASELINE, level};

    #[test]
    fn every_chain_makes_every_round() {
        for (isa, chains) in [(BASELINE, CHAINS_BASELINE), (AVX2, CHAINS_AVX2), (AVX512, CHAINS_AVX512)] {
            if isa <= level() {
                // After one round of x / 2 + 1 the chains hold i / 2 + 1, after many all hold 2.
                let (count, sum) = (chains as f32, (0..chains).sum::<usize>() as f32);
                assert_eq!(turn_at::<f32>(isa, 0, 0.5, 1.0), sum);
                assert_eq!(turn_at::<f32>(isa, 1, 0.5, 1.0), sum / 2.0 + count);
                assert_eq!(turn_at::<f32>(isa, 100, 0.5, 1.0), 2.0 * count);
            }
        }
        let (made, sum) = run(100, 0.5, 1.0);
        assert_eq!(made as f32, 100.0 * sum / 2.0, "the count is that of the chains that ran");
    }

    #[test]
    fn ceilings_are_numbers_a_machine_could_have() {
        // Slower than any machine of this century, faster than any of the next years: a count that is off by the
        // number of rounds or of elements lies outside.
        assert!((1e7..1e15).contains(&multiply_adds(1)), "{}", multiply_adds(1));
        assert!((1e7..1e14).contains(&memory(1)), "{}", memory(1));
    }
}
