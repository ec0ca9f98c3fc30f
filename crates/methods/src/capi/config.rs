//! Settings of CAPI: as written in a file, and checked.

use occlude_heads::{HeadConfig, HeadKind, HeadSettings, PredictorConfig, PredictorSettings};
use occlude_masking::{Masker, MaskerConfig, predict_count};
use occlude_optim::{Schedule, ScheduleConfig};
use occlude_settings::{ConfigError, Ruler, Span, require};
use occlude_tokenizers::{ClusteringConfig, ClusteringSettings};
use occlude_vit::{GroupFactors, VitConfig, VitSettings};
use serde::{Deserialize, Serialize};

/// What the student learns to say about hidden patches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LossKind {
    /// The cluster of the teacher's patch, clusters learned online (CAPI).
    Clustering,
    /// The teacher's patch feature itself (I-JEPA): smooth L1, no clusters.
    Ijepa,
    /// The class given by the average of the student's own head (iBOT), no clustering loss. Expected to collapse.
    Ibot,
}

/// Which hidden patches are predicted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PredictionConfig {
    /// Share of the hidden patches; the product is truncated, as in the public code.
    pub subsampling: f64,
    /// How many patches of an image, where given, instead of a share.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub count: Option<usize>,
}

impl Default for PredictionConfig {
    fn default() -> Self {
        Self { subsampling: 0.05, count: None }
    }
}

/// Momentum of the teacher: from `start` to `base` over the warm-up, then a truncated cosine towards `final`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MomentumConfig {
    /// At the first step.
    pub start: f64,
    /// At the end of the warm-up.
    pub base: f64,
    /// What the cosine aims at.
    #[serde(rename = "final")]
    pub end: f64,
}

impl Default for MomentumConfig {
    fn default() -> Self {
        Self { start: 1.0, base: 0.999, end: 1.0 }
    }
}

/// The optimizer of the student; its warm-up and truncation are those of all three schedules.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CapiOptimizerConfig {
    /// Peak learning rate.
    pub lr: f64,
    /// Length of the warm-up.
    pub warmup: Span,
    /// Share of the cosine that is run.
    pub truncate: f64,
    /// Weight decay.
    pub weight_decay: f64,
    /// Decays of the first and second moment.
    pub betas: (f64, f64),
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Factor on the learning rate of the patch embedding.
    pub patch_embed_lr: f64,
    /// Factor on the weight decay of norm weights.
    pub norm_wd: f64,
    /// Momentum of the teacher.
    pub momentum: MomentumConfig,
}

impl Default for CapiOptimizerConfig {
    fn default() -> Self {
        Self {
            lr: 1e-3,
            warmup: Span::Percent(10.0),
            truncate: 0.8,
            weight_decay: 0.1,
            betas: (0.9, 0.95),
            eps: 1e-8,
            patch_embed_lr: 0.2,
            norm_wd: 0.1,
            momentum: MomentumConfig::default(),
        }
    }
}

/// CAPI as written in a file. Defaults are those of the public code: ViT-L/14, 16384 prototypes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CapiConfig {
    /// `clustering`, `ijepa` or `ibot`.
    pub loss: LossKind,
    /// Temperature of the student's scores.
    pub student_temp: f64,
    /// `ijepa` only: layer norm (without weights) of the target features.
    pub normalize_targets: bool,
    /// The encoder.
    pub encoder: VitConfig,
    /// The predictor.
    pub predictor: PredictorConfig,
    /// The student's head.
    pub head: HeadConfig,
    /// The clustering; `ibot` uses its prototypes, target temperature and Sinkhorn.
    pub clustering: ClusteringConfig,
    /// Which patches are hidden.
    pub mask: MaskerConfig,
    /// Which hidden patches are predicted.
    pub prediction: PredictionConfig,
    /// The student's optimizer and the teacher's momentum.
    pub optimizer: CapiOptimizerConfig,
}

impl Default for CapiConfig {
    fn default() -> Self {
        Self {
            loss: LossKind::Clustering,
            student_temp: 0.12,
            normalize_targets: false,
            encoder: VitConfig::default(),
            predictor: PredictorConfig::default(),
            head: HeadConfig::default(),
            clustering: ClusteringConfig::default(),
            mask: MaskerConfig::default(),
            prediction: PredictionConfig::default(),
            optimizer: CapiOptimizerConfig::default(),
        }
    }
}

/// Checked CAPI for one image size, batch size and length of run.
#[derive(Clone, Debug, PartialEq)]
pub struct CapiSettings {
    pub(super) loss: LossKind,
    pub(super) student_temp: f64,
    pub(super) normalize_targets: bool,
    pub(super) encoder: VitSettings,
    pub(super) predictor: PredictorSettings,
    pub(super) head: HeadSettings,
    pub(super) clustering: ClusteringSettings,
    pub(super) masker: Masker,
    /// Predicted patches of an image.
    pub(super) predicted: usize,
    pub(super) factors: GroupFactors,
    pub(super) student: Recipe,
    pub(super) prototypes: Recipe,
    pub(super) momentum: Schedule,
}

/// How a group of parameters is stepped.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Recipe {
    pub(super) lr: Schedule,
    pub(super) weight_decay: f64,
    pub(super) betas: (f64, f64),
    pub(super) eps: f64,
}

impl CapiSettings {
    /// The encoder.
    #[must_use]
    pub fn encoder(&self) -> &VitSettings {
        &self.encoder
    }

    /// Which patches are hidden.
    #[must_use]
    pub fn masker(&self) -> &Masker {
        &self.masker
    }

    /// Predicted patches of an image.
    #[must_use]
    pub fn predicted(&self) -> usize {
        self.predicted
    }
}

impl CapiConfig {
    /// Checks the settings for square images of `image_size` pixels, batches of `batch` images and a run as long as
    /// `ruler` says. Warns where a batch is far too small for the number of prototypes.
    ///
    /// # Errors
    /// Names the first field whose value is not allowed.
    pub fn check(&self, image_size: usize, batch: usize, ruler: Ruler) -> Result<CapiSettings, ConfigError> {
        let encoder = self.encoder.check(image_size).map_err(|e| e.inside("encoder"))?;
        let predictor = self.predictor.check(&encoder).map_err(|e| e.inside("predictor"))?;
        self.check_widths(predictor.dim(), encoder.dim())?;
        let clustering = self.clustering.check().map_err(|e| e.inside("clustering"))?;
        let masker = self.mask.check().map_err(|e| e.inside("mask"))?;
        masker.fits(encoder.grid()).map_err(|e| e.inside("mask"))?;
        require("student_temp", self.student_temp, "must be positive", |t| *t > 0.0 && t.is_finite())?;
        let settings = CapiSettings {
            loss: self.loss,
            student_temp: self.student_temp,
            normalize_targets: self.normalize_targets,
            head: self.check_head()?,
            predicted: self.check_prediction(masker.hidden_count(encoder.grid()))?,
            factors: self.optimizer.factors()?,
            student: self.optimizer.student(ruler)?,
            prototypes: self.optimizer.prototypes(&self.clustering, ruler)?,
            momentum: self.optimizer.check_momentum(ruler)?,
            encoder,
            predictor,
            clustering,
            masker,
        };
        settings.warn_of_small_batches(batch);
        Ok(settings)
    }

    /// The teacher's head scores the encoder's features, and is shaped like the student's, which scores predictions.
    fn check_widths(&self, predictor: usize, encoder: usize) -> Result<(), ConfigError> {
        let allowed = format!("must equal encoder.dim = {encoder} with loss = \"ibot\": one head reads both");
        require("predictor.dim", predictor, &allowed, |p| self.loss != LossKind::Ibot || *p == encoder).map(|_| ())
    }

    /// The head follows the loss unless it is written; a class needs prototypes, a feature needs none.
    fn check_head(&self) -> Result<HeadSettings, ConfigError> {
        let default = match self.loss {
            LossKind::Clustering => HeadKind::Linear,
            LossKind::Ibot => HeadKind::Mlp,
            LossKind::Ijepa => HeadKind::Identity,
        };
        let head = self.head.check(default).map_err(|e| e.inside("head"))?;
        if (head.kind() == HeadKind::Identity) != (self.loss == LossKind::Ijepa) {
            let written = format!("{:?}", head.kind()).to_lowercase();
            let allowed = match self.loss {
                LossKind::Ijepa => "must be `identity` with loss = \"ijepa\"; leave it out",
                _ => "must be `linear` or `mlp`: `identity` goes with loss = \"ijepa\"",
            };
            return Err(ConfigError::new("head.kind", written, allowed));
        }
        Ok(head)
    }

    fn check_prediction(&self, hidden: usize) -> Result<usize, ConfigError> {
        let PredictionConfig { subsampling, count } = self.prediction;
        require("prediction.subsampling", subsampling, "must be above 0 and at most 1", |s| *s > 0.0 && *s <= 1.0)?;
        if let Some(count) = count {
            let allowed = format!("must be at least 1 and at most the {hidden} hidden patches of this grid");
            return require("prediction.count", count, &allowed, |c| *c >= 1 && *c <= hidden);
        }
        let allowed = format!("predicts no patch of this grid ({hidden} are hidden): raise it or set prediction.count");
        let predicted = predict_count(hidden, subsampling);
        require("prediction.subsampling", subsampling, &allowed, |_| predicted >= 1).map(|_| predicted)
    }
}

impl CapiOptimizerConfig {
    fn factors(&self) -> Result<GroupFactors, ConfigError> {
        for (field, value) in [("optimizer.patch_embed_lr", self.patch_embed_lr), ("optimizer.norm_wd", self.norm_wd)] {
            require(field, value, "must be at least 0", |v| *v >= 0.0 && v.is_finite())?;
        }
        Ok(GroupFactors { patch_embed_lr: self.patch_embed_lr, norm_wd: self.norm_wd })
    }

    /// A schedule from `start` over the common warm-up to `base`, then towards `end`.
    fn schedule(&self, start: f64, base: f64, end: f64, ruler: Ruler) -> Result<Schedule, ConfigError> {
        let Self { warmup, truncate, .. } = *self;
        let freeze = Span::Steps(0);
        let config = ScheduleConfig { start, base, end, warmup, freeze, truncate };
        config.check(ruler).map_err(|e| e.inside("optimizer"))
    }

    fn student(&self, ruler: Ruler) -> Result<Recipe, ConfigError> {
        let Self { lr, weight_decay, betas, eps, .. } = *self;
        for (field, value) in [("optimizer.lr", lr), ("optimizer.weight_decay", weight_decay)] {
            require(field, value, "must be at least 0", |v| *v >= 0.0 && v.is_finite())?;
        }
        require("optimizer.eps", eps, "must be positive", |e| *e > 0.0 && e.is_finite())?;
        for beta in [betas.0, betas.1] {
            require("optimizer.betas", beta, "must be at least 0 and below 1", |b| (0.0..1.0).contains(b))?;
        }
        Ok(Recipe { lr: self.schedule(0.0, lr, 0.0, ruler)?, weight_decay, betas, eps })
    }

    /// The optimizer of the prototypes (checked with the clustering) on the common shape of schedule.
    fn prototypes(&self, clustering: &ClusteringConfig, ruler: Ruler) -> Result<Recipe, ConfigError> {
        let ClusteringConfig { lr, weight_decay, betas, eps, .. } = *clustering;
        Ok(Recipe { lr: self.schedule(0.0, lr, 0.0, ruler)?, weight_decay, betas, eps })
    }

    fn check_momentum(&self, ruler: Ruler) -> Result<Schedule, ConfigError> {
        let MomentumConfig { start, base, end } = self.momentum;
        for (field, value) in [("start", start), ("base", base), ("final", end)] {
            require(&format!("optimizer.momentum.{field}"), value, "must be between 0 and 1", |m| {
                (0.0..=1.0).contains(m)
            })?;
        }
        self.schedule(start, base, end, ruler)
    }
}

impl CapiSettings {
    /// Each prototype's mass is shared by so few samples that every token spreads over about prototypes / samples of
    /// them: the entropy of the targets starts near the logarithm of that. It trains, but towards little.
    fn warn_of_small_batches(&self, batch: usize) {
        const FAR: usize = 4;
        let prototypes = self.clustering.prototypes();
        let samples = self.clustering.samples(batch, self.encoder.grid().count());
        if self.loss != LossKind::Ijepa && prototypes > FAR * samples {
            tracing::warn!(
                prototypes,
                samples,
                "{prototypes} prototypes are shared among {samples} samples: every token's target will spread over \
                 about {} of them; lower clustering.prototypes, raise the batch size or set clustering.sinkhorn = \"standard\"",
                prototypes / samples.max(1)
            );
        }
    }
}
