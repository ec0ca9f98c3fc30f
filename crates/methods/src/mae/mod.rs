//! The masked autoencoder: RandSAC's baseline.
//!
//! Paper: "Masked Autoencoders Are Scalable Vision Learners" (2022). An encoder sees a quarter of an image's patches; a
//! decoder gets what it makes of them, and a mask token for each of the others, with positions; the pixels of the hidden
//! patches are compared. Encoder and decoder are those of MOCA with its plain decoder. Names are the usual ones; queries, keys
//! and values have matrices of their own.

mod config;

#[cfg(test)]
mod tests;

pub use config::{MaeConfig, MaeDecoderConfig, MaeSettings};

use crate::pixels::{PIXEL_EPS, Painted, painted};
use crate::recipe::gradients_norm;
use crate::{Method, PlainExtractor, StepContext, StepOutput, ViewBatch, Weights, stores};
use candle_core::{DType, Device, Tensor};
use occlude_heads::{Decoder, PixelHead};
use occlude_kernels::{Error, ParamStore, Result, StateDict, backward, gather_rows, pixel_loss, scatter_rows};
use occlude_masking::Round;
use occlude_optim::ParamGroup;
use occlude_random::{Stream, Streams};
use occlude_vit::{DropPath, Extractor, PlainVit, patch_pixels};

/// Stream of the masks: keyed by the batch and the image.
const STREAM: &str = "mae/mask";

/// The method.
#[derive(Debug)]
pub struct Mae {
    settings: MaeSettings,
    encoder: PlainVit,
    decoder: Decoder,
    head: PixelHead,
    trained: ParamStore,
}

impl Mae {
    /// The method with freshly drawn parameters.
    ///
    /// # Errors
    /// A device that refuses an allocation.
    pub fn new(settings: &MaeSettings, streams: Streams, dtype: DType, device: &Device) -> Result<Self> {
        let mut trained = ParamStore::trainable(streams, dtype, device);
        let mut scope = trained.root();
        let encoder = PlainVit::new(&mut scope, &settings.encoder)?;
        let decoder = Decoder::new(&mut scope, &settings.decoder, "")?;
        let head = PixelHead::new(&mut scope, settings.decoder.dim(), settings.encoder.patch())?;
        Ok(Self { settings: settings.clone(), encoder, decoder, head, trained })
    }

    /// What is hidden of the images of a batch.
    ///
    /// # Errors
    /// None with checked settings: a round is always drawn.
    pub fn mask(&self, batch: usize, stream: impl FnMut(usize) -> Stream) -> Result<Round> {
        let drawn = self.settings.rounds.draw(batch, stream).pop();
        drawn.ok_or_else(|| Error::argument("mae", "no round of masks"))
    }

    /// The step with a given mask: tests, and repeating a recorded step.  images: [batch, 3, side, side]
    ///
    /// # Errors
    /// Images or a mask that do not fit.
    pub fn step_with(&self, images: &Tensor, mask: &Round) -> Result<StepOutput> {
        let said = gather_rows(&self.predict(images, mask)?, &mask.masked_rows())?; // [batch * hidden, pixels]
        let truth = patch_pixels(images, self.settings.encoder.patch(), Some(&mask.masked()))?;
        let eps = self.settings.norm_pix.then_some(PIXEL_EPS);
        let loss = pixel_loss(&said, &truth.to_dtype(said.dtype())?, eps)?.mean_all()?;
        let gradients = backward(&loss)?;
        let loss = loss.detach().to_dtype(DType::F64)?.to_scalar()?;
        let metrics = vec![("gradient_norm", gradients_norm(&self.trained, &gradients)?)];
        Ok(StepOutput { losses: vec![("pixels", loss)], metrics, gradients })
    }

    /// The pixels of every patch, in the order of the mask: shown ones first.
    /// images: [batch, 3, side, side] -> [batch * patches, patch * patch * 3]
    ///
    /// # Errors
    /// Images or a mask that do not fit.
    pub fn predict(&self, images: &Tensor, mask: &Round) -> Result<Tensor> {
        let seen = self.encoder.forward(images, Some(&mask.visible()), &[], &mut DropPath::off())?;
        self.head.forward(&self.decoder.forward(&seen.class()?, &seen.patches()?, mask)?)
    }
}

impl Method for Mae {
    fn name(&self) -> &'static str {
        "mae"
    }

    fn step(&mut self, batch: &ViewBatch, ctx: &StepContext<'_>) -> Result<StepOutput> {
        let images = batch.single("mae")?; // [batch, 3, side, side]
        let stream = |image: usize| ctx.streams.stream(STREAM, ctx.batch_index(), image as u64);
        self.step_with(images, &self.mask(images.dim(0)?, stream)?)
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
        Box::new(PlainExtractor::new(&self.encoder, self.settings.global_token))
    }

    fn paint(&self, images: &Tensor, stream: &mut dyn FnMut(usize) -> Stream) -> Result<Option<Painted>> {
        let batch = images.dim(0)?;
        let mask = self.mask(batch, stream)?;
        let said = self.predict(images, &mask)?.detach();
        let (rows, pixels) = said.dims2()?;
        // Back into the order of the image.
        let placed =
            scatter_rows(&said.zeros_like()?, &mask.decoded(), &said)?.reshape((batch, rows / batch, pixels))?;
        let mut hidden = vec![0; rows];
        mask.masked().into_iter().for_each(|patch| hidden[patch as usize] = 1);
        let images = painted(&placed, images, self.settings.encoder.patch(), self.settings.norm_pix)?;
        Ok(Some(Painted { ranks: hidden, images }))
    }
}
