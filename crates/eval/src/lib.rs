//! Protocols on frozen features: k-NN, linear and attentive probes, low-shot classification, segmentation, PCA maps,
//! neighbours and cluster galleries.
//!
//! [`features_of`] runs a frozen model once over images and keeps one row an image ([`FeatureSet`]); [`knn()`],
//! [`linear_probe`] and [`low_shot()`] score such rows; [`patch_knn`] and [`LogisticRegression`] label the pixels of patches; [`pca_maps`]
//! and [`cluster_gallery`] make the pictures of a report; [`mod@write`] puts features into npy, safetensors or Parquet
//! files.
//!
//! Invariants: nothing here trains or changes a model; equal inputs give equal scores for any number of threads; every
//! draw (which images, which split, first weights) comes from a named stream; accuracies are in percent; images
//! without a label are never scored.
//!
//! Not here: which methods exist (anything behind `occlude_vit::Extractor` will do), drawing and layout of pages
//! (`report`), and fine-tuning.
//!
//! ```
//! use occlude_eval::{FeatureSet, KnnConfig, knn};
//! // Two classes on two axes: four bank images, one test image near the second axis.
//! let classes = vec![Some(0), Some(0), Some(1), Some(1)];
//! let bank = FeatureSet::new(vec![1.0, 0.0, 0.9, 0.1, 0.0, 1.0, 0.1, 0.9], 2, classes)?;
//! let test = FeatureSet::new(vec![0.2, 1.0], 2, vec![Some(1)])?;
//! let settings = KnnConfig { neighbours: vec![1, 2], ..KnnConfig::default() }.check()?;
//! assert_eq!(knn(&bank, &test, &settings)?.best.accuracy, 100.0);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod attentive;
mod config;
mod eigen;
mod error;
mod features;
#[cfg(test)]
mod frozen_tests;
mod gallery;
mod knn;
mod linear;
mod logistic;
mod low_shot;
mod maps;
mod nearest;
mod pca;
mod pixels;
mod segmentation;
mod subset;
pub mod write;

pub use attentive::AttentiveProbe;
pub use config::{
    Eval, EvalConfig, KnnConfig, KnnSettings, LinearConfig, LinearProtocol, LinearSettings, LowShotConfig, LowShotList,
    LowShotSettings, MaeLinearConfig, MocaLinearConfig, Pooling, Probe, ProbeConfig, Protocol, WeightsChoice,
};
pub use error::{Error, Result};
pub use features::{FeatureRequest, FeatureSet, features_of};
pub use gallery::{Cluster, ClusterGallery, PatchRef, cluster_gallery};
pub use knn::{KnnReport, KnnScore, Vote, knn};
pub use linear::{LinearReport, LinearTrial, Standard, linear_probe};
pub use low_shot::{LowShotReport, LowShotScore, LowShotSplit, low_shot, low_shot_splits};
pub use maps::{PcaMap, PcaMaps, pca_maps};
pub use nearest::{Neighbour, neighbours};
pub use pca::{joint_components, per_image_components, rgb};
pub use pixels::{PixelForm, pixel_features};
pub use segmentation::{
    Distance, LogisticRegression, PatchSet, SegmentationScore, patch_knn, patch_labels, segmentation_score,
};
pub use subset::choose;
