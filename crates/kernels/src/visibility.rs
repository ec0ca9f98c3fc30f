//! Which keys a query may see: all, by a table of pairs, or by ranks, without a table.

use crate::{Error, Result};
use candle_core::{DType, Device, Tensor};
use std::ops::{Range, RangeInclusive};

const OP: &str = "attention";

/// How two ranks compare for a key to be visible.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RankRule {
    /// A query sees keys whose rank is at most its own.
    AtMost,
    /// A query sees keys whose rank is below its own.
    Below,
}

/// Which keys a query may see. A query that sees nothing has the output 0.
///
/// Ranks take memory for each token, never for each pair. Where `Ranks` tell (or `Ranges` that end at the largest rank), native
/// products take tokens by rising rank, so that a block of queries multiplies the keys that it sees and few others: the same
/// numbers as from the mask but for rounding, and half of the work. Products by tiles hide what they need not have multiplied.
///
/// The masks of the autoregressive methods in ranks, with `r(j)`
/// the place of token j in the order that its image is predicted in:
///
/// | mask | rule | queries | keys |
/// | --- | --- | --- | --- |
/// | RandSAC: source, decoder self-attention | `AtMost` | `r(i)` | `r(j)` |
/// | RandSAC: memory (strictly earlier; the first segment sees itself) | `AtMost` | `max(r(i), 1) - 1` | `r(j)` |
/// | permuted image modelling with the cut c: content | `AtMost` | `max(r(i), c - 1)` | `r(j)` |
/// | permuted image modelling: query stream | `Below` | `r(i)` | `r(j)` |
/// | MaPeT with the cut c: content stream, patches | `Ranges` | `max(r(i), c - 1)` | patch `r(j)..=MAX`, mask token `0..=r(j) - 1` |
/// | MaPeT: content stream, mask tokens | `Ranges` | `c - 1` | the same |
/// | MaPeT: query stream | `Ranges` | `r(i) - 1` | the same |
///
/// So two streams that read the same keys take one list: the queries of the one, then those of the other.
/// A cut makes the context see all of itself: its tokens share the rank c - 1. A token that all may see, such as a class
/// token, is a key of rank 0 under `AtMost`; one that sees all is a query of the largest rank. Where ranks are unequal,
/// `AtMost` is `Below` and a token's own self.
#[derive(Clone, Debug)]
pub enum Visibility {
    /// All of them.
    All,
    /// Where the u8 tensor, [nq, nk] or [batch, nq, nk], is not 0.
    Mask(Tensor),
    /// By rank, as in autoregression over groups. Each list has one entry per token, for all images alike, or
    /// one per token of every image, image by image.
    Ranks {
        /// Ranks of the queries: nq or batch * nq.
        queries: Vec<u32>,
        /// Ranks of the keys: nk or batch * nk.
        keys: Vec<u32>,
        /// How they compare.
        rule: RankRule,
    },
    /// As `Ranks`, for keys of which some come into sight with a rising rank and others leave it.
    Ranges {
        /// Ranks of the queries: nq or batch * nq.
        queries: Vec<u32>,
        /// The ranks of the queries that see a key: nk or batch * nk. An empty range hides it from all.
        keys: Vec<RangeInclusive<u32>>,
    },
}

impl Visibility {
    /// What the kernel reads of `nq` queries and `nk` keys an image; nothing where all is visible. The shapes were checked.
    pub(crate) fn sight(&self, nq: usize, nk: usize) -> Result<Option<Sight>> {
        let (queries, first, last): (_, Vec<u32>, Vec<u32>) = match self {
            Self::All => return Ok(None),
            Self::Mask(mask) => {
                let images = if mask.rank() == 3 { mask.dim(0)? } else { 1 };
                let visible = mask.to_device(&Device::Cpu)?.flatten_all()?.to_vec1()?;
                return Ok(Some(Sight::Pairs { visible, images }));
            }
            Self::Ranks { queries, keys, rule } => {
                let (first, last) = keys.iter().map(|key| rule.range(*key)).unzip();
                (queries.clone(), first, last)
            }
            Self::Ranges { queries, keys } => {
                let (first, last) = keys.iter().map(|range| (*range.start(), *range.end())).unzip();
                (queries.clone(), first, last)
            }
        };
        let lasting = last.iter().all(|last| *last == u32::MAX);
        let sorted = lasting.then(|| Sorted { queries: Ordered::of(&queries, nq), keys: Ordered::of(&first, nk) });
        Ok(Some(Sight::Ranks { queries, first, last, sorted }))
    }

    /// All pairs, one byte each, [images, nq, nk], with the batch or 1 for the images; nothing where all is visible. For
    /// the plain form of attention.
    pub(crate) fn pairs(&self, batch: usize, nq: usize, nk: usize) -> Result<Option<(Vec<u8>, usize)>> {
        Ok(self.sight(nq, nk)?.map(|sight| match sight {
            Sight::Pairs { visible, images } => (visible, images),
            ranks @ Sight::Ranks { .. } => {
                let images = 0..batch;
                let rows = images.flat_map(|image| (0..nq).map(move |query| (image, query)));
                let visible = rows.flat_map(|(image, query)| {
                    let row = ranks.of(image, nq, nk).row(query, nk);
                    (0..nk).map(move |key| u8::from(row.sees(key)))
                });
                (visible.collect(), batch)
            }
        }))
    }

    pub(crate) fn check(&self, batch: usize, nq: usize, nk: usize) -> Result<()> {
        match self {
            Self::All => Ok(()),
            Self::Mask(mask) if mask.dtype() != DType::U8 => {
                Err(Error::Dtype { op: OP, expected: "U8 for the mask", got: mask.dtype() })
            }
            Self::Mask(mask) if mask.dims() == [nq, nk] || mask.dims() == [batch, nq, nk] => Ok(()),
            Self::Mask(mask) => {
                Err(Error::shape(OP, format!("a mask [{nq}, {nk}] or [{batch}, {nq}, {nk}]"), mask.dims()))
            }
            Self::Ranks { queries, keys, .. } => check_ranks([queries.len(), keys.len()], batch, [nq, nk]),
            Self::Ranges { queries, keys } => check_ranks([queries.len(), keys.len()], batch, [nq, nk]),
        }
    }
}

fn check_ranks(lens: [usize; 2], batch: usize, tokens: [usize; 2]) -> Result<()> {
    for (what, (len, tokens)) in ["queries", "keys"].iter().zip(lens.into_iter().zip(tokens)) {
        if len != tokens && len != batch * tokens {
            return Err(Error::argument(OP, format!("{len} ranks of {what}: must be {tokens} or {batch} * {tokens}")));
        }
    }
    Ok(())
}

impl RankRule {
    /// The lowest and the highest rank of a query that sees the key.
    fn range(self, key: u32) -> (u32, u32) {
        match self {
            Self::AtMost => (key, u32::MAX),
            // No rank is above the largest: nobody sees that key.
            Self::Below => key.checked_add(1).map_or((u32::MAX, 0), |above| (above, u32::MAX)),
        }
    }
}

/// What is visible, as the kernel reads it. Each list is that of one image, where all share it, or of every image.
#[derive(Clone, Debug)]
pub(crate) enum Sight {
    /// [images, nq, nk], 0 where hidden.
    Pairs { visible: Vec<u8>, images: usize },
    /// A query sees a key where its rank is at least `first` and at most `last`.
    Ranks { queries: Vec<u32>, first: Vec<u32>, last: Vec<u32>, sorted: Option<Sorted> },
}

/// Queries and keys by rising rank, where no key leaves sight again: there every query sees leading keys alone.
#[derive(Clone, Debug)]
pub(crate) struct Sorted {
    queries: Ordered,
    keys: Ordered,
}

/// Of one image or of every image, as the list of ranks.
#[derive(Clone, Debug)]
struct Ordered {
    /// Which tokens, in this order.
    tokens: Vec<u32>,
    /// Their ranks.
    ranks: Vec<u32>,
}

impl Ordered {
    fn of(ranks: &[u32], tokens_of_image: usize) -> Self {
        let images = ranks.chunks(tokens_of_image.max(1));
        let tokens: Vec<u32> = images
            .flat_map(|ranks| {
                let mut tokens: Vec<u32> = (0..).take(ranks.len()).collect();
                tokens.sort_by_key(|token| ranks[*token as usize]);
                tokens
            })
            .collect();
        let places = tokens.iter().enumerate().map(|(i, token)| i - i % tokens_of_image.max(1) + *token as usize);
        Self { ranks: places.map(|place| ranks[place]).collect(), tokens }
    }
}

/// What one image sees.
#[derive(Clone, Copy)]
pub(crate) enum Seen<'a> {
    All,
    /// [nq, nk].
    Pairs(&'a [u8]),
    /// [nq] and twice [nk].
    Ranks(&'a [u32], [&'a [u32]; 2]),
}

/// What one query sees.
#[derive(Clone, Copy)]
pub(crate) enum SeenRow<'a> {
    All,
    Pairs(&'a [u8]),
    Rank(u32, [&'a [u32]; 2]),
}

/// The entries of one image in a list of all images or of one.
fn part<T>(list: &[T], image: usize, len: usize) -> &[T] {
    &list[if list.len() == len { 0 } else { image * len }..][..len]
}

impl Sight {
    pub(crate) fn of(&self, image: usize, nq: usize, nk: usize) -> Seen<'_> {
        match self {
            Self::Pairs { visible, images } => {
                Seen::Pairs(part(visible, if *images == 1 { 0 } else { image }, nq * nk))
            }
            Self::Ranks { queries, first, last, .. } => {
                Seen::Ranks(part(queries, image, nq), [part(first, image, nk), part(last, image, nk)])
            }
        }
    }

    /// What one image sees with queries and keys in an order that saves work, and these orders; `None` where there is none.
    pub(crate) fn sorted(&self, image: usize, nq: usize, nk: usize) -> Option<(Seen<'_>, [&[u32]; 2])> {
        let Self::Ranks { last, sorted: Some(Sorted { queries, keys }), .. } = self else { return None };
        let ranks = [part(&keys.ranks, image, nk), part(last, image, nk)];
        let orders = [part(&queries.tokens, image, nq), part(&keys.tokens, image, nk)];
        Some((Seen::Ranks(part(&queries.ranks, image, nq), ranks), orders))
    }
}

impl<'a> Seen<'a> {
    #[inline(always)]
    pub(crate) fn row(self, query: usize, nk: usize) -> SeenRow<'a> {
        match self {
            Self::All => SeenRow::All,
            Self::Pairs(visible) => SeenRow::Pairs(&visible[query * nk..][..nk]),
            Self::Ranks(queries, keys) => SeenRow::Rank(queries[query], keys),
        }
    }

    /// How many leading keys there are beyond which none of these queries sees any.
    #[inline(always)]
    pub(crate) fn leading(self, queries: Range<usize>, nk: usize) -> usize {
        let Self::Ranks(ranks, [first, _]) = self else { return nk };
        let most = ranks[queries].iter().copied().max();
        most.map_or(0, |most| first.iter().rposition(|first| *first <= most).map_or(0, |last| last + 1))
    }
}

impl SeenRow<'_> {
    fn sees(self, key: usize) -> bool {
        match self {
            Self::All => true,
            Self::Pairs(visible) => visible[key] != 0,
            Self::Rank(rank, [first, last]) => first[key] <= rank && rank <= last[key],
        }
    }

    /// Whether none of `nk` keys is visible.
    pub(crate) fn nothing(self, nk: usize) -> bool {
        !(0..nk).any(|key| self.sees(key))
    }
}

#[cfg(test)]
mod tests {
    use super::{RankRule, Visibility};

    /// Places of `n` tokens in an order of their own; the first token comes first.
    fn places(seed: u64, n: usize) -> Vec<u32> {
        let mut order: Vec<u64> = (1..n as u64).collect();
        order.sort_by_key(|i| (i + seed).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let mut places = vec![0; n];
        (1..).zip(order).for_each(|(place, token)| places[token as usize] = place);
        places
    }

    fn seen(visibility: &Visibility, nq: usize, nk: usize) -> Vec<bool> {
        visibility.check(1, nq, nk).unwrap();
        let (visible, _) = visibility.pairs(1, nq, nk).unwrap().unwrap();
        visible.into_iter().map(|visible| visible != 0).collect()
    }

    /// Whether each query sees each key by the words of the rule.
    fn told(nq: usize, nk: usize, sees: impl Fn(usize, usize) -> bool) -> Vec<bool> {
        (0..nq * nk).map(|pair| sees(pair / nk, pair % nk)).collect()
    }

    #[test]
    fn the_masks_over_segments_are_ranks() {
        // Several tokens to a segment, ten segments at most.
        let r: Vec<u32> = places(3, 23).iter().map(|place| place % 10).collect();
        let n = r.len();
        let ranks = |queries: Vec<u32>| Visibility::Ranks { queries, keys: r.clone(), rule: RankRule::AtMost };
        assert_eq!(seen(&ranks(r.clone()), n, n), told(n, n, |i, j| r[j] <= r[i]), "source");
        let memory = told(n, n, |i, j| r[j] < r[i] || (r[i] == 0 && r[j] == 0));
        assert_eq!(seen(&ranks(r.iter().map(|rank| rank.saturating_sub(1)).collect()), n, n), memory);
    }

    #[test]
    fn the_masks_over_a_cut_are_ranks() {
        for (n, cut) in [(17, 5), (9, 1), (9, 9), (30, 29)] {
            let r = places(n as u64, n);
            let c = cut as u32;
            let targets: Vec<usize> = (0..n).filter(|j| r[*j] >= c).collect();
            let known: Vec<u32> = r.iter().map(|rank| (*rank).max(c - 1)).collect();
            let ahead = |rows: &[usize]| rows.iter().map(|i| r[*i]).collect::<Vec<u32>>();
            let ranks = |queries, rule| Visibility::Ranks { queries, keys: r.clone(), rule };

            // Permuted image modelling: content, then the query stream.
            let content = |i: usize, j: usize| r[j] < c.max(r[i]) || i == j;
            assert_eq!(seen(&ranks(known.clone(), RankRule::AtMost), n, n), told(n, n, content));
            let t = targets.len();
            let query = |i: usize, j: usize| r[j] < r[targets[i]];
            assert_eq!(seen(&ranks(ahead(&targets), RankRule::Below), t, n), told(t, n, query));

            // With mask tokens as keys: patches, mask tokens, then the query stream.
            let mut queries = known;
            queries.extend(targets.iter().map(|_| c - 1));
            queries.extend(targets.iter().map(|i| r[*i] - 1));
            let mut keys: Vec<_> = r.iter().map(|rank| *rank..=u32::MAX).collect();
            keys.extend(targets.iter().map(|j| 0..=r[*j] - 1));
            let both = told(n + 2 * t, n + t, |i, j| {
                let is_patch = j < n;
                let key = r[if is_patch { j } else { targets[j - n] }];
                match (i, is_patch) {
                    (i, true) if i < n => content(i, j),
                    (i, false) if i < n => key > r[i],
                    (i, true) if i < n + t => key < c,
                    (i, false) if i < n + t => true,
                    (i, true) => key < r[targets[i - n - t]],
                    (i, false) => key >= r[targets[i - n - t]],
                }
            });
            assert_eq!(seen(&Visibility::Ranges { queries, keys }, n + 2 * t, n + t), both);
        }
    }

    /// The plain form of attention finds an image's ranks as the kernel does, so the lists are judged here by hand.
    #[test]
    fn each_image_has_its_own_ranks_or_all_share_them() {
        let pairs = |queries: &[u32], keys: &[u32]| {
            let ranks = Visibility::Ranks { queries: queries.to_vec(), keys: keys.to_vec(), rule: RankRule::AtMost };
            ranks.pairs(2, 1, 2).unwrap().unwrap().0
        };
        assert_eq!(pairs(&[0, 2], &[0, 1]), [1, 0, 1, 1], "queries of each image");
        assert_eq!(pairs(&[1], &[0, 2, 2, 1]), [1, 0, 0, 1], "keys of each image");
        assert_eq!(pairs(&[1, 2], &[0, 2, 3, 2]), [1, 0, 0, 1], "both");
        assert_eq!(pairs(&[1], &[2, 1]), [0, 1, 0, 1], "neither");
        let ranges = Visibility::Ranges { queries: vec![1], keys: vec![0..=1, 2..=3, 2..=3, 1..=1] };
        assert_eq!(ranges.pairs(2, 1, 2).unwrap().unwrap().0, [1, 0, 0, 1], "ranges of each image");
    }

    #[test]
    fn sorted_tokens_see_leading_keys_and_what_they_saw_before() {
        let (nq, nk) = (7, 11);
        let some = |seed: u64, n: usize| places(seed, n).iter().map(|place| place % 5).collect::<Vec<_>>();
        for rule in [RankRule::AtMost, RankRule::Below] {
            let (queries, keys) = ([some(1, nq), some(2, nq)].concat(), some(3, nk));
            let sight = Visibility::Ranks { queries, keys, rule }.sight(nq, nk).unwrap().unwrap();
            for image in 0..2 {
                let (plain, (seen, [by, keys_by])) = (sight.of(image, nq, nk), sight.sorted(image, nq, nk).unwrap());
                let sees = |query: usize, key: usize| seen.row(query, nk).sees(key);
                for (query, key) in (0..nq * nk).map(|pair| (pair / nk, pair % nk)) {
                    let judge = plain.row(by[query] as usize, nk).sees(keys_by[key] as usize);
                    assert_eq!(sees(query, key), judge, "{rule:?}, image {image}, {query} and {key}");
                }
                for end in 1..=nq {
                    let leading = (0..nk).rev().find(|key| sees(end - 1, *key)).map_or(0, |key| key + 1);
                    assert_eq!(seen.leading(0..end, nk), leading, "{rule:?}, image {image}, up to query {end}");
                }
            }
        }
        let leaves = Visibility::Ranges { queries: vec![1], keys: vec![0..=3] }.sight(1, 1).unwrap().unwrap();
        assert!(leaves.sorted(0, 1, 1).is_none(), "a key that leaves sight is no leading one");
    }

    #[test]
    fn the_largest_rank_is_no_exception() {
        let most = |rule| seen(&Visibility::Ranks { queries: vec![u32::MAX], keys: vec![0, u32::MAX], rule }, 1, 2);
        assert_eq!(most(RankRule::AtMost), [true, true]);
        assert_eq!(most(RankRule::Below), [true, false]);
    }
}
