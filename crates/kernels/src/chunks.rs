//! Loops over groups of rows, cut by size alone so that results do not depend on the number of threads.

use crate::cpu::Real;
use rayon::prelude::*;

/// Elements per group: 64 KB of f32, which a second-level cache holds several times.
pub(crate) const ELEMENTS: usize = 16 * 1024;

/// Rows of `width` elements per group, at least one.
pub(crate) fn rows_of(width: usize) -> usize {
    (ELEMENTS / width.max(1)).max(1)
}

/// Runs `f` on disjoint chunks of `a` (of `a_chunk` elements) and `b` (of `b_chunk`) with their index; both must have
/// as many chunks. Small work stays on this thread.
pub(crate) fn for_pairs<A: Real, B: Real>(
    (a, a_chunk): (&mut [A], usize),
    (b, b_chunk): (&mut [B], usize),
    f: impl Fn(usize, &mut [A], &mut [B]) + Sync,
) {
    let pairs = |i: usize, (a, b): (&mut [A], &mut [B])| f(i, a, b);
    if a.len() <= ELEMENTS {
        a.chunks_mut(a_chunk.max(1)).zip(b.chunks_mut(b_chunk.max(1))).enumerate().for_each(|(i, pair)| pairs(i, pair));
    } else {
        a.par_chunks_mut(a_chunk.max(1))
            .zip(b.par_chunks_mut(b_chunk.max(1)))
            .enumerate()
            .for_each(|(i, pair)| pairs(i, pair));
    }
}
