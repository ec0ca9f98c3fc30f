//! CAPI: cluster and predict latent patches.
//!
//! Paper: "Cluster and Predict Latent Patches for Improved Masked Image Modeling" (2025). A teacher, the moving average
//! of the student, sees the whole image; its patch features are clustered online, the assignments balanced by Sinkhorn
//! position by position. The student sees about a third of the patches and predicts the clusters of a few hidden ones.
//!
//! As in the public code, except: angles, norms, Sinkhorn and losses are computed in f32 (there in bf16), and the number of
//! predicted patches can be set. The ablations the public code lacks (learned positions, self-attention and fused
//! predictors, I-JEPA and iBOT losses, MLP heads) are built from the paper's description; each is one changed setting.
//! The tests named `golden_capi_*` compare every intermediate value, gradient and updated parameter with the public code's.

mod config;
mod extract;
mod network;
mod targets;

#[cfg(test)]
mod tests;

pub use config::{CapiConfig, CapiOptimizerConfig, CapiSettings, LossKind, MomentumConfig, PredictionConfig};
pub use extract::CapiExtractor;
pub use network::Network;

use crate::{Method, StepContext, StepOutput, ViewBatch, Weights, stores};
use candle_core::{DType, Device, Tensor};
use config::Recipe;
use occlude_kernels::{Error, ParamStore, Result, StateDict, assign, backward};
use occlude_masking::BatchMask;
use occlude_optim::{Ema, ParamGroup, Schedule};
use occlude_random::Streams;
use occlude_vit::{DropPath, Extractor};
use targets::{Goal, Targets, number};

/// Stream of the masks: keyed by the batch and the image's place in the batch.
const MASK_STREAM: &str = "capi/mask";
/// Stream of stochastic depth: keyed by the batch and the residual branch.
const DROP_PATH_STREAM: &str = "capi/drop-path";

/// The method.
#[derive(Debug)]
pub struct Capi {
    settings: CapiSettings,
    teacher: Network,
    targets: Targets,
    student: Network,
    /// Parameters of the student (`student.*`).
    trained: ParamStore,
    /// Of the teacher (`student_ema.*`), in the same order.
    averaged: ParamStore,
    /// Of the clustering (`teacher.head.layer.*`).
    clustering: ParamStore,
}

impl Capi {
    /// The method with freshly drawn parameters; the teacher starts as a copy of the student.
    ///
    /// # Errors
    /// A device that refuses an allocation.
    pub fn new(settings: &CapiSettings, streams: Streams, dtype: DType, device: &Device) -> Result<Self> {
        let mut trained = ParamStore::trainable(streams, dtype, device);
        let mut averaged = ParamStore::frozen(streams, dtype, device);
        let mut clustering = ParamStore::trainable(streams, dtype, device);
        let student = Network::new(&mut trained.root().sub("student"), settings)?;
        let teacher = Network::new(&mut averaged.root().sub("student_ema"), settings)?;
        let targets = Targets::new(settings, &mut clustering)?;
        for (average, param) in averaged.params().iter().zip(trained.params()) {
            assign(&average.tensor, &param.tensor)?;
        }
        Ok(Self { settings: settings.clone(), teacher, targets, student, trained, averaged, clustering })
    }

    /// The step with a given mask and stochastic depth: tests, and repeating a recorded step.
    /// images: [batch, 3, height, width]
    ///
    /// # Errors
    /// Images or a mask that do not fit.
    pub fn step_with(&self, images: &Tensor, mask: &BatchMask, drop: &mut DropPath) -> Result<StepOutput> {
        // Teacher: all patches, no gradient; the clustering learns from its own assignments, chunk by chunk.
        let seen = self.teacher.encode(images)?; // [batch, patches, dim]
        let Goal { targets, clustering } = self.targets.assign(&self.teacher, &seen, mask)?; // [predicted, prototypes]
        // Student: visible patches in, scores of the predicted patches out.
        let guess = self.student.predict(images, mask, drop)?; // [predicted, prototypes]
        let loss = self.targets.loss(&guess, &targets, self.settings.student_temp)?;
        let mut output = StepOutput { gradients: backward(&loss)?, ..StepOutput::default() };
        output.losses.push(("prediction", number(&loss)?));
        output.metrics.extend(self.targets.entropy(&targets)?.map(|entropy| ("target_entropy", entropy)));
        if let Some((loss, gradients)) = clustering {
            output.metrics.push(("total", output.losses.iter().map(|(_, loss)| loss).sum::<f64>() + loss));
            output.losses.push(("clustering", loss));
            output.gradients.merge(gradients)?;
        }
        Ok(output)
    }

    /// The masks of a batch.
    ///
    /// # Errors
    /// A batch that cannot be indexed.
    pub fn masks(&self, batch: usize, ctx: &StepContext<'_>) -> Result<BatchMask> {
        let stream = |image: usize| ctx.streams.stream(MASK_STREAM, ctx.batch_index(), image as u64);
        BatchMask::draw(&self.settings.masker, self.settings.encoder.grid(), batch, self.settings.predicted, stream)
            .map_err(|error| Error::argument("capi masks", error.to_string()))
    }

    /// The student.
    #[must_use]
    pub fn student(&self) -> &Network {
        &self.student
    }

    /// The teacher.
    #[must_use]
    pub fn teacher(&self) -> &Network {
        &self.teacher
    }

    fn stores(&self) -> [&ParamStore; 3] {
        [&self.trained, &self.averaged, &self.clustering]
    }
}

impl Method for Capi {
    fn name(&self) -> &'static str {
        "capi"
    }

    fn step(&mut self, batch: &ViewBatch, ctx: &StepContext<'_>) -> Result<StepOutput> {
        let images = batch.single("capi")?;
        let mask = self.masks(images.dim(0)?, ctx)?;
        let (rate, kind) = self.settings.encoder.drop_path();
        let mut drop = DropPath::drawn(kind, rate, ctx.streams, DROP_PATH_STREAM, ctx.batch_index());
        self.step_with(images, &mask, &mut drop)
    }

    fn after_step(&mut self, _ctx: &StepContext<'_>) -> Result<()> {
        Ok(()) // The teacher moves with the student's group, the prototypes with their own.
    }

    fn groups(&self) -> Vec<ParamGroup> {
        let ema = Ema { averages: self.averaged.params().to_vec(), momentum: self.settings.momentum.clone() };
        let mut groups = vec![group("student", &self.trained, &self.settings.student, Some(ema))];
        if !self.clustering.params().is_empty() {
            groups.push(group("clustering", &self.clustering, &self.settings.prototypes, None));
        }
        groups
    }

    fn state(&self) -> StateDict {
        self.stores().into_iter().flat_map(ParamStore::state).collect()
    }

    fn load(&mut self, state: &StateDict) -> Result<()> {
        stores::load(&self.stores(), state)
    }

    fn extractor(&self, weights: Weights) -> Box<dyn Extractor + '_> {
        let network = match weights {
            Weights::Student => &self.student,
            Weights::Teacher => &self.teacher,
        };
        Box::new(CapiExtractor::new(network, self.targets.clusters()))
    }
}

fn group(name: &'static str, store: &ParamStore, recipe: &Recipe, ema: Option<Ema>) -> ParamGroup {
    let Recipe { lr, weight_decay, betas, eps } = recipe.clone();
    let weight_decay = Schedule::constant(weight_decay);
    ParamGroup { name, params: store.params().to_vec(), lr, weight_decay, betas, eps, ema }
}
