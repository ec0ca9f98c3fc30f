//! In which arithmetic a step is computed, on our side and on the peer's.

use clap::ValueEnum;

/// Keys of the ratios in a report: every precision, whether this processor has it or not.
pub(crate) const RATIO_KEYS: [&str; 3] = ["f32", "bf16", "f32x3"];

/// What our side computes in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Precision {
    /// f32 throughout: the reference.
    F32,
    /// Products with bf16 operands.
    Bf16,
    /// Products with operands in two bf16 parts.
    #[value(name = "f32x3")]
    F32x3,
}

/// What the PyTorch program computes in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PeerPrecision {
    /// f32 throughout.
    F32,
    /// bf16 autocast: products in bf16, the rest in f32.
    Bf16,
}

impl Precision {
    /// Every precision.
    pub const ALL: [Self; 3] = [Self::F32, Self::Bf16, Self::F32x3];

    /// The setting of the kernels.
    #[must_use]
    pub fn kernels(self) -> occlude_kernels::Precision {
        match self {
            Self::F32 => occlude_kernels::Precision::F32,
            Self::Bf16 => occlude_kernels::Precision::Bf16,
            Self::F32x3 => occlude_kernels::Precision::F32x3,
        }
    }

    /// As on the command line and in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.kernels().name()
    }

    /// Whether it is anything but f32 on this processor; `F32` is worth measuring in any case.
    #[must_use]
    pub fn is_of_its_own(self) -> bool {
        self == Self::F32 || self.kernels().tiles().is_some()
    }

    /// What it is compared with.
    #[must_use]
    pub fn peer(self) -> PeerPrecision {
        match self {
            Self::F32 | Self::F32x3 => PeerPrecision::F32,
            Self::Bf16 => PeerPrecision::Bf16,
        }
    }
}

impl PeerPrecision {
    /// Every precision of the peer.
    pub const ALL: [Self; 2] = [Self::F32, Self::Bf16];

    /// As the program's `--precision` and in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        }
    }

    /// Whether a processor with these instruction sets has products for it. Without them PyTorch emulates bf16, many
    /// times slower than f32: a figure that nobody would use.
    #[must_use]
    pub fn runs_on(self, features: &[&str]) -> bool {
        match self {
            Self::F32 => true,
            Self::Bf16 => features.iter().any(|name| ["avx512_bf16", "amx_bf16"].contains(name)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{PeerPrecision, Precision, RATIO_KEYS};

    #[test]
    fn every_precision_has_a_place_in_the_report() {
        assert_eq!(Precision::ALL.map(Precision::name), RATIO_KEYS);
    }

    #[test]
    fn bf16_needs_instructions_for_it() {
        assert!(PeerPrecision::F32.runs_on(&[]));
        assert!(!PeerPrecision::Bf16.runs_on(&["avx2", "avx512f"]));
        assert!(PeerPrecision::Bf16.runs_on(&["avx512_bf16"]) && PeerPrecision::Bf16.runs_on(&["amx_bf16"]));
    }
}
