//! Official layouts: whose names the weights of a method have in files.

use clap::ValueEnum;
use occlude_checkpoint::Result;
use occlude_checkpoint::layouts::{Imported, Model, capi, moca, plain};
use occlude_kernels::StateDict;
use occlude_methods::MethodConfig;
use std::fmt;
use std::path::Path;

/// A published system.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Layout {
    /// The official CAPI files: `backbone.*`, `head.*`.
    Capi,
    /// The official MOCA files: an encoder (`cls_token`, `blocks.*`), or with `--full` the training state.
    Moca,
    /// RandSAC: an encoder (`patch_embed.*`, `blocks.*`, `norm.*`), or with `--full` the decoder too.
    Randsac,
    /// The files of masked autoencoders: as `randsac`, with a class token.
    Mae,
}

impl Layout {
    /// The layout of a method's weights.
    pub(crate) fn of(method: &MethodConfig) -> Self {
        match method {
            MethodConfig::Capi(_) => Self::Capi,
            MethodConfig::Moca(_) => Self::Moca,
            MethodConfig::Randsac(_) => Self::Randsac,
            MethodConfig::Mae(_) => Self::Mae,
        }
    }

    /// `state` with the weights of `file` in it: those training begins with.
    pub(crate) fn read(self, file: &Path, state: &StateDict) -> Result<Imported> {
        match self {
            Self::Capi => {
                let student = capi::read(file, state, Model::Student, capi::Scope::All)?;
                capi::read(file, &student.state, Model::Average, capi::Scope::All)
            }
            Self::Moca => moca::read_all(file, state),
            Self::Randsac | Self::Mae => plain::read(file, state),
        }
    }
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Capi => "capi",
            Self::Moca => "moca",
            Self::Randsac => "randsac",
            Self::Mae => "mae",
        })
    }
}
