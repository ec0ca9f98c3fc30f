//! Draws from a stream, written out so that they cannot change with a release of a library: a resumed run must draw
//! the same numbers.

use rand::RngCore;

/// Uniform in `[0, 1)`, 53 bits.
pub(crate) fn unit(stream: &mut impl RngCore) -> f64 {
    (stream.next_u64() >> 11) as f64 * (1.0 / (1_u64 << 53) as f64)
}

/// Uniform in `[low, high)`; `low` where both are equal.
pub(crate) fn between(stream: &mut impl RngCore, low: f64, high: f64) -> f64 {
    low + (high - low) * unit(stream)
}

/// Uniform over `0..count`; the bias of the wide product is below `count / 2^64`.
pub(crate) fn below(stream: &mut impl RngCore, count: usize) -> usize {
    ((u128::from(stream.next_u64()) * count as u128) >> 64) as usize
}

/// A uniform permutation of `0..count` (Fisher-Yates, from the end).
pub(crate) fn permutation(stream: &mut impl RngCore, count: u32) -> Vec<u32> {
    let mut order: Vec<u32> = (0..count).collect();
    for last in (1..order.len()).rev() {
        order.swap(last, below(stream, last + 1));
    }
    order
}

#[cfg(test)]
mod tests {
    use super::{below, permutation, unit};
    use occlude_random::Streams;

    #[test]
    fn permutations_are_frozen() {
        // Stored runs resume on these; a change here breaks every one of them.
        assert_eq!(permutation(&mut Streams::new(5).stream("order", 2, 0), 8), [7, 1, 4, 6, 0, 2, 5, 3]);
    }

    #[test]
    fn a_permutation_holds_each_index_once() {
        let mut order = permutation(&mut Streams::new(1).stream("order", 0, 0), 1000);
        assert_ne!(order[..10], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
        order.sort_unstable();
        assert!(order.iter().copied().eq(0..1000));
        assert!(permutation(&mut Streams::new(1).stream("order", 0, 0), 0).is_empty());
    }

    #[test]
    fn draws_fill_their_range_evenly() {
        let mut stream = Streams::new(3).stream("draws", 0, 0);
        let mut counts = [0_usize; 7];
        let mut sum = 0.0;
        for _ in 0..7000 {
            counts[below(&mut stream, 7)] += 1;
            sum += unit(&mut stream);
        }
        // Five standard deviations: 5 * sqrt(1000 * 6/7) = 146; 5 * sqrt(1/12/7000) = 0.0173.
        assert!(counts.iter().all(|count| count.abs_diff(1000) < 147), "{counts:?}");
        assert!((sum / 7000.0 - 0.5).abs() < 0.0173);
    }
}
