//! The frozen model that is evaluated and exported.

use super::Network;
use candle_core::Tensor;
use occlude_heads::Pooled;
use occlude_kernels::Result;
use occlude_tokenizers::SinkhornClustering;
use occlude_vit::{Extractor, Extras, Features};

/// Features of a student or a teacher: predictor pooling as the global vector, normed encoder outputs as the rest.
#[derive(Clone, Debug)]
pub struct CapiExtractor {
    network: Network,
    clustering: Option<SinkhornClustering>,
}

impl CapiExtractor {
    /// An extractor on the storage of `network`; nothing is tracked.
    #[must_use]
    pub fn new(network: &Network, clustering: Option<&SinkhornClustering>) -> Self {
        Self { network: network.detach(), clustering: clustering.map(SinkhornClustering::detach) }
    }
}

impl Extractor for CapiExtractor {
    fn features_with(&self, images: &Tensor, extras: Extras) -> Result<Features> {
        let Pooled { encoded, global } = self.network.pooled(images)?;
        let before_norm = extras.before_norm.then(|| encoded.patches_before_norm()).transpose()?;
        Ok(Features {
            registers: encoded.registers()?.map(|registers| registers.contiguous()).transpose()?,
            global: Some(global),
            before_norm: before_norm.map(|patches| patches.contiguous()).transpose()?,
            ..Features::new(encoded.grid, encoded.patches()?.contiguous()?)
        })
    }

    fn clusters(&self, patches: &Tensor) -> Result<Option<Tensor>> {
        self.clustering.as_ref().map(|clustering| clustering.clusters(patches)).transpose()
    }

    fn patch_size(&self) -> usize {
        self.network.encoder().settings().patch()
    }
}
