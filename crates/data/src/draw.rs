//! Draws from a stream, in the forms this room needs.

use occlude_random::RngCore;

pub(crate) use occlude_random::{below, unit};

/// Uniform in `[low, high)`; `low` where both are equal.
pub(crate) fn between(stream: &mut impl RngCore, low: f64, high: f64) -> f64 {
    low + (high - low) * unit(stream)
}

/// A uniform permutation of `0..count`.
pub(crate) fn permutation(stream: &mut impl RngCore, count: u32) -> Vec<u32> {
    let mut order: Vec<u32> = (0..count).collect();
    occlude_random::choose(stream, &mut order, count as usize);
    order
}

#[cfg(test)]
mod tests {
    use super::permutation;
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
}
