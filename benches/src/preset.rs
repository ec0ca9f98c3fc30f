//! The sizes a step is measured at.

use clap::ValueEnum;
use occlude_methods::capi::CapiConfig;
use occlude_methods::moca::MocaConfig;
use occlude_vit::{PositionKind, VitConfig};

/// A named size: of an encoder and its images, and of what a method adds to it. For `encoder` alone that is all of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Preset {
    /// Dim 384, depth 12, 6 heads, patch 16, 224 px, batch 8. CAPI: predictor depth 6, 65 % hidden, 7 predictions,
    /// 16 registers, 16384 prototypes, drop path 0.2. MOCA: decoder of 2 blocks of dim 512 and 16 heads on block 8, 4096
    /// words, 4 new ones a step, two rounds (0.55, 0.75 hidden; 0.35, 0.55 not decoded).
    VitS,
    /// MOCA `vit-s` without partial decoding: everything is decoded in both rounds, which are independent.
    VitSFullDecoding,
    /// Dim 192, depth 12, 3 heads, patch 4, 32 px, batch 64. CAPI: predictor depth 6, 65 % hidden, 7 predictions,
    /// 16 registers, 16384 prototypes, drop path 0.2. MOCA: as in `vit-s`.
    VitTiny,
    /// The quick starts. CAPI, `configs/quickstart.toml`: dim 128, depth 4, 4 heads, predictor depth 2, patch 8, 32 px, batch
    /// 128, 65 % hidden, all of them predicted, 4 registers, 128 prototypes, no drop path. MOCA,
    /// `configs/moca/quickstart.toml`: depth 6, decoder of 2 blocks of dim 128 and 4 heads on block 4, 512 words, no border.
    Quickstart,
    /// Dim 64, depth 2, 2 heads, patch 8, 32 px, batch 8, for tests of the benchmark itself. CAPI: predictor depth 1,
    /// 3 predictions, 4 registers, 64 prototypes, drop path 0.2. MOCA: decoder of 1 block of dim 32 and 2 heads on block 1,
    /// 64 words, a border of 1.
    Tiny,
}

impl Preset {
    /// As on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::VitS => "vit-s",
            Self::VitSFullDecoding => "vit-s-full-decoding",
            Self::VitTiny => "vit-tiny",
            Self::Quickstart => "quickstart",
            Self::Tiny => "tiny",
        }
    }

    /// Side of the images in pixels.
    #[must_use]
    pub fn side(self) -> usize {
        match self {
            Self::VitS | Self::VitSFullDecoding => 224,
            Self::VitTiny | Self::Quickstart | Self::Tiny => 32,
        }
    }

    /// Images of a step.
    #[must_use]
    pub fn batch(self) -> usize {
        match self {
            Self::VitTiny => 64,
            Self::Quickstart => 128,
            Self::VitS | Self::VitSFullDecoding | Self::Tiny => 8,
        }
    }

    /// The settings of CAPI.
    pub(crate) fn capi(self) -> CapiConfig {
        let mut capi = CapiConfig::default();
        let (encoder, predictor) = (&mut capi.encoder, &mut capi.predictor);
        match self {
            Self::VitS | Self::VitSFullDecoding => {
                (encoder.dim, encoder.depth, encoder.heads, encoder.patch) = (384, 12, 6, 16);
                (predictor.dim, predictor.depth, predictor.heads) = (384, 6, 6);
                capi.prediction.count = Some(7);
            }
            Self::VitTiny => {
                (encoder.dim, encoder.depth, encoder.heads, encoder.patch) = (192, 12, 3, 4);
                (predictor.dim, predictor.depth, predictor.heads) = (192, 6, 3);
                capi.prediction.count = Some(7);
            }
            Self::Quickstart => {
                (encoder.dim, encoder.depth, encoder.heads, encoder.patch) = (128, 4, 4, 8);
                (encoder.registers, encoder.drop_path) = (4, 0.0);
                (predictor.dim, predictor.depth, predictor.heads) = (128, 2, 4);
                capi.prediction.subsampling = 1.0;
                capi.clustering.prototypes = 128;
            }
            Self::Tiny => {
                (encoder.dim, encoder.depth, encoder.heads, encoder.patch) = (64, 2, 2, 8);
                encoder.registers = 4;
                (predictor.dim, predictor.depth, predictor.heads) = (64, 1, 2);
                capi.prediction.count = Some(3);
                capi.clustering.prototypes = 64;
            }
        }
        capi
    }

    /// The settings of MOCA.
    pub(crate) fn moca(self) -> MocaConfig {
        let mut moca = MocaConfig::default();
        let (encoder, decoder) = (&mut moca.encoder, &mut moca.decoder);
        match self {
            Self::VitS | Self::VitSFullDecoding => {
                (encoder.dim, encoder.depth, encoder.heads, encoder.patch) = (384, 12, 6, 16);
                moca.intermediate = Some(8);
            }
            Self::VitTiny => {
                (encoder.dim, encoder.depth, encoder.heads, encoder.patch) = (192, 12, 3, 4);
                moca.intermediate = Some(8);
            }
            Self::Quickstart => {
                (encoder.dim, encoder.depth, encoder.heads, encoder.patch) = (128, 6, 4, 8);
                (decoder.dim, decoder.depth, decoder.heads) = (128, 2, 4);
                moca.intermediate = Some(4);
                (moca.codebook.words, moca.codebook.border) = (512, 0);
            }
            Self::Tiny => {
                (encoder.dim, encoder.depth, encoder.heads, encoder.patch) = (64, 2, 2, 8);
                (decoder.dim, decoder.depth, decoder.heads) = (32, 1, 2);
                moca.intermediate = Some(1);
                (moca.codebook.words, moca.codebook.border) = (64, 1);
            }
        }
        if self == Self::VitSFullDecoding {
            moca.masking.rounds.iter_mut().for_each(|round| round.decode_mask = 0.0);
            // A first round that decodes everything leaves nothing for a second one to complement.
            moca.masking.complementary = false;
        }
        moca
    }

    /// The settings of the encoder alone: a plain one, with learned positions and every block always run.
    pub(crate) fn encoder(self) -> VitConfig {
        VitConfig { registers: 0, position: PositionKind::Learnable, drop_path: 0.0, ..self.capi().encoder }
    }
}

#[cfg(test)]
mod tests {
    use super::{CapiConfig, MocaConfig, Preset};
    use clap::ValueEnum;
    use occlude_masking::Grid;
    use occlude_methods::BatchSize;
    use occlude_settings::Ruler;

    #[test]
    fn the_settings_are_those_that_are_stated() {
        let capi = Preset::VitS.capi();
        assert_eq!((capi.encoder.registers, capi.encoder.drop_path, capi.mask.ratio), (16, 0.2, 0.65));
        assert_eq!((capi.clustering.prototypes, capi.encoder.patch), (16384, 16));
        assert_eq!(Preset::Tiny.capi().encoder.drop_path, 0.2);
    }

    #[test]
    fn the_settings_of_moca_are_those_that_are_stated() {
        let counts = |preset: Preset| {
            let rounds = preset.moca().masking.check(Grid::new(14, 14)).unwrap();
            rounds.counts().iter().map(|counts| (counts.keep, counts.decode)).collect::<Vec<_>>()
        };
        assert_eq!(counts(Preset::VitS), [(88, 127), (49, 88)]);
        assert_eq!(counts(Preset::VitSFullDecoding), [(88, 196), (49, 196)]);
        let MocaConfig { decoder, codebook, intermediate, lambda, .. } = Preset::VitS.moca();
        assert_eq!((decoder.dim, decoder.depth, decoder.heads), (512, 2, 16));
        assert_eq!((codebook.words, codebook.new_words_per_step, codebook.border), (4096, 4, 2));
        assert_eq!((intermediate, lambda), (Some(8), 0.5));
    }

    #[test]
    fn the_quick_start_of_moca_is_that_of_its_file() {
        let mut file: toml::Table = include_str!("../../configs/moca/quickstart.toml").parse().unwrap();
        let method = file["method"].as_table_mut().unwrap();
        assert_eq!(method.remove("kind").unwrap().as_str(), Some("moca"));
        let (written, mut ours) = (method.clone().try_into::<MocaConfig>().unwrap(), Preset::Quickstart.moca());
        ours.optimizer = written.optimizer.clone(); // Learning rates and their like cost nothing.
        assert_eq!(written, ours);
        assert_eq!(file["train"]["batch"].as_integer(), Some(Preset::Quickstart.batch() as i64));
        assert_eq!(file["data"]["crop"]["size"].as_integer(), Some(Preset::Quickstart.side() as i64));
    }

    #[test]
    fn the_quick_start_is_that_of_its_file() {
        let mut file: toml::Table = include_str!("../../configs/quickstart.toml").parse().unwrap();
        let method = file["method"].as_table_mut().unwrap();
        assert_eq!(method.remove("kind").unwrap().as_str(), Some("capi"));
        let (written, ours) = (method.clone().try_into::<CapiConfig>().unwrap(), Preset::Quickstart.capi());
        // Learning rates and their like cost nothing.
        assert_eq!((&written.encoder, &written.predictor), (&ours.encoder, &ours.predictor));
        assert_eq!((&written.mask, &written.prediction), (&ours.mask, &ours.prediction));
        assert_eq!(written.clustering.prototypes, ours.clustering.prototypes);
        assert_eq!(file["train"]["batch"].as_integer(), Some(Preset::Quickstart.batch() as i64));
        assert_eq!(file["data"]["crop"]["size"].as_integer(), Some(Preset::Quickstart.side() as i64));
    }

    #[test]
    fn the_encoders_have_the_tokens_that_are_stated() {
        for (preset, batch, tokens, dim) in [(Preset::VitTiny, 64, 64, 192), (Preset::VitS, 8, 196, 384)] {
            let settings = preset.encoder().check(preset.side()).unwrap();
            assert_eq!((preset.batch(), settings.grid().count(), settings.dim()), (batch, tokens, dim));
            assert_eq!((settings.depth(), settings.registers(), settings.drop_path().0), (12, 0, 0.0));
            assert_eq!(settings.hidden_for(dim), 4 * dim);
        }
    }

    #[test]
    fn every_preset_is_a_valid_configuration_under_its_name() {
        let ruler = Ruler { steps_per_epoch: 1000.0, total_steps: 10 };
        for preset in Preset::value_variants() {
            preset.capi().check(preset.side(), preset.batch(), ruler).unwrap();
            let batch = BatchSize { micro: preset.batch(), accumulate: 1 };
            preset.moca().check(preset.side(), batch, crate::moca::RULER).unwrap();
            assert_eq!(Preset::from_str(preset.name(), false).unwrap(), *preset);
        }
    }
}
