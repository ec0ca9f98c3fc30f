//! Whitened principal components of patch features, and the picture made of the first three (CAPI, visualisations of
//! features).

use crate::eigen::symmetric;
use crate::{Error, Result};
use candle_core::{Device, Tensor};

/// Components of a picture of one image.
pub(crate) const PER_IMAGE: usize = 6;
/// Components over all patches of all images.
pub(crate) const JOINT: usize = 10;
/// Components are mapped to 8 bits from minus to plus this many deviations.
const RANGE: f64 = 2.3;

/// Six whitened components of the patches of one image, divided by the deviation of the first; a component with
/// negative skewness is flipped.  features: [patches, dim] row-major  ->  [patches, 6] row-major
///
/// Where there are fewer directions than components, the last are 0.
///
/// # Errors
/// Fewer than two rows, a number of values that is no whole number of rows, or a feature that is not finite.
pub fn per_image_components(features: &[f32], dim: usize) -> Result<Vec<f64>> {
    components(features, dim, PER_IMAGE)
}

/// Ten components over all patches of all images, by the same rules.  [patches of all images, dim]  ->  [.., 10]
///
/// # Errors
/// As [`per_image_components`].
pub fn joint_components(features: &[f32], dim: usize) -> Result<Vec<f64>> {
    components(features, dim, JOINT)
}

fn components(features: &[f32], dim: usize, count: usize) -> Result<Vec<f64>> {
    let rows = features.len().checked_div(dim).unwrap_or(0);
    if rows < 2 || rows * dim != features.len() {
        let values = features.len();
        return Err(Error::Mismatch(format!("PCA: {values} values are not two or more rows of {dim}")));
    }
    if let Some(place) = features.iter().position(|value| !value.is_finite()) {
        return Err(Error::NotFinite { what: "PCA", row: place / dim });
    }
    let centred = centre(features, dim, rows)?; // [rows, dim]
    let mut scores = if rows < dim { from_gram(&centred, count)? } else { from_covariance(&centred, count)? };
    upright(&mut scores, count);
    let deviation = deviation(scores.iter().step_by(count));
    if deviation > 0.0 {
        scores.iter_mut().for_each(|score| *score /= deviation);
    }
    Ok(scores)
}

fn centre(features: &[f32], dim: usize, rows: usize) -> Result<Tensor> {
    let mut mean = vec![0.0_f64; dim];
    for row in features.chunks_exact(dim) {
        mean.iter_mut().zip(row).for_each(|(sum, value)| *sum += f64::from(*value));
    }
    mean.iter_mut().for_each(|sum| *sum /= rows as f64);
    let centred = features.iter().zip(mean.iter().cycle()).map(|(value, mean)| f64::from(*value) - mean).collect();
    Ok(Tensor::from_vec(centred, (rows, dim), &Device::Cpu)?)
}

/// Directions that carry less than this share of the first are rounding.
const NEGLIGIBLE: f64 = 1e-12;

/// Scores along the eigenvectors of the covariance, at unit variance (n - 1 in the denominator).
fn from_covariance(centred: &Tensor, count: usize) -> Result<Vec<f64>> {
    let (rows, dim) = centred.dims2()?;
    let scatter = centred.t()?.matmul(centred)?.flatten_all()?.to_vec1()?; // [dim, dim]
    let eigen = symmetric(scatter, dim);
    let mut axes = vec![0.0; count * dim];
    for (component, axis) in axes.chunks_exact_mut(dim).enumerate().take(dim) {
        let value = eigen.values[component];
        if value > NEGLIGIBLE * eigen.values[0] {
            let scale = ((rows - 1) as f64 / value).sqrt();
            let vector = &eigen.vectors[component * dim..(component + 1) * dim];
            axis.iter_mut().zip(vector).for_each(|(axis, x)| *axis = scale * x);
        }
    }
    let axes = Tensor::from_vec(axes, (count, dim), &Device::Cpu)?; // [count, dim]
    Ok(centred.matmul(&axes.t()?)?.flatten_all()?.to_vec1()?)
}

/// The same from the products of the rows, where there are fewer rows than channels: the scores are its eigenvectors.
fn from_gram(centred: &Tensor, count: usize) -> Result<Vec<f64>> {
    let rows = centred.dim(0)?;
    let gram = centred.matmul(&centred.t()?)?.flatten_all()?.to_vec1()?; // [rows, rows]
    let eigen = symmetric(gram, rows);
    let scale = ((rows - 1) as f64).sqrt();
    let mut scores = vec![0.0; rows * count];
    for component in 0..count.min(rows) {
        if eigen.values[component] > NEGLIGIBLE * eigen.values[0] {
            for row in 0..rows {
                scores[row * count + component] = scale * eigen.vectors[component * rows + row];
            }
        }
    }
    Ok(scores)
}

/// Flips every component whose third central moment is negative: signs of eigenvectors are arbitrary.
fn upright(scores: &mut [f64], count: usize) {
    for component in 0..count {
        let column = || scores.iter().skip(component).step_by(count);
        let mean = column().sum::<f64>() / column().count() as f64;
        if column().map(|score| (score - mean).powi(3)).sum::<f64>() < 0.0 {
            scores.iter_mut().skip(component).step_by(count).for_each(|score| *score = -*score);
        }
    }
}

/// Population deviation.
fn deviation<'a>(values: impl Iterator<Item = &'a f64> + Clone) -> f64 {
    let count = values.clone().count() as f64;
    let mean = values.clone().sum::<f64>() / count;
    (values.map(|value| (value - mean).powi(2)).sum::<f64>() / count).sqrt()
}

/// The first three of `count` components as red, green and blue: -2.3 to 2.3 becomes 0 to 255, clipped and truncated.
/// components: [patches, count]  ->  [patches, 3]
#[must_use]
pub fn rgb(components: &[f64], count: usize) -> Vec<u8> {
    let level = |score: f64| ((score + RANGE) / (2.0 * RANGE) * 255.0).clamp(0.0, 255.0) as u8;
    components
        .chunks_exact(count.max(1))
        .flat_map(|row| (0..3).map(move |c| level(row.get(c).copied().unwrap_or(0.0))))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::{JOINT, PER_IMAGE, joint_components, per_image_components, rgb};
    use crate::Error;
    use candle_core::{DType, Tensor};
    use occlude_golden::assert_close;

    fn values(tensor: &Tensor) -> Vec<f32> {
        tensor.flatten_all().unwrap().to_dtype(DType::F32).unwrap().to_vec1().unwrap()
    }

    #[test]
    fn golden_capi_pca() {
        let Some(tensors) = occlude_golden::set("capi").tensors("patch_eval") else { return };
        let features = &tensors["pca.features"];
        let (images, patches, dim) = features.dims3().unwrap();
        let like =
            |got: &[f64], reference: &Tensor| Tensor::from_slice(got, reference.dims(), reference.device()).unwrap();
        for image in 0..images {
            let got = per_image_components(&values(&features.get(image).unwrap()), dim).unwrap();
            let reference = &tensors[&format!("pca.image{image}.components")];
            assert_eq!(reference.dims(), [patches, PER_IMAGE]);
            assert_close(&format!("image {image}"), &like(&got, reference), reference, 1e-4);

            let picture = &tensors[&format!("pca.image{image}.rgb")]; // [3, rows, cols]
            let picture = picture.flatten_from(1).unwrap().t().unwrap().contiguous().unwrap(); // [patches, 3]
            let worst = rgb(&got, PER_IMAGE).into_iter().zip(values(&picture)).map(|(a, b)| (f32::from(a) - b).abs());
            assert!(worst.fold(0.0, f32::max) <= 1.0, "the picture of image {image} is more than a level off");
        }
        let reference = &tensors["pca.joint.components"];
        assert_eq!(reference.dims(), [images, patches, JOINT]);
        let joint = joint_components(&values(features), dim).unwrap();
        assert_close("joint", &like(&joint, reference), reference, 1e-4);
    }

    #[test]
    fn both_ways_to_the_components_agree() {
        // 12 rows in 20 dimensions that span only 9: the ninth and last is the least.
        let base: Vec<f32> = (0..12 * 9).map(|i| ((i * i * 7 + 3 * i) % 23) as f32 - 11.0).collect();
        let narrow = per_image_components(&base, 9).unwrap();
        let wide: Vec<f32> = base.chunks_exact(9).flat_map(|row| row.iter().copied().chain([2.0; 11])).collect();
        let gram = per_image_components(&wide, 20).unwrap();
        for (a, b) in narrow.iter().zip(&gram) {
            assert!((a - b).abs() < 1e-9, "{a} against {b}");
        }
    }

    #[test]
    fn missing_directions_are_zero_and_not_noise() {
        let line: Vec<f32> = (0..8).flat_map(|i| [i as f32, 2.0 * i as f32, 5.0]).collect();
        let got = per_image_components(&line, 3).unwrap();
        assert!(got.chunks_exact(PER_IMAGE).all(|row| row[1..].iter().all(|score| *score == 0.0)), "{got:?}");
        let constant = per_image_components(&[1.5; 12], 3).unwrap();
        assert!(constant.iter().all(|score| *score == 0.0));
    }

    #[test]
    fn colours_are_clipped_and_truncated() {
        assert_eq!(rgb(&[-9.0, 0.0, 9.0, 1.0, 2.3, -2.3, 0.001, 7.0], 4), [0, 127, 255, 255, 0, 127]);
    }

    #[test]
    fn what_is_no_matrix_is_refused() {
        assert!(matches!(per_image_components(&[1.0; 7], 3), Err(Error::Mismatch(_))));
        assert!(matches!(per_image_components(&[1.0; 3], 3), Err(Error::Mismatch(_))));
        assert!(matches!(per_image_components(&[1.0, f32::NAN, 1.0, 0.0], 2), Err(Error::NotFinite { .. })));
    }
}
