//! Where targets come from: the clustering, or one of the ablations.

use super::{CapiSettings, LossKind, Network};
use candle_core::{DType, Tensor};
use occlude_kernels::{Gradients, ParamStore, Result, gather_rows, layer_norm};
use occlude_losses::{mean_row_entropy, smooth_l1, soft_cross_entropy};
use occlude_masking::BatchMask;
use occlude_tokenizers::{Assigned, ClusteringSettings, SinkhornClustering, balanced_targets};

/// As the public code's evaluation norms.
const LAYER_NORM_EPS: f64 = 1e-5;

/// A source of targets.
#[derive(Debug)]
pub(super) enum Targets {
    /// Clusters, learned online.
    Clusters(SinkhornClustering),
    /// Classes given by the teacher's head, balanced.
    Classes(ClusteringSettings),
    /// The features themselves.
    Features { normalize: bool },
}

/// The targets of a batch.
pub(super) struct Goal {
    /// [predicted, prototypes], or [predicted, dim] for features. No gradient.
    pub(super) targets: Tensor,
    /// The clustering loss and its gradients, where clusters are learned.
    pub(super) clustering: Option<(f64, Gradients)>,
}

impl Targets {
    /// The source of these settings; its parameters, if any, become `teacher.head.layer.*` of `store`.
    pub(super) fn new(settings: &CapiSettings, store: &mut ParamStore) -> Result<Self> {
        Ok(match settings.loss {
            LossKind::Ijepa => Self::Features { normalize: settings.normalize_targets },
            LossKind::Ibot => Self::Classes(settings.clustering.clone()),
            LossKind::Clustering => {
                let mut root = store.root();
                let mut scope = root.sub("teacher.head.layer");
                Self::Clusters(SinkhornClustering::new(&mut scope, &settings.clustering, settings.encoder.dim())?)
            }
        })
    }

    /// The clusters, where there are any.
    pub(super) fn clusters(&self) -> Option<&SinkhornClustering> {
        match self {
            Self::Clusters(clustering) => Some(clustering),
            _ => None,
        }
    }

    /// Targets of the predicted patches.  seen: [batch, patches, dim] of the teacher
    pub(super) fn assign(&self, teacher: &Network, seen: &Tensor, mask: &BatchMask) -> Result<Goal> {
        match self {
            Self::Clusters(clustering) => {
                let Assigned { targets, loss, gradients } = clustering.assign(seen, &mask.predict)?;
                Ok(Goal { targets, clustering: Some((loss, gradients)) })
            }
            Self::Classes(settings) => {
                let scores = |tokens: &Tensor| teacher.head().forward(tokens);
                let targets = balanced_targets(seen, &mask.predict, settings, scores)?;
                Ok(Goal { targets, clustering: None })
            }
            Self::Features { normalize } => {
                let (batch, patches, dim) = seen.dims3()?;
                let rows = gather_rows(&seen.contiguous()?.reshape((batch * patches, dim))?, &mask.predict)?;
                let targets = if *normalize { layer_norm(&rows, None, None, LAYER_NORM_EPS)? } else { rows };
                Ok(Goal { targets, clustering: None })
            }
        }
    }

    /// The student's loss, a scalar.  guess, targets: [predicted, prototypes or dim]
    pub(super) fn loss(&self, guess: &Tensor, targets: &Tensor, temperature: f64) -> Result<Tensor> {
        match self {
            Self::Features { .. } => smooth_l1(guess, targets, 1.0),
            _ => soft_cross_entropy(guess, targets, temperature),
        }
    }

    /// Mean entropy of the targets, where they are distributions.
    pub(super) fn entropy(&self, targets: &Tensor) -> Result<Option<f64>> {
        match self {
            Self::Features { .. } => Ok(None),
            _ => mean_row_entropy(targets).map(Some),
        }
    }
}

/// A scalar as f64.
pub(super) fn number(scalar: &Tensor) -> Result<f64> {
    Ok(scalar.detach().to_dtype(DType::F64)?.to_scalar()?)
}
