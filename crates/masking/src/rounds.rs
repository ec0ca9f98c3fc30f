//! Masking rounds: what an encoder sees and what a decoder is asked, several times for one batch.
//!
//! Source: MOCA, sections on partial decoding and masking rounds; complementary rounds as in its public code.

use crate::Grid;
use occlude_random::{RngCore, unit};
use occlude_settings::{ConfigError, require};
use serde::{Deserialize, Serialize};

/// Most rounds: each costs a pass of the student.
const MOST_ROUNDS: usize = 64;

/// Patches left at a ratio: the floating product in exactly this form, truncated, as in the public code (0.55 of 100
/// hidden leaves 44, not 45).
#[must_use]
pub fn kept_count(patches: usize, ratio: f64) -> usize {
    (patches as f64 * (1.0 - ratio)) as usize
}

/// One round as written in a file.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RoundConfig {
    /// Share of the patches that is hidden from the encoder.
    pub mask: f64,
    /// Share of the patches that does not enter the decoder; 0 decodes everything.
    pub decode_mask: f64,
}

/// The rounds as written in a file. Defaults are MOCA's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RoundsConfig {
    /// The ratios of each round.
    pub rounds: Vec<RoundConfig>,
    /// Whether the second of exactly two rounds shows the encoder none of the patches of the first and asks for the
    /// same hidden ones. Any other number of rounds is independent.
    pub complementary: bool,
}

impl Default for RoundsConfig {
    fn default() -> Self {
        let rounds = vec![RoundConfig { mask: 0.55, decode_mask: 0.35 }, RoundConfig { mask: 0.75, decode_mask: 0.55 }];
        Self { rounds, complementary: true }
    }
}

impl RoundsConfig {
    /// The checked rounds on `grid`.
    ///
    /// # Errors
    /// Names the first field that cannot be: no round, a ratio outside `0..1`, a round that shows the encoder nothing,
    /// one whose decoder is not asked about a hidden patch, or a second round that does not fit beside the first.
    pub fn check(&self, grid: Grid) -> Result<Rounds, ConfigError> {
        let allowed = format!("must be at least 1 and at most {MOST_ROUNDS}");
        require("rounds", self.rounds.len(), &allowed, |n| (1..=MOST_ROUNDS).contains(n))?;
        let patches = grid.count();
        require("patches", patches, "must be at most 4294967295", |n| u32::try_from(*n).is_ok())?;
        let counts = self.rounds.iter().enumerate().map(|(i, round)| round.counts(i, patches));
        let counts = counts.collect::<Result<Vec<_>, _>>()?;
        let rounds = Rounds { patches, complementary: self.complementary && counts.len() == 2, counts };
        rounds.fits()?;
        Ok(rounds)
    }
}

impl RoundConfig {
    fn counts(&self, round: usize, patches: usize) -> Result<RoundCounts, ConfigError> {
        let field = |name: &str| format!("rounds[{round}].{name}");
        let mask =
            require(&field("mask"), self.mask, "must be between 0 and 1, both excluded", |r| *r > 0.0 && *r < 1.0)?;
        let decode = require(&field("decode_mask"), self.decode_mask, "must be at least 0 and below 1", |r| {
            *r >= 0.0 && *r < 1.0
        })?;
        let counts = RoundCounts { keep: kept_count(patches, mask), decode: kept_count(patches, decode) };
        let allowed = format!("must leave at least one of {patches} patches visible");
        require(&field("mask"), mask, &allowed, |_| counts.keep >= 1)?;
        let allowed = format!(
            "must leave more patches to the decoder than the {} visible ones: it leaves {} of {patches}",
            counts.keep, counts.decode
        );
        require(&field("decode_mask"), decode, &allowed, |_| counts.decode > counts.keep)?;
        Ok(counts)
    }
}

/// How many patches of a row a round uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RoundCounts {
    /// The encoder sees so many.
    pub keep: usize,
    /// The decoder gets so many: the visible ones, and the hidden ones it is asked about.
    pub decode: usize,
}

/// Checked rounds on one grid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rounds {
    patches: usize,
    counts: Vec<RoundCounts>,
    complementary: bool,
}

impl Rounds {
    /// The counts of each round, in order.
    #[must_use]
    pub fn counts(&self) -> &[RoundCounts] {
        &self.counts
    }

    /// Whether the second round complements the first.
    #[must_use]
    pub fn complementary(&self) -> bool {
        self.complementary
    }

    /// Draws the rounds of a batch of `rows` images. `stream(row)` is called once a row, in order; the permutations of
    /// its rounds are drawn from it one after the other.
    pub fn draw<R: RngCore>(&self, rows: usize, mut stream: impl FnMut(usize) -> R) -> Vec<Round> {
        let drawn = if self.complementary { 1 } else { self.counts.len() };
        let mut ids = vec![Vec::with_capacity(rows * self.patches); drawn];
        for row in 0..rows {
            let mut rng = stream(row);
            ids.iter_mut().for_each(|ids| ids.extend(permutation(self.patches, &mut rng)));
        }
        if self.complementary {
            let second = ids[0].chunks(self.patches).flat_map(|row| self.complement(row)).collect();
            ids.push(second);
        }
        self.with(ids)
    }

    /// Both of two complementary rounds, given the permutations of the first, `[rows * patches]`.
    ///
    /// # Errors
    /// The rounds are not complementary, or a row is no permutation of the patches.
    pub fn complemented(&self, first: Vec<u32>) -> Result<Vec<Round>, RoundError> {
        if !self.complementary {
            return Err(RoundError::Rounds { got: 1, expected: self.counts.len() });
        }
        self.permutations(0, &first)?;
        let second = first.chunks(self.patches).flat_map(|row| self.complement(row)).collect();
        Ok(self.with(vec![first, second]))
    }

    /// The permutation of the second of two rounds whose first is `ids`. With `ids` = visible, masked, rest, it is: the
    /// first patches of the rest (visible), the same masked ones, what is left of the rest, and last what the first
    /// round saw.
    fn complement(&self, ids: &[u32]) -> Vec<u32> {
        let (first, second) = (self.counts[0], self.counts[1]);
        let (seen, masked, rest) = (&ids[..first.keep], &ids[first.keep..first.decode], &ids[first.decode..]);
        let (new, left) = rest.split_at(second.keep);
        [new, masked, left, seen].concat()
    }

    /// The rounds of given permutations, each `[rows * patches]`: those of a recorded step.
    ///
    /// # Errors
    /// Another number of rounds, or a row that is no permutation of the patches.
    pub fn from_permutations(&self, rounds: Vec<Vec<u32>>) -> Result<Vec<Round>, RoundError> {
        if rounds.len() != self.counts.len() {
            return Err(RoundError::Rounds { got: rounds.len(), expected: self.counts.len() });
        }
        rounds.iter().enumerate().try_for_each(|(round, ids)| self.permutations(round, ids))?;
        Ok(self.with(rounds))
    }

    fn permutations(&self, round: usize, ids: &[u32]) -> Result<(), RoundError> {
        let whole = |row: &[u32]| {
            let mut row = row.to_vec();
            row.sort_unstable();
            row.into_iter().eq(0..self.patches as u32)
        };
        match ids.chunks(self.patches).position(|row| !whole(row)) {
            Some(row) => Err(RoundError::NoPermutation { round, row, patches: self.patches }),
            None => Ok(()),
        }
    }

    /// Permutations paired with the counts of their rounds.
    fn with(&self, ids: Vec<Vec<u32>>) -> Vec<Round> {
        let round = |(ids, counts): (Vec<u32>, &RoundCounts)| Round { ids, patches: self.patches, counts: *counts };
        ids.into_iter().zip(&self.counts).map(round).collect()
    }

    /// What the first of two complementary rounds leaves must be enough for what the second shows.
    fn fits(&self) -> Result<(), ConfigError> {
        if !self.complementary {
            return Ok(());
        }
        let (rest, second) = (self.patches - self.counts[0].decode, self.counts[1].keep);
        let allowed =
            format!("cannot be: the first round leaves {rest} of {} patches, the second shows {second}", self.patches);
        require("complementary", true, &allowed, |_| rest >= second).map(|_| ())
    }
}

/// Why recorded permutations are not the rounds of a batch.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RoundError {
    /// Another number of rounds.
    #[error("{got} rounds of permutations, expected {expected}")]
    Rounds {
        /// How many were given.
        got: usize,
        /// How many there are.
        expected: usize,
    },
    /// A row does not name every patch once.
    #[error("round {round}, row {row}: not a permutation of {patches} patches")]
    NoPermutation {
        /// Which round.
        round: usize,
        /// Which row.
        row: usize,
        /// Patches of a row.
        patches: usize,
    },
}

/// One round of a batch: a permutation of the patches for every row. Its first patches are visible; those and the next
/// ones enter the decoder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Round {
    ids: Vec<u32>,
    patches: usize,
    counts: RoundCounts,
}

impl Round {
    /// Rows.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.ids.len() / self.patches // At least one: a round shows one.
    }

    /// Patches of a row.
    #[must_use]
    pub fn patches(&self) -> usize {
        self.patches
    }

    /// How many patches are used.
    #[must_use]
    pub fn counts(&self) -> RoundCounts {
        self.counts
    }

    /// The permutations, row after row; patches of a row count from 0.  [rows * patches]
    #[must_use]
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// Flat indices (`row * patches + patch`) of what the encoder sees, in permuted order.  [rows * keep]
    #[must_use]
    pub fn visible(&self) -> Vec<u32> {
        self.flat(0, self.counts.keep)
    }

    /// Flat indices of what enters the decoder: the visible patches first.  [rows * decode]
    #[must_use]
    pub fn decoded(&self) -> Vec<u32> {
        self.flat(0, self.counts.decode)
    }

    /// Flat indices of the hidden patches in the decoder.  [rows * (decode - keep)]
    #[must_use]
    pub fn masked(&self) -> Vec<u32> {
        self.flat(self.counts.keep, self.counts.decode)
    }

    /// Rows of the decoder's output, one for each of [`Round::decoded`], that belong to [`Round::masked`].
    #[must_use]
    pub fn masked_rows(&self) -> Vec<u32> {
        let RoundCounts { keep, decode } = self.counts;
        (0..self.rows()).flat_map(|row| (keep..decode).map(move |at| (row * decode + at) as u32)).collect()
    }

    fn flat(&self, from: usize, to: usize) -> Vec<u32> {
        let rows = self.ids.chunks_exact(self.patches).zip((0_u32..).step_by(self.patches));
        rows.flat_map(|(ids, offset)| ids[from..to].iter().map(move |patch| offset + patch)).collect()
    }
}

/// The order that sorts so many uniform draws, ascending; of equal draws the first comes first.
fn permutation<R: RngCore + ?Sized>(patches: usize, rng: &mut R) -> Vec<u32> {
    let noise: Vec<f64> = (0..patches).map(|_| unit(rng)).collect();
    let mut ids: Vec<u32> = (0..patches as u32).collect();
    ids.sort_by(|a, b| noise[*a as usize].total_cmp(&noise[*b as usize]));
    ids
}

#[cfg(test)]
mod tests {
    use super::{RoundConfig, RoundError, Rounds, RoundsConfig, kept_count};
    use crate::Grid;
    use occlude_random::Streams;

    fn rounds(ratios: &[(f64, f64)], complementary: bool) -> RoundsConfig {
        let rounds = ratios.iter().map(|(mask, decode_mask)| RoundConfig { mask: *mask, decode_mask: *decode_mask });
        RoundsConfig { rounds: rounds.collect(), complementary }
    }

    fn refused(config: &RoundsConfig, side: usize) -> String {
        config.check(Grid::new(side, side)).unwrap_err().to_string()
    }

    fn draw(rounds: &Rounds, rows: usize) -> Vec<super::Round> {
        rounds.draw(rows, |row| Streams::new(3).stream("mask", 0, row as u64))
    }

    #[test]
    fn counts_are_those_of_the_published_recipe() {
        let rounds = RoundsConfig::default().check(Grid::new(14, 14)).unwrap();
        let counts: Vec<_> = rounds.counts().iter().map(|c| (c.keep, c.decode)).collect();
        assert_eq!(counts, [(88, 127), (49, 88)]);
        assert_eq!(kept_count(100, 0.55), 44, "1 - 0.55 in f64 is below 0.45");
    }

    #[test]
    fn the_second_of_two_rounds_shows_what_the_first_did_not_use() {
        let rounds = RoundsConfig::default().check(Grid::new(8, 8)).unwrap();
        let drawn = draw(&rounds, 5);
        assert_eq!(rounds.complemented(drawn[0].ids().to_vec()).unwrap(), drawn);
        let (first, second) = (&drawn[0], &drawn[1]);
        assert_ne!(first.ids()[..64], first.ids()[64..128], "each row has its own");
        let set = |list: &[u32]| list.iter().copied().collect::<std::collections::BTreeSet<_>>();
        assert!(set(&first.visible()).is_disjoint(&set(&second.visible())));
        assert!(set(&second.masked()).is_subset(&set(&first.masked())), "13 hidden patches, then 12 of them");
        let again = rounds.from_permutations(drawn.iter().map(|round| round.ids().to_vec()).collect()).unwrap();
        assert_eq!(again, drawn);
    }

    #[test]
    fn independent_rounds_share_no_permutation() {
        let pair = [(0.55, 0.35), (0.75, 0.55)];
        let three = [(0.65, 0.45), (0.7, 0.5), (0.6, 0.4)];
        for config in [rounds(&pair, false), rounds(&three, true)] {
            let rounds = config.check(Grid::new(8, 8)).unwrap();
            assert!(!rounds.complementary());
            let drawn = draw(&rounds, 3);
            assert_eq!(drawn.len(), config.rounds.len());
            let meet = drawn[0].visible().iter().any(|patch| drawn[1].visible().contains(patch));
            assert!(meet && drawn[0].ids() != drawn[1].ids());
        }
    }

    #[test]
    fn flat_indices_count_over_the_batch() {
        let rounds = rounds(&[(0.5, 0.25)], true).check(Grid::new(2, 2)).unwrap();
        let round = rounds.from_permutations(vec![vec![2, 0, 3, 1, 1, 3, 0, 2]]).unwrap().remove(0);
        assert_eq!((round.rows(), round.patches(), round.visible()), (2, 4, vec![2, 0, 5, 7]));
        assert_eq!((round.decoded(), round.masked()), (vec![2, 0, 3, 5, 7, 4], vec![3, 4]));
        assert_eq!(round.masked_rows(), [2, 5]);
    }

    #[test]
    fn every_place_of_a_row_is_equally_likely() {
        let rounds = rounds(&[(0.5, 0.0)], true).check(Grid::new(2, 3)).unwrap();
        let round = draw(&rounds, 6000).remove(0);
        let mut firsts = [0_usize; 6];
        round.ids().chunks(6).for_each(|row| firsts[row[0] as usize] += 1);
        // Five standard deviations: 5 * sqrt(1000 * 5/6) = 144.
        assert!(firsts.iter().all(|count| count.abs_diff(1000) < 145), "{firsts:?}");
    }

    #[test]
    fn each_refusal_names_its_field() {
        let one = |mask, decode| rounds(&[(mask, decode)], true);
        assert!(refused(&rounds(&[], true), 8).starts_with("rounds = 0: must be at least 1"));
        assert!(refused(&one(1.0, 0.0), 8).starts_with("rounds[0].mask = 1: must be between"));
        assert!(refused(&one(f64::NAN, 0.0), 8).starts_with("rounds[0].mask = NaN"));
        assert!(refused(&one(0.5, -0.1), 8).starts_with("rounds[0].decode_mask = -0.1"));
        assert!(refused(&one(0.9, 0.0), 3).starts_with("rounds[0].mask = 0.9: must leave at least one of 9"));
        let message = refused(&rounds(&[(0.65, 0.45), (0.65, 0.65)], false), 8);
        assert!(message.starts_with("rounds[1].decode_mask = 0.65: must leave more"), "{message}");
        // 64 patches: the first round uses 57, the second would show 38.
        let message = refused(&rounds(&[(0.6, 0.1), (0.4, 0.2)], true), 8);
        assert!(message.starts_with("complementary = true: cannot be: the first round leaves 7 of 64"), "{message}");
        assert!(rounds(&[(0.6, 0.1), (0.4, 0.2)], false).check(Grid::new(8, 8)).is_ok());
        assert!(refused(&one(0.5, 0.0), 0).starts_with("rounds[0].mask"));
    }

    #[test]
    fn recorded_rounds_must_be_permutations() {
        let rounds = rounds(&[(0.5, 0.25)], true).check(Grid::new(2, 2)).unwrap();
        let error = rounds.from_permutations(vec![vec![0, 1, 2, 3, 0, 1, 1, 3]]).unwrap_err();
        assert_eq!(error, RoundError::NoPermutation { round: 0, row: 1, patches: 4 });
        assert!(rounds.from_permutations(vec![vec![0, 1, 2, 3, 0, 1]]).is_err());
        assert_eq!(rounds.from_permutations(vec![]).unwrap_err(), RoundError::Rounds { got: 0, expected: 1 });
    }
}
