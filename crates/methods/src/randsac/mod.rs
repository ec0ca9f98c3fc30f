//! RandSAC: autoregression over random segments of an image.
//!
//! Paper: "RandSAC: Random Segments with Autoregressive Coding" (2023). An image is cut into segments that are coherent and
//! drawn anew at every visit; an order of them is drawn, along a random hierarchy; an encoder sees each segment and those
//! before it, and the pixels of every segment are predicted from those before it, all in one pass. Three architectures: a
//! decoder of positions that reads the encoder, the same with a trained mixture of all blocks for each of its layers, and two
//! streams through one set of weights.
//!
//! There is no public code. What the paper leaves open is as in masked autoencoders wherever these answer it; the first
//! segment, which has none before it, sees itself and counts (`loss_on_first`); groups of a hierarchy stand where their
//! patches stand on average; skips begin with the last block alone. Names are those of the specification, but fused matrices
//! are held in parts. Who sees whom is a matter of ranks, never a table of pairs.
//! The tests named `golden_randsac_*` compare with a slow reference written from the paper's definitions.

mod config;
mod measures;
mod network;

#[cfg(test)]
mod tests;

pub use config::{Architecture, RandsacConfig, RandsacSettings};
pub use network::Network;

use crate::pixels::{Painted, painted, per_token};
use crate::recipe::gradients_norm;
use crate::{GlobalToken, Matrix, Method, PlainExtractor, StepContext, StepOutput, ViewBatch, Weights, stores};
use candle_core::{DType, Device, Tensor};
use occlude_kernels::{ParamStore, Result, StateDict, backward};
use occlude_optim::ParamGroup;
use occlude_random::{Stream, Streams};
use occlude_vit::{Extractor, Sights};

/// Stream of the segments: keyed by the batch and the image.
const STREAM: &str = "randsac/segments";

/// The method.
#[derive(Debug)]
pub struct Randsac {
    settings: RandsacSettings,
    network: Network,
    trained: ParamStore,
}

impl Randsac {
    /// The method with freshly drawn parameters.
    ///
    /// # Errors
    /// A device that refuses an allocation.
    pub fn new(settings: &RandsacSettings, streams: Streams, dtype: DType, device: &Device) -> Result<Self> {
        let mut trained = ParamStore::trainable(streams, dtype, device);
        let network = Network::new(&mut trained.root(), settings)?;
        Ok(Self { settings: settings.clone(), network, trained })
    }

    /// The network.
    #[must_use]
    pub fn network(&self) -> &Network {
        &self.network
    }

    /// Ranks of the patches of a batch of `batch` images, image by image.  [batch * patches]
    #[must_use]
    pub fn ranks(&self, batch: usize, ctx: &StepContext<'_>) -> Vec<u32> {
        self.drawn(batch, |image| ctx.streams.stream(STREAM, ctx.batch_index(), image as u64))
    }

    fn drawn(&self, batch: usize, mut stream: impl FnMut(usize) -> Stream) -> Vec<u32> {
        (0..batch).flat_map(|image| self.settings.segmenter.draw(&mut stream(image)).ranks()).collect()
    }

    /// The step with given ranks: tests, and repeating a recorded step.
    /// images: [batch, 3, side, side], ranks: [batch * patches]
    ///
    /// # Errors
    /// Images or ranks that do not fit.
    pub fn step_with(&self, images: &Tensor, ranks: &[u32]) -> Result<StepOutput> {
        self.step_seeing(images, ranks, &Sights::of(ranks, self.patches()))
    }

    /// The step with given sights, which say the same as the ranks in whatever form: benchmarks of that form.
    ///
    /// # Errors
    /// As [`Randsac::step_with`].
    pub fn step_seeing(&self, images: &Tensor, ranks: &[u32], sights: &Sights) -> Result<StepOutput> {
        let losses = self.losses(images, sights)?; // [batch * patches]
        let counted: Vec<bool> = ranks.iter().map(|rank| self.settings.loss_on_first || *rank > 0).collect();
        let total = mean_of(&losses, &counted)?;
        let gradients = backward(&total)?;
        let values = losses.detach().to_dtype(DType::F64)?.to_vec1()?;
        let mut metrics = measures::by_rank(&values, ranks, self.patches());
        if let Some(skips) = self.network.decoder().and_then(|decoder| decoder.skips()) {
            metrics.push(("skip_entropy", measures::skip_entropy(skips)?));
        }
        metrics.push(("gradient_norm", gradients_norm(&self.trained, &gradients)?));
        let loss = total.detach().to_dtype(DType::F64)?.to_scalar()?;
        Ok(StepOutput { losses: vec![("pixels", loss)], metrics, gradients })
    }

    /// The squared error of each patch.  images: [batch, 3, side, side] -> [batch * patches]
    ///
    /// # Errors
    /// As [`Randsac::step_with`].
    pub fn losses(&self, images: &Tensor, sights: &Sights) -> Result<Tensor> {
        let predicted = self.network.predict(images, sights)?; // [batch, patches, pixels]
        per_token(&predicted, images, self.settings.encoder.patch(), self.settings.norm_pix)
    }

    fn patches(&self) -> usize {
        self.settings.encoder.grid().count()
    }
}

/// The mean of the losses that count; 0, with gradients of 0, where none does.
fn mean_of(losses: &Tensor, counted: &[bool]) -> Result<Tensor> {
    let count = counted.iter().filter(|counted| **counted).count();
    let share = |counted: &bool| if *counted { 1.0 / count as f64 } else { 0.0 };
    let shares: Vec<f64> = counted.iter().map(share).collect();
    let shares = Tensor::from_vec(shares, losses.dims(), losses.device())?.to_dtype(losses.dtype())?;
    Ok((losses * shares)?.sum_all()?)
}

impl Method for Randsac {
    fn name(&self) -> &'static str {
        "randsac"
    }

    fn step(&mut self, batch: &ViewBatch, ctx: &StepContext<'_>) -> Result<StepOutput> {
        let images = batch.single("randsac")?; // [batch, 3, side, side]
        self.step_with(images, &self.ranks(images.dim(0)?, ctx))
    }

    fn after_step(&mut self, _ctx: &StepContext<'_>) -> Result<()> {
        Ok(())
    }

    fn groups(&self) -> Vec<ParamGroup> {
        self.settings.recipe.groups(&self.trained)
    }

    fn state(&self) -> StateDict {
        self.trained.state()
    }

    fn load(&mut self, state: &StateDict) -> Result<()> {
        stores::load(&[&self.trained], state)
    }

    /// There is one network, whichever weights are asked for.
    fn extractor(&self, _weights: Weights) -> Box<dyn Extractor + '_> {
        Box::new(PlainExtractor::new(self.network.encoder(), GlobalToken::Avg))
    }

    fn matrices(&self) -> Result<Vec<Matrix>> {
        let skips = self.network.decoder().and_then(|decoder| decoder.skips());
        skips.map(|skips| Matrix::of("skips", skips)).into_iter().collect()
    }

    fn paint(&self, images: &Tensor, stream: &mut dyn FnMut(usize) -> Stream) -> Result<Option<Painted>> {
        let ranks = self.drawn(images.dim(0)?, stream);
        let said = self.network.predict(images, &Sights::of(&ranks, self.patches()))?.detach();
        let (patch, norm_pix) = (self.settings.encoder.patch(), self.settings.norm_pix);
        Ok(Some(Painted { ranks, images: painted(&said, images, patch, norm_pix)? }))
    }
}
