//! `occlude features`: one vector an image, to a file.

use super::WhichWeights;
use crate::open;
use anyhow::Result;
use candle_core::{Device, Tensor};
use clap::{Args, ValueEnum};
use occlude_checkpoint::write_tensors;
use occlude_config::Run;
use occlude_data::{Dataset, EvalTransform, SourceConfig, Split};
use occlude_eval::write::{self, Format};
use occlude_eval::{FeatureRequest, Pooling, features_of};
use occlude_kernels::StateDict;
use occlude_vit::Extractor;
use std::path::PathBuf;
use std::sync::Arc;

/// Write the features of images to a file: npy, safetensors or Parquet, by the ending of its name.
#[derive(Args)]
#[command(after_help = "Examples:
  occlude features runs/quickstart --data photos --out features.npy
  occlude features runs/quickstart --data photos --pooling predictor --out features.parquet
  occlude features runs/quickstart --split test --out test.safetensors      the run's own images")]
pub(crate) struct Features {
    /// Folder of a run (its newest checkpoint is taken) or of one checkpoint.
    run: PathBuf,
    /// Images: a folder, tar shards, a CIFAR or IDX set; without it, those of the run.
    #[arg(long)]
    data: Option<String>,
    /// Which half of the images, where they are split; without it, `train`.
    #[arg(long)]
    split: Option<Half>,
    /// File to write: `.npy`, `.safetensors` or `.parquet`.
    #[arg(long)]
    out: PathBuf,
    /// How the tokens of an image become one vector.
    #[arg(long, default_value = "average")]
    pooling: How,
    /// Which weights.
    #[arg(long, default_value = "teacher")]
    weights: WhichWeights,
    /// Take this many images, from the first.
    #[arg(long, value_name = "COUNT")]
    limit: Option<usize>,
    /// Also write what goes into the network and what comes out, token by token (safetensors: `images`, `patches`,
    /// `global`), to compare with another implementation. Give a small `--limit`.
    #[arg(long, value_name = "FILE")]
    tokens: Option<PathBuf>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Half {
    /// The training split.
    Train,
    /// The split that is held out.
    Test,
}

#[derive(Clone, Copy, ValueEnum)]
enum How {
    /// Mean of the patch tokens.
    Average,
    /// The vector the model offers itself.
    Predictor,
    /// Both, one after the other.
    Both,
    /// The class token.
    Class,
    /// The class token, then the mean of the patch tokens.
    ClassAverage,
    /// Mean of the patch tokens before the encoder's final norm.
    BeforeNorm,
}

impl Features {
    pub(crate) fn run(self) -> Result<()> {
        let format = Format::of(&self.out)?;
        let opened = open::open(&self.run)?;
        let dataset = self.images(&opened.run)?;
        let transform = opened.run.crop.eval_transform(opened.run.eval_mode)?;
        let images: Vec<usize> = (0..self.limit.unwrap_or(usize::MAX).min(dataset.len())).collect();
        let request = FeatureRequest {
            poolings: vec![self.pooling()],
            batch: opened.run.eval.batch,
            class_blocks: opened.run.eval.class_blocks,
            device: opened.device.clone(),
            ..FeatureRequest::new(images.clone())
        };
        let extractor = opened.method.extractor(open::weights(self.weights.into()));
        let bar = indicatif::ProgressBar::new(images.len() as u64);
        let mut progress = |done: usize, _| bar.set_position(done as u64);
        let sets = features_of(&*extractor, &*dataset, &transform, &request, &mut progress)?;
        bar.finish_and_clear();
        for set in &sets {
            for file in write::features(&self.out, set, format)? {
                println!("{}: {} images, {} numbers each", file.display(), set.len(), set.dim);
            }
        }
        if let Some(path) = &self.tokens {
            write_tensors(path, &tokens(&*extractor, &*dataset, &transform, &images, &opened.device)?)?;
            println!("{}: images and tokens", path.display());
        }
        Ok(())
    }

    fn images(&self, run: &Run) -> Result<Arc<dyn Dataset>> {
        let split = if matches!(self.split, Some(Half::Test)) { Split::Test } else { Split::Train };
        let Some(path) = &self.data else { return Ok(occlude_data::open(&run.source, split)?) };
        // All of a folder that was named, not nine tenths of it.
        let source = SourceConfig { path: path.clone(), holdout: 0.0, ..SourceConfig::default() }.check()?;
        let images = occlude_data::open(&source, split)?;
        if self.split.is_none()
            && let Ok(test) = occlude_data::open(&source, Split::Test)
        {
            tracing::warn!("{path}: holds {} test images too; `--split test` writes those", test.len());
        }
        Ok(images)
    }

    fn pooling(&self) -> Pooling {
        match self.pooling {
            How::Average => Pooling::Average,
            How::Predictor => Pooling::Global,
            How::Both => Pooling::Both,
            How::Class => Pooling::Class,
            How::ClassAverage => Pooling::ClassAverage,
            How::BeforeNorm => Pooling::BeforeNorm,
        }
    }
}

/// `images` [count, 3, side, side], `patches` [count, patches, dim] and, where the model has one, `global` [count, width].
fn tokens(
    extractor: &dyn Extractor,
    dataset: &dyn Dataset,
    transform: &EvalTransform,
    images: &[usize],
    device: &Device,
) -> Result<StateDict> {
    let mut pixels = Vec::new();
    for &image in images {
        pixels.extend(transform.apply(&dataset.read(image)?));
    }
    let side = transform.size();
    let images = Tensor::from_vec(pixels, (images.len(), 3, side, side), device)?; // [count, 3, side, side]
    let features = extractor.features(&images)?;
    let global = features.global.map(|global| ("global".to_owned(), global));
    Ok([("images".to_owned(), images), ("patches".to_owned(), features.patches)].into_iter().chain(global).collect())
}
