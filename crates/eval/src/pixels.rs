//! Raw pixels as features: the baseline every learned feature must pass.

use crate::features::{FeatureSet, describe, images};
use crate::{Error, Result};
use candle_core::Device;
use occlude_data::{Dataset, EvalTransform};

/// How pixels become a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PixelForm {
    /// Every normalised value.
    Plain,
    /// The mean of each of `side x side` equal areas, channel by channel.
    Averaged {
        /// Areas along one side; divides the height and width of the transformed image.
        side: usize,
    },
}

/// Normalised pixels of the images asked for, through the same transform as a model would see.
///
/// # Errors
/// No image could be read, or the image side is not a multiple of the areas asked for.
pub fn pixel_features(
    dataset: &dyn Dataset,
    transform: &EvalTransform,
    indices: &[usize],
    form: PixelForm,
) -> Result<FeatureSet> {
    let mut kept = Vec::with_capacity(indices.len());
    let mut rows: Vec<f32> = Vec::new();
    for some in indices.chunks(512) {
        let (read, pixels) = images(dataset, transform, some, &Device::Cpu)?;
        let Some(pixels) = pixels else { continue };
        let pixels = match form {
            PixelForm::Plain => pixels,
            PixelForm::Averaged { side } => {
                let size = transform.size();
                if side == 0 || !size.is_multiple_of(side) {
                    return Err(Error::Mismatch(format!("pixels: {size} pixels do not divide into {side} areas")));
                }
                pixels.avg_pool2d(size / side)?
            }
        };
        rows.extend(pixels.flatten_all()?.to_vec1::<f32>()?);
        kept.extend(read);
    }
    describe(dataset, rows, &kept)
}

/// Both sets less the mean row of the bank: cosine similarity then ignores what all images share.
///
/// # Errors
/// Rows of different length.
pub fn centred(bank: &FeatureSet, test: &FeatureSet) -> Result<(FeatureSet, FeatureSet)> {
    if bank.dim != test.dim || bank.is_empty() {
        return Err(Error::Mismatch(format!("centring: rows of {} and {} numbers", bank.dim, test.dim)));
    }
    let mut mean = vec![0.0_f64; bank.dim];
    for row in 0..bank.len() {
        mean.iter_mut().zip(bank.row(row)).for_each(|(sum, value)| *sum += f64::from(*value));
    }
    mean.iter_mut().for_each(|sum| *sum /= bank.len() as f64);
    let less = |set: &FeatureSet| {
        let mut set = set.clone();
        set.features.iter_mut().zip(mean.iter().cycle()).for_each(|(value, mean)| *value -= *mean as f32);
        set
    };
    Ok((less(bank), less(test)))
}

#[cfg(test)]
mod tests {
    use super::centred;
    use crate::FeatureSet;

    #[test]
    fn centring_takes_the_banks_mean_from_both() {
        let bank = FeatureSet::new(vec![1.0, 10.0, 3.0, 30.0], 2, vec![None; 2]).unwrap();
        let test = FeatureSet::new(vec![2.0, 20.0], 2, vec![None]).unwrap();
        let (bank, test) = centred(&bank, &test).unwrap();
        assert_eq!(bank.features, [-1.0, -10.0, 1.0, 10.0]);
        assert_eq!(test.features, [0.0, 0.0]);
    }
}
