//! How good predicted pixel labels are.

use crate::{Error, Result};

/// Both in percent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SegmentationScore {
    /// Mean over labels of intersection over union.
    pub mean_iou: f64,
    /// Pixels labelled rightly.
    pub accuracy: f64,
}

/// Compares pixel by pixel. Pixels whose true label is ignored are left out; the mean runs over the labels that are left
/// in the truth *or* the prediction, so that a predicted ignored label counts as one more label that is never right.
///
/// # Errors
/// Lists of different length, or no pixel that counts.
pub fn segmentation_score(truth: &[u8], predicted: &[u8], ignored: &[u8]) -> Result<SegmentationScore> {
    if truth.len() != predicted.len() {
        let (expected, got) = (truth.len(), predicted.len());
        return Err(Error::Mismatch(format!("segmentation: {got} predicted labels for {expected} pixels")));
    }
    let mut both = [0_u64; 256];
    let mut either = [0_u64; 256];
    let mut pixels = 0_u64;
    for (&truth, &predicted) in truth.iter().zip(predicted).filter(|(truth, _)| !ignored.contains(truth)) {
        pixels += 1;
        either[usize::from(truth)] += 1;
        if truth == predicted {
            both[usize::from(truth)] += 1;
        } else {
            either[usize::from(predicted)] += 1;
        }
    }
    if pixels == 0 {
        return Err(Error::NoLabels { what: "segmentation" });
    }
    let overlaps: Vec<f64> = both
        .iter()
        .zip(either)
        .filter(|(_, either)| *either > 0)
        .map(|(both, either)| *both as f64 / either as f64)
        .collect();
    Ok(SegmentationScore {
        mean_iou: 100.0 * overlaps.iter().sum::<f64>() / overlaps.len() as f64,
        accuracy: 100.0 * both.iter().sum::<u64>() as f64 / pixels as f64,
    })
}
