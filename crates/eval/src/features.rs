//! One feature vector an image, from a frozen model (CAPI, features of a frozen model).

use crate::config::Pooling;
use crate::{Error, Result};
use candle_core::{D, DType, Device, Tensor};
use occlude_data::{Dataset, EvalTransform};
use occlude_vit::{Extractor, Extras, Features};
use rayon::prelude::*;

/// Rows of features, one an image, with what is known of each image.
#[derive(Clone, Debug, PartialEq)]
pub struct FeatureSet {
    /// Row-major.  [rows, dim]
    pub features: Vec<f32>,
    /// Length of a row.
    pub dim: usize,
    /// Class of each image, where it has one.
    pub labels: Vec<Option<u32>>,
    /// Index of each image in its data set.
    pub indices: Vec<usize>,
    /// Where each image came from.
    pub names: Vec<String>,
    /// Class names, empty if the data set has none.
    pub classes: Vec<String>,
}

impl FeatureSet {
    /// Rows numbered from 0, without names.
    ///
    /// # Errors
    /// The sizes do not fit: `features` must hold `labels.len() * dim` numbers and `dim` must not be 0.
    pub fn new(features: Vec<f32>, dim: usize, labels: Vec<Option<u32>>) -> Result<Self> {
        if dim == 0 || features.len() != labels.len() * dim {
            let (numbers, rows) = (features.len(), labels.len());
            return Err(Error::Mismatch(format!("features: {numbers} numbers are not {rows} rows of {dim}")));
        }
        let indices = (0..labels.len()).collect();
        let names = vec![String::new(); labels.len()];
        Ok(Self { features, dim, labels, indices, names, classes: Vec::new() })
    }

    /// How many rows.
    #[must_use]
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there is no row.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// Features of one image.
    #[must_use]
    pub fn row(&self, row: usize) -> &[f32] {
        &self.features[row * self.dim..(row + 1) * self.dim]
    }

    /// How many classes: those named, or one more than the largest label.
    #[must_use]
    pub fn class_count(&self) -> usize {
        let largest = self.labels.iter().flatten().max().map_or(0, |label| *label as usize + 1);
        largest.max(self.classes.len())
    }

    /// The rows given, in that order.
    #[must_use]
    pub fn select(&self, rows: &[usize]) -> Self {
        Self {
            features: rows.iter().flat_map(|&row| self.row(row)).copied().collect(),
            dim: self.dim,
            labels: rows.iter().map(|&row| self.labels[row]).collect(),
            indices: rows.iter().map(|&row| self.indices[row]).collect(),
            names: rows.iter().map(|&row| self.names[row].clone()).collect(),
            classes: self.classes.clone(),
        }
    }

    /// The rows that have a label, and their labels.
    pub(crate) fn labelled(&self, what: &'static str) -> Result<(Vec<usize>, Vec<u32>)> {
        let (rows, labels): (Vec<usize>, Vec<u32>) =
            self.labels.iter().enumerate().filter_map(|(row, label)| label.map(|label| (row, label))).unzip();
        if rows.is_empty() {
            return Err(Error::NoLabels { what });
        }
        Ok((rows, labels))
    }

    /// Refuses sizes that do not fit (the fields are anybody's) and numbers that are not finite.
    pub(crate) fn check(&self, what: &'static str) -> Result<()> {
        if self.dim == 0 || self.features.len() != self.labels.len() * self.dim {
            let (numbers, rows, dim) = (self.features.len(), self.labels.len(), self.dim);
            return Err(Error::Mismatch(format!("{what}: {numbers} numbers are not {rows} rows of {dim}")));
        }
        match self.features.iter().position(|value| !value.is_finite()) {
            Some(place) => Err(Error::NotFinite { what, row: place / self.dim }),
            None => Ok(()),
        }
    }
}

/// What [`features_of`] computes.
#[derive(Clone, Debug)]
pub struct FeatureRequest {
    /// Images by index, in the order wanted; see [`crate::choose`].
    pub indices: Vec<usize>,
    /// Images in one forward pass.
    pub batch: usize,
    /// One [`FeatureSet`] for each of these, from the same pass.
    pub poolings: Vec<Pooling>,
    /// Blocks that give their class token to [`Pooling::Class`] and [`Pooling::ClassAverage`], counted from the last.
    pub class_blocks: usize,
    /// Where the model's weights lie.
    pub device: Device,
}

impl FeatureRequest {
    /// Average patch tokens of these images, 64 at a time, on the CPU.
    #[must_use]
    pub fn new(indices: Vec<usize>) -> Self {
        Self { indices, batch: 64, poolings: vec![Pooling::Average], class_blocks: 1, device: Device::Cpu }
    }

    /// What the poolings need beyond what every pass gives.
    fn extras(&self) -> Extras {
        let class = self.poolings.iter().any(|pooling| matches!(pooling, Pooling::Class | Pooling::ClassAverage));
        Extras {
            before_norm: self.poolings.contains(&Pooling::BeforeNorm),
            class_blocks: if class { self.class_blocks } else { 0 },
        }
    }
}

/// Runs the model over the images asked for. `progress` is told how many of how many are done after each batch.
///
/// An image that cannot be read is left out, with a warning that names it.
///
/// # Errors
/// No image could be read; a pooling the model does not have; or the model refuses an image.
pub fn features_of(
    extractor: &dyn Extractor,
    dataset: &dyn Dataset,
    transform: &EvalTransform,
    request: &FeatureRequest,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Vec<FeatureSet>> {
    let mut pooled: Vec<Vec<f32>> = vec![Vec::new(); request.poolings.len()];
    let mut kept = Vec::with_capacity(request.indices.len());
    let mut done = 0;
    for indices in request.indices.chunks(request.batch.max(1)) {
        done += indices.len();
        let (rows, images) = images(dataset, transform, indices, &request.device)?;
        if let Some(images) = images {
            let features = extractor.features_with(&images, request.extras())?;
            for (rows, &pooling) in pooled.iter_mut().zip(&request.poolings) {
                rows.extend(pool(&features, pooling)?.flatten_all()?.to_vec1::<f32>()?);
            }
        }
        kept.extend(rows);
        progress(done, request.indices.len());
    }
    pooled.into_iter().map(|features| describe(dataset, features, &kept)).collect()
}

/// Reads and transforms images in parallel: the indices that could be read, and them.  [batch, 3, side, side]
pub(crate) fn images(
    dataset: &dyn Dataset,
    transform: &EvalTransform,
    indices: &[usize],
    device: &Device,
) -> Result<(Vec<usize>, Option<Tensor>)> {
    let read: Vec<Option<Vec<f32>>> = indices.par_iter().map(|&index| read_one(dataset, transform, index)).collect();
    let mut kept = Vec::with_capacity(indices.len());
    let mut values = Vec::new();
    for (&index, image) in indices.iter().zip(read) {
        if let Some(image) = image {
            kept.push(index);
            values.extend(image);
        }
    }
    if kept.is_empty() {
        return Ok((kept, None));
    }
    let side = transform.size();
    let images = Tensor::from_vec(values, (kept.len(), 3, side, side), device)?; // [batch, 3, side, side]
    Ok((kept, Some(images)))
}

fn read_one(dataset: &dyn Dataset, transform: &EvalTransform, index: usize) -> Option<Vec<f32>> {
    match dataset.read(index) {
        Ok(image) => Some(transform.apply(&image)),
        Err(error) => {
            tracing::warn!(image = dataset.name(index), %error, "left out of the evaluation");
            None
        }
    }
}

/// One row an image, f32: [batch, dim], or [batch, width] of the model's own vector, [batch, blocks * dim] of class tokens,
/// or one of these with [batch, dim] behind it.
fn pool(features: &Features, pooling: Pooling) -> Result<Tensor> {
    let average = || features.patches.mean(D::Minus2); // [batch, dim]
    let global = || features.global.clone().ok_or(Error::NoGlobal); // [batch, width]
    let class = || -> Result<Tensor> {
        let tokens = features.class.as_ref().ok_or(Error::NoClassToken { pooling: pooling.name() })?;
        Ok(tokens.flatten_from(1)?) // [batch, blocks * dim]
    };
    let before_norm = || features.before_norm.as_ref().ok_or(Error::NoBeforeNorm); // [batch, patches, dim]
    let pooled = match pooling {
        Pooling::Average => average()?,
        Pooling::Global => global()?,
        Pooling::Both => Tensor::cat(&[global()?, average()?], D::Minus1)?,
        Pooling::Class => class()?,
        Pooling::ClassAverage => Tensor::cat(&[class()?, average()?], D::Minus1)?,
        Pooling::BeforeNorm => before_norm()?.mean(D::Minus2)?, // [batch, dim]
    };
    Ok(pooled.to_dtype(DType::F32)?)
}

/// Adds what the data set knows of each row.
pub(crate) fn describe(dataset: &dyn Dataset, features: Vec<f32>, kept: &[usize]) -> Result<FeatureSet> {
    if kept.is_empty() {
        return Err(Error::NoneReadable { what: "features" });
    }
    let labels = kept.iter().map(|&index| dataset.label(index)).collect();
    let dim = features.len() / kept.len();
    let set = FeatureSet::new(features, dim, labels)?;
    let names = kept.iter().map(|&index| dataset.name(index)).collect();
    Ok(FeatureSet { indices: kept.to_vec(), names, classes: dataset.classes().to_vec(), ..set })
}
