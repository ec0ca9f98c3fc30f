//! The network: an encoder that sees segments in order, and what predicts the next one.

use super::config::RandsacSettings;
use candle_core::Tensor;
use occlude_heads::{PixelHead, SegmentDecoder};
use occlude_kernels::{Result, Scope};
use occlude_vit::{PlainTokens, PlainVit, Sights};

/// Encoder, and a decoder or a second stream.
#[derive(Clone, Debug)]
pub struct Network {
    encoder: PlainVit,
    reader: Reader,
    /// Blocks whose outputs are read before the last one.
    taps: Vec<usize>,
}

#[derive(Clone, Debug)]
enum Reader {
    Decoder(Box<SegmentDecoder>),
    QueryStream(PixelHead),
}

impl Network {
    /// A network whose parameters lie in `scope`: those of [`PlainVit`], then those of [`SegmentDecoder`] or, with two
    /// streams, `decoder_pred`.
    ///
    /// # Errors
    /// A name exists already.
    pub fn new(scope: &mut Scope<'_>, settings: &RandsacSettings) -> Result<Self> {
        let encoder = PlainVit::new(scope, &settings.encoder)?;
        let reader = match &settings.decoder {
            Some(decoder) => Reader::Decoder(Box::new(SegmentDecoder::new(scope, decoder)?)),
            None => Reader::QueryStream(PixelHead::new(scope, settings.encoder.dim(), settings.encoder.patch())?),
        };
        let skips = settings.decoder.as_ref().is_some_and(|decoder| decoder.has_skips());
        let taps = if skips { (1..settings.encoder.depth()).collect() } else { Vec::new() };
        Ok(Self { encoder, reader, taps })
    }

    /// The encoder.
    #[must_use]
    pub fn encoder(&self) -> &PlainVit {
        &self.encoder
    }

    /// The decoder; none with two streams.
    #[must_use]
    pub fn decoder(&self) -> Option<&SegmentDecoder> {
        match &self.reader {
            Reader::Decoder(decoder) => Some(decoder),
            Reader::QueryStream(_) => None,
        }
    }

    /// The pixels of every patch, said by what comes before it.
    /// images: [batch, 3, side, side] -> [batch, patches, patch * patch * 3]
    ///
    /// # Errors
    /// Images of another size, or sights of other tokens.
    pub fn predict(&self, images: &Tensor, sights: &Sights) -> Result<Tensor> {
        match &self.reader {
            Reader::Decoder(decoder) => decoder.forward(&self.seen(images, sights)?, sights),
            Reader::QueryStream(head) => head.forward(&self.encoder.query_stream(images, sights)?),
        }
    }

    /// What a decoder reads: outputs of all blocks with skips, else of the last, each through the encoder's one norm.
    /// [batch, patches, dim] each
    ///
    /// # Errors
    /// As [`Network::predict`].
    pub fn seen(&self, images: &Tensor, sights: &Sights) -> Result<Vec<Tensor>> {
        let PlainTokens { tokens, tapped, .. } = self.encoder.forward_in_order(images, sights, &self.taps)?;
        let mut seen: Vec<Tensor> =
            tapped.iter().map(|block| self.encoder.norm().forward(block)).collect::<Result<_>>()?;
        seen.push(tokens);
        Ok(seen)
    }
}
