//! Which images of a set are used when not all are.

use occlude_random::Streams;

/// `limit` of `len` indices, ascending; all of them if `limit` is `None` or not smaller. Drawn without replacement
/// from the stream `purpose` (such as `probe/bank`), not taken from the front: folders are often sorted by class.
#[must_use]
pub fn choose(len: usize, limit: Option<usize>, streams: &Streams, purpose: &str) -> Vec<usize> {
    let mut indices: Vec<usize> = (0..len).collect();
    if let Some(limit) = limit.filter(|limit| *limit < len) {
        shuffle(&mut indices, streams, purpose);
        indices.truncate(limit);
        indices.sort_unstable();
    }
    indices
}

/// A uniform order, drawn from the stream `purpose`.
pub(crate) fn shuffle(items: &mut [usize], streams: &Streams, purpose: &str) {
    let all = items.len();
    occlude_random::choose(&mut streams.stream(purpose, 0, 0), items, all);
}

#[cfg(test)]
mod tests {
    use super::choose;
    use occlude_random::Streams;

    #[test]
    fn a_subset_is_spread_sorted_and_repeatable() {
        let streams = Streams::new(3);
        let chosen = choose(1000, Some(100), &streams, "probe/bank");
        assert_eq!(chosen.len(), 100);
        assert!(chosen.windows(2).all(|pair| pair[0] < pair[1]), "ascending, without repeats");
        let in_first_half = chosen.iter().filter(|&&index| index < 500).count();
        assert!((25..=75).contains(&in_first_half), "{in_first_half} of 100 from the first half");
        assert_eq!(chosen, choose(1000, Some(100), &streams, "probe/bank"));
        assert_ne!(chosen, choose(1000, Some(100), &streams, "probe/test"));
    }

    #[test]
    fn a_subset_is_frozen() {
        // Which images earlier versions scored: a change here makes their scores incomparable.
        assert_eq!(choose(1000, Some(5), &Streams::new(3), "probe/bank"), [189, 396, 667, 705, 767]);
    }

    #[test]
    fn a_limit_that_is_no_limit_takes_all() {
        let streams = Streams::new(3);
        assert_eq!(choose(5, None, &streams, "probe/bank"), [0, 1, 2, 3, 4]);
        assert_eq!(choose(5, Some(9), &streams, "probe/bank"), [0, 1, 2, 3, 4]);
    }
}
