//! The network of the student, and of its average, the teacher.

use super::CapiSettings;
use candle_core::Tensor;
use occlude_heads::{Head, HeadShape, Pooled, Predictor};
use occlude_kernels::{Result, Scope};
use occlude_masking::BatchMask;
use occlude_vit::{DropPath, Vit};

/// Encoder and predictor (`backbone`), and the head.
#[derive(Clone, Debug)]
pub struct Network {
    encoder: Vit,
    predictor: Predictor,
    head: Head,
}

impl Network {
    /// A network whose parameters lie in `scope` (`backbone`, `head`).
    ///
    /// # Errors
    /// A name exists already.
    pub fn new(scope: &mut Scope<'_>, settings: &CapiSettings) -> Result<Self> {
        let mut backbone = scope.sub("backbone");
        let encoder = Vit::new(&mut backbone, &settings.encoder, settings.factors)?;
        let predictor = Predictor::new(&mut backbone, &settings.predictor, &settings.encoder, settings.factors)?;
        let shape = HeadShape {
            input: settings.predictor.dim(),
            feature: settings.encoder.dim(),
            prototypes: settings.clustering.prototypes(),
        };
        let head = Head::new(&mut scope.sub("head"), &settings.head, shape)?;
        Ok(Self { encoder, predictor, head })
    }

    /// Features of every patch of whole images, nothing dropped.  [batch, 3, height, width] -> [batch, patches, dim]
    ///
    /// # Errors
    /// Images that do not fit.
    pub fn encode(&self, images: &Tensor) -> Result<Tensor> {
        self.encoder.forward(images, None, &mut DropPath::off())?.patches()
    }

    /// What the network says about the patches `mask.predict`, seeing the visible ones.
    /// [batch, 3, height, width] -> [predicted, prototypes], or [predicted, dim] with an identity head
    ///
    /// # Errors
    /// Images or a mask that do not fit.
    pub fn predict(&self, images: &Tensor, mask: &BatchMask, drop: &mut DropPath) -> Result<Tensor> {
        self.head.forward(&self.predictor.predict(&self.encoder, images, mask, drop)?)
    }

    /// Features of whole images for evaluation.  [batch, 3, height, width]
    ///
    /// # Errors
    /// Images that do not fit.
    pub fn pooled(&self, images: &Tensor) -> Result<Pooled> {
        self.predictor.pooled(&self.encoder, images)
    }

    /// The encoder.
    #[must_use]
    pub fn encoder(&self) -> &Vit {
        &self.encoder
    }

    /// The predictor.
    #[must_use]
    pub fn predictor(&self) -> &Predictor {
        &self.predictor
    }

    /// The head.
    #[must_use]
    pub fn head(&self) -> &Head {
        &self.head
    }

    /// The same network on the same storage, recording no graph.
    #[must_use]
    pub fn detach(&self) -> Self {
        Self { encoder: self.encoder.detach(), predictor: self.predictor.detach(), head: self.head.detach() }
    }
}
