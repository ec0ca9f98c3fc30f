//! Settings of MOCA: as written in a file, and checked.

use super::optimizer::{MocaOptimizerConfig, Recipe};
use crate::{BatchSize, GlobalToken};
use occlude_heads::{DecoderConfig, DecoderInput, DecoderSettings, GeneratorConfig, GeneratorSettings};
use occlude_masking::{Rounds, RoundsConfig};
use occlude_settings::{ConfigError, Ruler, require};
use occlude_tokenizers::{CodebookConfig, CodebookSettings};
use occlude_vit::{PlainVitConfig, PlainVitSettings};
use serde::{Deserialize, Serialize};

/// Blocks after the tapped one where nothing is said, as in the public code.
const BLOCKS_AFTER_TAP: usize = 4;

/// What a decoder says about patches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LocTarget {
    /// The teacher's assignment of the patch to words (MOCA).
    Assign,
    /// The pixels of hidden patches, standardised patch by patch.
    Pixels,
    /// The teacher's token of the patch.
    Embeddings,
}

/// MOCA as written in a file. Defaults are those of the paper's recipe: ViT-B/16, 4096 words. The recommended run of the
/// public code (v1) differs in two: `optimizer.momentum = 0.994` and `optimizer.weight_decay_end = 0.2`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MocaConfig {
    /// Share of the image loss; the rest is that of the local loss. With 1 there is no decoder.
    pub lambda: f64,
    /// `avg` or `cls`.
    pub global_token: GlobalToken,
    /// `assign`, `pixels` or `embeddings`.
    pub loc_target: LocTarget,
    /// Whether a plain decoder learns beside the condenser.
    pub two_decoders: bool,
    /// The block, counted from 1, whose output a condenser reads (other decoders read the last one); four before the last
    /// where absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub intermediate: Option<usize>,
    /// The encoder.
    pub encoder: PlainVitConfig,
    /// What the student sees, and what it is asked.
    pub masking: RoundsConfig,
    /// The words.
    pub codebook: CodebookConfig,
    /// The generators of prototypes.
    pub generator: GeneratorConfig,
    /// The decoder.
    pub decoder: DecoderConfig,
    /// The optimizer and the teacher's momentum.
    pub optimizer: MocaOptimizerConfig,
}

impl Default for MocaConfig {
    fn default() -> Self {
        Self {
            lambda: 0.5,
            global_token: GlobalToken::Avg,
            loc_target: LocTarget::Assign,
            two_decoders: false,
            intermediate: None,
            encoder: PlainVitConfig::default(),
            masking: RoundsConfig::default(),
            codebook: CodebookConfig::default(),
            generator: GeneratorConfig::default(),
            decoder: DecoderConfig::default(),
            optimizer: MocaOptimizerConfig::default(),
        }
    }
}

/// Checked MOCA for one image size, batch size and length of run.
#[derive(Clone, Debug, PartialEq)]
pub struct MocaSettings {
    pub(super) lambda: f64,
    pub(super) global_token: GlobalToken,
    pub(super) encoder: PlainVitSettings,
    pub(super) rounds: Rounds,
    pub(super) codebook: CodebookSettings,
    pub(super) generator: GeneratorSettings,
    pub(super) local: Option<LocalSettings>,
    pub(super) recipe: Recipe,
}

/// What the local loss needs.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct LocalSettings {
    pub(super) target: LocTarget,
    /// The block that a condenser reads.
    pub(super) intermediate: usize,
    pub(super) decoder: DecoderSettings,
    /// The plain one of two decoders.
    pub(super) second: Option<DecoderSettings>,
}

impl MocaSettings {
    /// The encoder.
    #[must_use]
    pub fn encoder(&self) -> &PlainVitSettings {
        &self.encoder
    }

    /// What the student sees, and what it is asked.
    #[must_use]
    pub fn rounds(&self) -> &Rounds {
        &self.rounds
    }
}

impl MocaConfig {
    /// Checks the settings for square images of `image_size` pixels, steps of `batch` images and a run as long as `ruler`
    /// says.
    ///
    /// # Errors
    /// Names the first field whose value is not allowed.
    pub fn check(&self, image_size: usize, batch: BatchSize, ruler: Ruler) -> Result<MocaSettings, ConfigError> {
        let lambda = require("lambda", self.lambda, "must be between 0 and 1", |l| (0.0..=1.0).contains(l))?;
        let encoder = self.encoder.check(image_size).map_err(|e| e.inside("encoder"))?;
        let grid = encoder.grid();
        let local = self.check_local(&encoder)?;
        Ok(MocaSettings {
            lambda,
            global_token: self.global_token,
            rounds: self.masking.check(grid).map_err(|e| e.inside("masking"))?,
            codebook: self.codebook.check(grid, batch.micro).map_err(|e| e.inside("codebook"))?,
            generator: self.generator.check(encoder.dim()).map_err(|e| e.inside("generator"))?,
            local,
            recipe: self.optimizer.check(batch, ruler).map_err(|e| e.inside("optimizer"))?,
            encoder,
        })
    }

    fn check_local(&self, encoder: &PlainVitSettings) -> Result<Option<LocalSettings>, ConfigError> {
        let intermediate = self.check_intermediate(encoder.depth())?;
        let check = |decoder: &DecoderConfig| decoder.check(encoder.dim(), encoder.grid(), encoder.recompute());
        let decoder = check(&self.decoder).map_err(|e| e.inside("decoder"))?;
        if self.two_decoders {
            let allowed = "must be `condenser` with two_decoders = true: the other one is plain";
            let written = match self.decoder.input {
                DecoderInput::Condenser => "condenser",
                DecoderInput::LastLayer => "last_layer",
                DecoderInput::Plain => "plain",
            };
            require("decoder.input", written, allowed, |input| *input == "condenser")?;
        }
        if self.lambda < 1.0 {
            let plain = DecoderConfig { input: DecoderInput::Plain, ..self.decoder.clone() };
            let second = self.two_decoders.then(|| check(&plain)).transpose()?;
            return Ok(Some(LocalSettings { target: self.loc_target, intermediate, decoder, second }));
        }
        let no_loss = |ours: &str| format!("must be {ours} with lambda = 1: there is no local loss");
        require("two_decoders", self.two_decoders, &no_loss("false"), |two| !two)?;
        let target = format!("{:?}", self.loc_target).to_lowercase();
        require("loc_target", target, &no_loss("`assign`"), |target| target == "assign")?;
        Ok(None)
    }

    /// The block that a condenser reads; the last one for other decoders.
    fn check_intermediate(&self, depth: usize) -> Result<usize, ConfigError> {
        let allowed = format!("must be a block of the encoder, 1 to {depth}");
        let given =
            self.intermediate.map(|block| require("intermediate", block, &allowed, |b| (1..=depth).contains(b)));
        match (given.transpose()?, self.decoder.input) {
            (_, DecoderInput::LastLayer | DecoderInput::Plain) => Ok(depth),
            (Some(block), DecoderInput::Condenser) => Ok(block),
            (None, DecoderInput::Condenser) if depth > BLOCKS_AFTER_TAP => Ok(depth - BLOCKS_AFTER_TAP),
            (None, DecoderInput::Condenser) if self.lambda == 1.0 => Ok(depth), // Nothing reads it.
            (None, DecoderInput::Condenser) => {
                let why =
                    format!("must be given: an encoder of {depth} blocks has none {BLOCKS_AFTER_TAP} before the last");
                Err(ConfigError::new("intermediate", "none", why))
            }
        }
    }
}
