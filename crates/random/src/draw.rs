//! Draws from a stream, written out so that they cannot change with a release of a library: a resumed run must draw
//! the same numbers.

use crate::RngCore;

/// Uniform in `[0, 1)`, 53 bits.
pub fn unit<R: RngCore + ?Sized>(stream: &mut R) -> f64 {
    (stream.next_u64() >> 11) as f64 * (1.0 / (1_u64 << 53) as f64)
}

/// Uniform over `0..count`; the bias of the wide product is below `count / 2^64`. 0 where `count` is 0.
pub fn below<R: RngCore + ?Sized>(stream: &mut R, count: usize) -> usize {
    ((u128::from(stream.next_u64()) * count as u128) >> 64) as usize
}

/// A standard normal draw (Box-Muller, cosine half): two uniforms a draw, no rejection. Logarithm and cosine are those
/// of the platform: the last bit may differ from one to another.
pub fn normal<R: RngCore + ?Sized>(stream: &mut R) -> f64 {
    let radius = (-2.0 * (1.0 - unit(stream)).ln()).sqrt();
    radius * (std::f64::consts::TAU * unit(stream)).cos()
}

/// Puts a uniformly random choice of `count` items, in random order, at the end of `items` and returns it
/// (Fisher-Yates from the end, stopped early). With as many as there are items this is a shuffle.
pub fn choose<'a, T, R: RngCore + ?Sized>(stream: &mut R, items: &'a mut [T], count: usize) -> &'a mut [T] {
    let kept = items.len().saturating_sub(count);
    for last in (kept.max(1)..items.len()).rev() {
        items.swap(last, below(stream, last + 1));
    }
    &mut items[kept..]
}

#[cfg(test)]
mod tests {
    use super::{below, choose, normal, unit};
    use crate::{Stream, Streams};

    fn stream(index: u64) -> Stream {
        Streams::new(5).stream("draws", 2, index)
    }

    #[test]
    fn draws_are_frozen() {
        // Stored runs resume on these, and were initialised with them; a change here breaks every one of them.
        let units: Vec<f64> = (0..2).map(|i| unit(&mut stream(i))).collect();
        assert_eq!(units.iter().map(|unit| unit.to_bits()).collect::<Vec<_>>(), UNITS);
        assert_eq!((0..6).map(|i| below(&mut stream(i), 1000)).collect::<Vec<_>>(), [289, 721, 194, 224, 55, 405]);
        assert_eq!(choose(&mut stream(0), &mut [0, 1, 2, 3, 4, 5, 6, 7], 3), [4, 3, 2]);
        // The last bits are the platform's.
        for (i, frozen) in NORMALS.into_iter().enumerate() {
            assert!((normal(&mut stream(i as u64)) - frozen).abs() < 1e-14);
        }
    }

    const UNITS: [u64; 2] = [4_598_885_196_191_733_858, 4_604_678_000_132_393_708];
    const NORMALS: [f64; 3] = [-0.747_818_003_472_502_3, 1.583_440_678_514_434_6, -0.270_063_841_925_277_05];

    #[test]
    fn a_shuffle_is_the_one_of_stored_runs() {
        // As the loader of the first release ordered eight images.
        let mut items = [0, 1, 2, 3, 4, 5, 6, 7];
        let shuffled = choose(&mut Streams::new(5).stream("order", 2, 0), &mut items, 8);
        assert_eq!(shuffled, [7, 1, 4, 6, 0, 2, 5, 3]);
    }

    #[test]
    fn a_choice_is_the_end_of_the_shuffle() {
        for count in 0..10 {
            let (mut all, mut some) = ([0, 1, 2, 3, 4, 5, 6, 7], [0, 1, 2, 3, 4, 5, 6, 7]);
            choose(&mut stream(0), &mut all, 8);
            let kept = 8 - count.min(8);
            assert_eq!(choose(&mut stream(0), &mut some, count), &all[kept..], "{count}");
            some.sort_unstable();
            assert_eq!(some, [0, 1, 2, 3, 4, 5, 6, 7], "nothing is lost");
        }
        assert!(choose(&mut stream(0), &mut [0_u32; 0], 3).is_empty());
    }

    #[test]
    fn draws_fill_their_range_evenly() {
        let mut stream = stream(0);
        let (mut counts, mut firsts) = ([0_usize; 7], [0_usize; 7]);
        let (mut sum, mut normals) = (0.0, (0.0, 0.0));
        for _ in 0..7000 {
            counts[below(&mut stream, 7)] += 1;
            firsts[choose(&mut stream, &mut [0, 1, 2, 3, 4, 5, 6], 2)[0]] += 1;
            sum += unit(&mut stream);
            let value = normal(&mut stream);
            normals = (normals.0 + value, normals.1 + value * value);
        }
        // Five standard deviations: 5 * sqrt(1000 * 6/7) = 146; 5 * sqrt(1/12/7000) = 0.0173; 5 / sqrt(7000) = 0.06;
        // 5 * sqrt(2/7000) = 0.085.
        assert!(counts.iter().chain(&firsts).all(|count| count.abs_diff(1000) < 147), "{counts:?} {firsts:?}");
        assert!((sum / 7000.0 - 0.5).abs() < 0.0173);
        assert!((normals.0 / 7000.0).abs() < 0.06 && (normals.1 / 7000.0 - 1.0).abs() < 0.085, "{normals:?}");
    }
}
