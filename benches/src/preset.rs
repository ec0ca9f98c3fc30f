//! The sizes a step is measured at.

use anyhow::{Result, bail};
use clap::ValueEnum;
use occlude_methods::capi::CapiConfig;
use occlude_methods::mae::{MaeConfig, MaeDecoderConfig};
use occlude_methods::moca::MocaConfig;
use occlude_methods::randsac::{Architecture, RandsacConfig};
use occlude_vit::{PositionKind, VitConfig};

/// A named size: of an encoder and its images, and of what a method adds to it. For `encoder` alone that is all of it.
/// MAE has the encoder and the decoder of RandSAC, and hides 75 %.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Preset {
    /// Dim 384, depth 12, 6 heads, patch 16, 224 px, batch 8. CAPI: predictor depth 6, 65 % hidden, 7 predictions,
    /// 16 registers, 16384 prototypes, drop path 0.2. MOCA: decoder of 2 blocks of dim 512 and 16 heads on block 8, 4096
    /// words, 4 new ones a step, two rounds (0.55, 0.75 hidden; 0.35, 0.55 not decoded). RandSAC: decoder of 4 layers of dim
    /// 384 and 12 heads, the rest as in `vit-tiny`.
    VitS,
    /// MOCA `vit-s` without partial decoding: everything is decoded in both rounds, which are independent.
    VitSFullDecoding,
    /// Dim 192, depth 12, 3 heads, patch 4, 32 px, batch 64. CAPI: predictor depth 6, 65 % hidden, 7 predictions,
    /// 16 registers, 16384 prototypes, drop path 0.2. MOCA: as in `vit-s`. RandSAC: blobs 11 in 5, plain decoder of 3 layers
    /// of dim 192 and 3 heads, standardised pixels.
    VitTiny,
    /// RandSAC `vit-tiny` with trainable skips.
    VitTinySkip,
    /// RandSAC `vit-tiny` with two streams through 16 blocks, and no decoder.
    VitTinyTwoStream,
    /// RandSAC `vit-tiny`, told who sees whom by tables of pairs, which are made in every step, in place of ranks.
    VitTinyDense,
    /// RandSAC `vit-tiny` with pixels for patches, 1024 of them, as they are; batch 4.
    Pixels,
    /// RandSAC `pixels` with tables of pairs.
    PixelsDense,
    /// The quick starts. CAPI, `configs/quickstart.toml`: dim 128, depth 4, 4 heads, predictor depth 2, patch 8, 32 px, batch
    /// 128, 65 % hidden, all of them predicted, 4 registers, 128 prototypes, no drop path. MOCA,
    /// `configs/moca/quickstart.toml`: depth 6, decoder of 2 blocks of dim 128 and 4 heads on block 4, 512 words, no border.
    /// RandSAC and MAE, `configs/randsac/quickstart.toml` and `configs/mae/quickstart.toml`: depth 6, patch 4, decoder of 2
    /// layers of dim 128 and 4 heads; RandSAC with trainable skips.
    Quickstart,
    /// Dim 64, depth 2, 2 heads, patch 8, 32 px, batch 8, for tests of the benchmark itself. CAPI: predictor depth 1,
    /// 3 predictions, 4 registers, 64 prototypes, drop path 0.2. MOCA: decoder of 1 block of dim 32 and 2 heads on block 1,
    /// 64 words, a border of 1. RandSAC: plain decoder of 1 layer of dim 32 and 2 heads.
    Tiny,
}

/// What presets that differ in one thing have in common.
#[derive(Clone, Copy)]
enum Size {
    VitS,
    VitTiny,
    Quickstart,
    Tiny,
}

impl Preset {
    /// The one that is meant where a method is named and no size.
    #[must_use]
    pub fn usual(method: &str) -> Self {
        match method {
            "randsac" | "mae" => Self::VitTiny,
            _ => Self::VitS,
        }
    }

    /// As on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::VitS => "vit-s",
            Self::VitSFullDecoding => "vit-s-full-decoding",
            Self::VitTiny => "vit-tiny",
            Self::VitTinySkip => "vit-tiny-skip",
            Self::VitTinyTwoStream => "vit-tiny-two-stream",
            Self::VitTinyDense => "vit-tiny-dense",
            Self::Pixels => "pixels",
            Self::PixelsDense => "pixels-dense",
            Self::Quickstart => "quickstart",
            Self::Tiny => "tiny",
        }
    }

    fn size(self) -> Size {
        match self {
            Self::VitS | Self::VitSFullDecoding => Size::VitS,
            Self::VitTiny | Self::VitTinySkip | Self::VitTinyTwoStream | Self::VitTinyDense => Size::VitTiny,
            Self::Pixels | Self::PixelsDense => Size::VitTiny,
            Self::Quickstart => Size::Quickstart,
            Self::Tiny => Size::Tiny,
        }
    }

    /// Refuses a preset of one method for another one.
    pub(crate) fn check(self, method: &str) -> Result<()> {
        let only = match self {
            Self::VitS | Self::VitTiny | Self::Quickstart | Self::Tiny => return Ok(()),
            Self::VitSFullDecoding => "moca",
            Self::VitTinySkip | Self::VitTinyTwoStream | Self::VitTinyDense => "randsac",
            Self::Pixels | Self::PixelsDense => "randsac",
        };
        if method == only {
            return Ok(());
        }
        bail!("--preset {}: goes with `--method {only}` alone", self.name())
    }

    /// The same step told by ranks; itself, unless it is told by tables of pairs.
    pub(crate) fn by_ranks(self) -> Self {
        match self {
            Self::VitTinyDense => Self::VitTiny,
            Self::PixelsDense => Self::Pixels,
            others => others,
        }
    }

    /// Side of the images in pixels.
    #[must_use]
    pub fn side(self) -> usize {
        match self.size() {
            Size::VitS => 224,
            Size::VitTiny | Size::Quickstart | Size::Tiny => 32,
        }
    }

    /// Images of a step.
    #[must_use]
    pub fn batch(self) -> usize {
        match (self.by_ranks(), self.size()) {
            (Self::Pixels, _) => 4,
            (_, Size::VitTiny) => 64,
            (_, Size::Quickstart) => 128,
            (_, Size::VitS | Size::Tiny) => 8,
        }
    }

    /// The settings of CAPI.
    pub(crate) fn capi(self) -> CapiConfig {
        let mut capi = CapiConfig::default();
        let (encoder, predictor) = (&mut capi.encoder, &mut capi.predictor);
        match self.size() {
            Size::VitS => {
                (encoder.dim, encoder.depth, encoder.heads, encoder.patch) = (384, 12, 6, 16);
                (predictor.dim, predictor.depth, predictor.heads) = (384, 6, 6);
                capi.prediction.count = Some(7);
            }
            Size::VitTiny => {
                (encoder.dim, encoder.depth, encoder.heads, encoder.patch) = (192, 12, 3, 4);
                (predictor.dim, predictor.depth, predictor.heads) = (192, 6, 3);
                capi.prediction.count = Some(7);
            }
            Size::Quickstart => {
                (encoder.dim, encoder.depth, encoder.heads, encoder.patch) = (128, 4, 4, 8);
                (encoder.registers, encoder.drop_path) = (4, 0.0);
                (predictor.dim, predictor.depth, predictor.heads) = (128, 2, 4);
                capi.prediction.subsampling = 1.0;
                capi.clustering.prototypes = 128;
            }
            Size::Tiny => {
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
        match self.size() {
            Size::VitS => {
                (encoder.dim, encoder.depth, encoder.heads, encoder.patch) = (384, 12, 6, 16);
                moca.intermediate = Some(8);
            }
            Size::VitTiny => {
                (encoder.dim, encoder.depth, encoder.heads, encoder.patch) = (192, 12, 3, 4);
                moca.intermediate = Some(8);
            }
            Size::Quickstart => {
                (encoder.dim, encoder.depth, encoder.heads, encoder.patch) = (128, 6, 4, 8);
                (decoder.dim, decoder.depth, decoder.heads) = (128, 2, 4);
                moca.intermediate = Some(4);
                (moca.codebook.words, moca.codebook.border) = (512, 0);
            }
            Size::Tiny => {
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

    /// The settings of RandSAC.
    pub(crate) fn randsac(self) -> RandsacConfig {
        let mut randsac = RandsacConfig { architecture: Architecture::Plain, ..RandsacConfig::default() };
        let (encoder, decoder) = (&mut randsac.encoder, &mut randsac.decoder);
        match self.size() {
            Size::VitS => {
                (encoder.dim, encoder.depth, encoder.heads, encoder.patch) = (384, 12, 6, 16);
                (decoder.dim, decoder.depth, decoder.heads) = (384, 4, 12);
            }
            Size::VitTiny => {
                (encoder.dim, encoder.depth, encoder.heads, encoder.patch) = (192, 12, 3, 4);
                (decoder.dim, decoder.depth, decoder.heads) = (192, 3, 3);
            }
            Size::Quickstart => {
                (encoder.dim, encoder.depth, encoder.heads, encoder.patch) = (128, 6, 4, 4);
                (decoder.dim, decoder.depth, decoder.heads) = (128, 2, 4);
                randsac.architecture = Architecture::Skip;
            }
            Size::Tiny => {
                (encoder.dim, encoder.depth, encoder.heads, encoder.patch) = (64, 2, 2, 8);
                (decoder.dim, decoder.depth, decoder.heads) = (32, 1, 2);
            }
        }
        match self.by_ranks() {
            Self::VitTinySkip => randsac.architecture = Architecture::Skip,
            // As many numbers as the others have, within some percent: the paper's depth.
            Self::VitTinyTwoStream => (randsac.architecture, encoder.depth) = (Architecture::TwoStream, 16),
            Self::Pixels => (encoder.patch, randsac.norm_pix) = (1, false),
            _ => {}
        }
        randsac
    }

    /// The settings of MAE.
    pub(crate) fn mae(self) -> MaeConfig {
        let RandsacConfig { encoder, decoder, .. } = self.randsac();
        let decoder = MaeDecoderConfig { dim: decoder.dim, depth: decoder.depth, heads: decoder.heads };
        MaeConfig { encoder, decoder, ..MaeConfig::default() }
    }

    /// The settings of the encoder alone: a plain one, with learned positions and every block always run.
    pub(crate) fn encoder(self) -> VitConfig {
        VitConfig { registers: 0, position: PositionKind::Learnable, drop_path: 0.0, ..self.capi().encoder }
    }
}

#[cfg(test)]
mod tests {
    use super::{Architecture, CapiConfig, MaeConfig, MocaConfig, Preset, RandsacConfig};
    use crate::subject::RULER;
    use clap::ValueEnum;
    use occlude_masking::{Grid, SegmentsKind};
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
    fn the_settings_of_randsac_are_those_that_are_stated() {
        let RandsacConfig { architecture, norm_pix, loss_on_first, encoder, segments, decoder, .. } =
            Preset::VitTiny.randsac();
        assert_eq!((architecture, norm_pix, loss_on_first), (Architecture::Plain, true, true));
        assert_eq!((encoder.dim, encoder.depth, encoder.heads, encoder.patch), (192, 12, 3, 4));
        assert_eq!((decoder.dim, decoder.depth, decoder.heads), (192, 3, 3));
        assert_eq!((segments.kind, &segments.blobs[..], segments.shuffled), (SegmentsKind::Blob, &[11, 5][..], false));

        let plain = Preset::VitTiny.randsac();
        assert_eq!(Preset::VitTinySkip.randsac(), RandsacConfig { architecture: Architecture::Skip, ..plain.clone() });
        let streams = Preset::VitTinyTwoStream.randsac();
        assert_eq!((streams.architecture, streams.encoder.depth), (Architecture::TwoStream, 16));
        let pixels = Preset::Pixels.randsac();
        assert_eq!((pixels.encoder.patch, pixels.norm_pix, Preset::Pixels.batch()), (1, false, 4));
        assert_eq!(pixels.segments, plain.segments);
        for (dense, ranks) in [(Preset::VitTinyDense, Preset::VitTiny), (Preset::PixelsDense, Preset::Pixels)] {
            assert_eq!((dense.by_ranks(), dense.randsac()), (ranks, ranks.randsac()));
            assert_eq!((dense.batch(), dense.side()), (ranks.batch(), ranks.side()));
        }
    }

    #[test]
    fn the_settings_of_mae_are_those_that_are_stated() {
        let (MaeConfig { mask, norm_pix, encoder, decoder, .. }, randsac) =
            (Preset::VitTiny.mae(), Preset::VitTiny.randsac());
        assert_eq!((mask, norm_pix, encoder), (0.75, true, randsac.encoder));
        assert_eq!((decoder.dim, decoder.depth, decoder.heads), (192, 3, 3));
    }

    /// The table `method` of a configuration, after a look at what stands beside it.
    fn quick_start(text: &str, kind: &str) -> toml::Table {
        let mut file: toml::Table = text.parse().unwrap();
        assert_eq!(file["train"]["batch"].as_integer(), Some(Preset::Quickstart.batch() as i64));
        assert_eq!(file["data"]["crop"]["size"].as_integer(), Some(Preset::Quickstart.side() as i64));
        let method = file["method"].as_table_mut().unwrap();
        assert_eq!(method.remove("kind").unwrap().as_str(), Some(kind));
        method.clone()
    }

    #[test]
    fn the_quick_starts_of_moca_randsac_and_mae_are_those_of_their_files() {
        // Learning rates and their like cost nothing.
        let moca = quick_start(include_str!("../../configs/moca/quickstart.toml"), "moca");
        let moca = moca.try_into::<MocaConfig>().unwrap();
        assert_eq!(MocaConfig { optimizer: moca.optimizer.clone(), ..Preset::Quickstart.moca() }, moca);
        let randsac = quick_start(include_str!("../../configs/randsac/quickstart.toml"), "randsac");
        let randsac = randsac.try_into::<RandsacConfig>().unwrap();
        assert_eq!(RandsacConfig { optimizer: randsac.optimizer.clone(), ..Preset::Quickstart.randsac() }, randsac);
        let mae =
            quick_start(include_str!("../../configs/mae/quickstart.toml"), "mae").try_into::<MaeConfig>().unwrap();
        assert_eq!(MaeConfig { optimizer: mae.optimizer.clone(), ..Preset::Quickstart.mae() }, mae);
    }

    #[test]
    fn the_quick_start_is_that_of_its_file() {
        let method = quick_start(include_str!("../../configs/quickstart.toml"), "capi");
        let (written, ours) = (method.try_into::<CapiConfig>().unwrap(), Preset::Quickstart.capi());
        // Learning rates and their like cost nothing.
        assert_eq!((&written.encoder, &written.predictor), (&ours.encoder, &ours.predictor));
        assert_eq!((&written.mask, &written.prediction), (&ours.mask, &ours.prediction));
        assert_eq!(written.clustering.prototypes, ours.clustering.prototypes);
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
            let (side, batch) = (preset.side(), BatchSize { micro: preset.batch(), accumulate: 1 });
            let taken = |method| preset.check(method).is_ok();
            assert!(!taken("capi") || preset.capi().check(side, batch.micro, ruler).is_ok(), "{preset:?}");
            assert!(!taken("moca") || preset.moca().check(side, batch, RULER).is_ok(), "{preset:?}");
            assert!(!taken("randsac") || preset.randsac().check(side, batch, RULER).is_ok(), "{preset:?}");
            assert!(!taken("mae") || preset.mae().check(side, batch, RULER).is_ok(), "{preset:?}");
            assert_eq!(Preset::from_str(preset.name(), false).unwrap(), *preset);
        }
        assert!(Preset::from_str("abacus", false).is_err());
    }

    #[test]
    fn every_method_has_a_usual_size() {
        for (method, preset) in [("capi", "vit-s"), ("moca", "vit-s"), ("encoder", "vit-s"), ("randsac", "vit-tiny")] {
            assert_eq!(Preset::usual(method).name(), preset);
            Preset::usual(method).check(method).unwrap();
        }
        assert_eq!(Preset::usual("mae"), Preset::VitTiny);
    }

    #[test]
    fn a_preset_of_one_method_is_refused_by_the_others() {
        for (preset, only) in [(Preset::VitSFullDecoding, "moca"), (Preset::PixelsDense, "randsac")] {
            for method in ["capi", "moca", "randsac", "mae", "encoder"] {
                match preset.check(method) {
                    Ok(()) => assert_eq!(method, only),
                    Err(error) => {
                        let error = error.to_string();
                        assert!(error.contains(preset.name()) && error.contains(only) && method != only, "{error}");
                    }
                }
            }
        }
    }
}
