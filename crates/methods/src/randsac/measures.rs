//! Numbers that say how a step went: losses by place in the order, how the skips spread.

use candle_core::{DType, Tensor};
use occlude_kernels::Result;

/// Quarters of the order after the first segment, early ones first.
const QUARTERS: [&str; 4] = ["loss_quarter_1", "loss_quarter_2", "loss_quarter_3", "loss_quarter_4"];

/// Mean loss of the first segments (`loss_first`) and of each quarter of the ranks after them, where there are tokens in it;
/// and the mean number of segments. losses and ranks: of the tokens, `tokens` an image.
pub(super) fn by_rank(losses: &[f64], ranks: &[u32], tokens: usize) -> Vec<(&'static str, f64)> {
    let mut sums = [(0.0, 0_usize); 5];
    let (mut segments, mut images) = (0.0, 0_usize);
    for (losses, ranks) in losses.chunks(tokens).zip(ranks.chunks(tokens)) {
        let last = ranks.iter().copied().max().unwrap_or(0);
        segments += f64::from(last) + 1.0;
        images += 1;
        for (loss, rank) in losses.iter().zip(ranks) {
            // Ranks 1 to `last` in four parts as equal as they can be.
            let part = rank.checked_sub(1).map_or(0, |later| 1 + (4 * later / last) as usize);
            sums[part].0 += loss;
            sums[part].1 += 1;
        }
    }
    let names = ["loss_first"].into_iter().chain(QUARTERS);
    let means = names.zip(sums).filter(|(_, (_, count))| *count > 0);
    let mut measures: Vec<_> = means.map(|(name, (sum, count))| (name, sum / count as f64)).collect();
    measures.push(("segments", segments / images.max(1) as f64));
    measures
}

/// Mean over the decoder's layers of the entropy of the magnitudes of their weights, in nats: 0 where a layer reads one
/// block, the logarithm of the number of blocks where it reads all alike. weights: [layers, blocks]
pub(super) fn skip_entropy(weights: &Tensor) -> Result<f64> {
    let rows = weights.detach().to_dtype(DType::F64)?.to_vec2::<f64>()?;
    let entropy = |row: &Vec<f64>| -> f64 {
        let sum: f64 = row.iter().map(|weight| weight.abs()).sum();
        let shares = row.iter().map(|weight| weight.abs() / sum).filter(|share| *share > 0.0);
        shares.map(|share| -share * share.ln()).sum()
    };
    Ok(rows.iter().map(entropy).sum::<f64>() / rows.len().max(1) as f64)
}

#[cfg(test)]
mod tests {
    use super::{by_rank, skip_entropy};
    use candle_core::{Device, Tensor};

    #[test]
    fn losses_are_sorted_by_their_place() {
        // One image of nine segments, one of two.
        let ranks = [0, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0, 1];
        let losses = [9.0, 1.0, 1.0, 2.0, 2.0, 3.0, 3.0, 4.0, 4.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 4.0];
        let expected = [
            ("loss_first", 17.0 / 9.0),
            ("loss_quarter_1", 2.0),
            ("loss_quarter_2", 2.0),
            ("loss_quarter_3", 3.0),
            ("loss_quarter_4", 4.0),
            ("segments", 5.5),
        ];
        assert_eq!(by_rank(&losses, &ranks, 9), expected);
        assert_eq!(by_rank(&[2.0, 4.0], &[0, 0], 2), [("loss_first", 3.0), ("segments", 1.0)], "one segment");
    }

    #[test]
    fn the_entropy_of_one_block_and_of_all() {
        let entropy = |rows: &[f64]| {
            let weights = Tensor::from_slice(rows, (rows.len() / 4, 4), &Device::Cpu).unwrap();
            skip_entropy(&weights).unwrap()
        };
        assert_eq!(entropy(&[0.0, 0.0, 0.0, 1.0, 0.0, -3.0, 0.0, 0.0]), 0.0);
        assert!((entropy(&[0.5, -0.5, 0.5, 0.5]) - 4.0_f64.ln()).abs() < 1e-12);
    }
}
