//! Named random streams. Every draw of a run comes from a counter-based generator keyed by
//! (seed, purpose, epoch, index), so a result depends neither on how many workers drew before it nor on where a run
//! was interrupted. The draws themselves ([`unit()`], [`below`], [`normal`], [`choose`]) are written out here.
//!
//! Invariants: equal keys give equal streams on every machine; different keys give unrelated streams; no release of
//! another crate changes a draw; nothing here reads the clock, the process or the machine.
//! Not here: what is drawn (the rooms that draw name their purposes), and any global generator.
//!
//! ```
//! use occlude_random::{Streams, unit};
//! let streams = Streams::new(7);
//! let first = unit(&mut streams.stream("mask", 0, 3));
//! assert_eq!(first, unit(&mut streams.stream("mask", 0, 3)));
//! assert_ne!(first, unit(&mut streams.stream("mask", 1, 3)));
//! ```

mod draw;

pub use draw::{below, choose, normal, unit};
pub use rand_chacha::rand_core::RngCore;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

/// The generator behind every stream.
pub type Stream = ChaCha8Rng;

/// The root of all randomness of one run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Streams {
    seed: u64,
}

impl Streams {
    /// The streams of the run with this seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self { seed }
    }

    /// The seed of the run.
    #[must_use]
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// The stream for one purpose, epoch and index (a sample or a step). The four together are the whole 256-bit key.
    #[must_use]
    pub fn stream(&self, purpose: &str, epoch: u64, index: u64) -> Stream {
        let words = [self.seed, name_hash(purpose), epoch, index];
        let mut key = [0_u8; 32];
        for (slot, word) in key.chunks_exact_mut(8).zip(words) {
            slot.copy_from_slice(&word.to_le_bytes());
        }
        ChaCha8Rng::from_seed(key)
    }
}

/// FNV-1a, 64 bits: short, stable, and the same on every platform, which the standard hasher does not promise.
fn name_hash(name: &str) -> u64 {
    const OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0000_0100_0000_01b3;
    name.bytes().fold(OFFSET, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(PRIME))
}

#[cfg(test)]
mod tests {
    use super::{RngCore, Streams};

    #[test]
    fn each_part_of_the_key_matters() {
        let draw = |seed, purpose, epoch, index| -> u64 { Streams::new(seed).stream(purpose, epoch, index).next_u64() };
        let base = draw(1, "mask", 2, 3);
        assert_eq!(base, draw(1, "mask", 2, 3));
        for other in [draw(2, "mask", 2, 3), draw(1, "crop", 2, 3), draw(1, "mask", 3, 3), draw(1, "mask", 2, 4)] {
            assert_ne!(base, other);
        }
    }

    #[test]
    fn streams_do_not_change_between_releases() {
        // A run resumed by a later version must draw the same numbers.
        let words: Vec<u64> = (0..2).map(|i| Streams::new(42).stream("frozen", 1, i).next_u64()).collect();
        assert_eq!(words, FROZEN, "stored runs would no longer resume exactly");
    }

    const FROZEN: [u64; 2] = [8_385_326_940_933_682_935, 16_000_950_414_908_741_721];
}
