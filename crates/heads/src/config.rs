//! Settings of predictors and heads: as written, and checked.

use occlude_settings::ConfigError;
use occlude_vit::{VitSettings, check_depth, check_heads, check_width};
use serde::{Deserialize, Serialize};

/// How hidden patches are predicted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PredictorKind {
    /// Mask tokens attend to the encoder's output and never to each other.
    Cross,
    /// Self-attention over the encoder's output and mask tokens.
    #[serde(rename = "self")]
    SelfAttention,
    /// One transformer: mask tokens enter the encoder in place of hidden patches.
    Fused,
}

/// A predictor as written in a file. Defaults are CAPI's ViT-L.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PredictorConfig {
    /// `cross`, `self` or `fused`. A fused predictor has no blocks of its own: `dim`, `depth` and `heads` are not used.
    pub kind: PredictorKind,
    /// Width.
    pub dim: usize,
    /// Blocks.
    pub depth: usize,
    /// Attention heads.
    pub heads: usize,
    /// `self` only: mask tokens at the predicted positions instead of at all hidden ones.
    pub only_sampled: bool,
}

impl Default for PredictorConfig {
    fn default() -> Self {
        Self { kind: PredictorKind::Cross, dim: 1024, depth: 12, heads: 16, only_sampled: false }
    }
}

/// A checked predictor for one encoder.
#[derive(Clone, Debug, PartialEq)]
pub struct PredictorSettings {
    pub(crate) kind: PredictorKind,
    pub(crate) dim: usize,
    pub(crate) depth: usize,
    pub(crate) heads: usize,
    pub(crate) only_sampled: bool,
}

impl PredictorConfig {
    /// Checks the settings on top of `encoder`.
    ///
    /// # Errors
    /// Names the first field whose value is not allowed.
    pub fn check(&self, encoder: &VitSettings) -> Result<PredictorSettings, ConfigError> {
        let Self { kind, dim, depth, heads, only_sampled } = *self;
        if kind == PredictorKind::Fused {
            return Ok(PredictorSettings { kind, dim: encoder.dim(), depth: 0, heads: 0, only_sampled });
        }
        check_heads(dim, heads, encoder.position())?;
        check_depth(depth)?;
        Ok(PredictorSettings { kind, dim, depth, heads, only_sampled })
    }
}

impl PredictorSettings {
    /// Width of the predictions.
    #[must_use]
    pub fn dim(&self) -> usize {
        self.dim
    }
}

/// What a head does with a prediction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HeadKind {
    /// Cosines with prototypes, each times a trained gain.
    Linear,
    /// An MLP before that.
    Mlp,
    /// A feature: unchanged, or one linear where widths differ.
    Identity,
}

/// A head as written in a file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HeadConfig {
    /// `linear`, `mlp` or `identity`; where left out, the one the loss calls for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<HeadKind>,
    /// `mlp` only: width of its two hidden layers.
    pub hidden: usize,
    /// `mlp` only: width of its output, on which the prototypes sit.
    pub bottleneck: usize,
}

impl Default for HeadConfig {
    fn default() -> Self {
        Self { kind: None, hidden: 2048, bottleneck: 256 }
    }
}

/// A checked head.
#[derive(Clone, Debug, PartialEq)]
pub struct HeadSettings {
    pub(crate) kind: HeadKind,
    pub(crate) hidden: usize,
    pub(crate) bottleneck: usize,
}

impl HeadConfig {
    /// Checks the settings; `default` is the kind where none is written.
    ///
    /// # Errors
    /// Names the first width that cannot be built.
    pub fn check(&self, default: HeadKind) -> Result<HeadSettings, ConfigError> {
        let Self { kind, hidden, bottleneck } = *self;
        let kind = kind.unwrap_or(default);
        check_width("hidden", hidden)?;
        check_width("bottleneck", bottleneck)?;
        Ok(HeadSettings { kind, hidden, bottleneck })
    }
}

impl HeadSettings {
    /// What the head does.
    #[must_use]
    pub fn kind(&self) -> HeadKind {
        self.kind
    }
}

#[cfg(test)]
mod tests {
    use super::{HeadConfig, HeadKind, PredictorConfig};
    use occlude_vit::VitConfig;

    #[test]
    fn sizes_that_cannot_be_built_are_refused_by_name() {
        let encoder = VitConfig::default().check(224).unwrap();
        let predictor = |change: fn(&mut PredictorConfig)| {
            let mut config = PredictorConfig::default();
            change(&mut config);
            config.check(&encoder).unwrap_err().to_string()
        };
        assert!(predictor(|c| c.dim = 0).starts_with("dim = 0: must be at least 1 and at most 65536"));
        assert!(predictor(|c| c.dim = 1_024_000_000).starts_with("dim = 1024000000"));
        assert!(predictor(|c| c.depth = 100_000).starts_with("depth = 100000: must be at least 1 and at most 1024"));
        let head = |config: HeadConfig| config.check(HeadKind::Mlp).unwrap_err().to_string();
        assert!(head(HeadConfig { hidden: 1 << 40, ..HeadConfig::default() }).starts_with("hidden = 1099511627776"));
        assert!(head(HeadConfig { bottleneck: 0, ..HeadConfig::default() }).starts_with("bottleneck = 0"));
    }
}
