//! The sizes a step is measured at.

use clap::ValueEnum;
use occlude_methods::capi::CapiConfig;

/// A named size. What it means for a method is written there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Preset {
    /// Dim 384, depth 12, 6 heads, predictor depth 6, patch 16, 224 px, batch 8, 65 % hidden, 7 predictions,
    /// 16 registers, 16384 prototypes, drop path 0.2.
    VitS,
    /// Dim 64, depth 2, 2 heads, predictor depth 1, patch 8, 32 px, batch 8, 3 predictions, 4 registers, 64 prototypes,
    /// drop path 0.2: for tests of the benchmark itself.
    Tiny,
}

impl Preset {
    /// As on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::VitS => "vit-s",
            Self::Tiny => "tiny",
        }
    }

    /// Side of the images in pixels.
    #[must_use]
    pub fn side(self) -> usize {
        match self {
            Self::VitS => 224,
            Self::Tiny => 32,
        }
    }

    /// Images of a step.
    #[must_use]
    pub fn batch(self) -> usize {
        8
    }

    /// The settings of CAPI.
    pub(crate) fn capi(self) -> CapiConfig {
        let mut capi = CapiConfig::default();
        let (encoder, predictor) = (&mut capi.encoder, &mut capi.predictor);
        match self {
            Self::VitS => {
                (encoder.dim, encoder.depth, encoder.heads, encoder.patch) = (384, 12, 6, 16);
                (predictor.dim, predictor.depth, predictor.heads) = (384, 6, 6);
                capi.prediction.count = Some(7);
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
}

#[cfg(test)]
mod tests {
    use super::Preset;
    use clap::ValueEnum;
    use occlude_settings::Ruler;

    #[test]
    fn the_settings_are_those_that_are_stated() {
        let capi = Preset::VitS.capi();
        assert_eq!((capi.encoder.registers, capi.encoder.drop_path, capi.mask.ratio), (16, 0.2, 0.65));
        assert_eq!((capi.clustering.prototypes, capi.encoder.patch), (16384, 16));
        assert_eq!(Preset::Tiny.capi().encoder.drop_path, 0.2);
    }

    #[test]
    fn every_preset_is_a_valid_configuration_under_its_name() {
        let ruler = Ruler { steps_per_epoch: 1000.0, total_steps: 10 };
        for preset in Preset::value_variants() {
            preset.capi().check(preset.side(), preset.batch(), ruler).unwrap();
            assert_eq!(Preset::from_str(preset.name(), false).unwrap(), *preset);
        }
    }
}
