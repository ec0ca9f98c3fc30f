//! Why an evaluation could not be done.

use std::path::PathBuf;

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why an evaluation could not be done.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A tensor operator or the model refused its input.
    #[error(transparent)]
    Tensor(#[from] occlude_kernels::Error),
    /// An image could not be read.
    #[error(transparent)]
    Data(#[from] occlude_data::Error),
    /// No image of a set has a label.
    #[error(
        "{what}: no image has a label; put images into one folder a class, or use a data set with labels (features, \
         neighbours and pictures need none)"
    )]
    NoLabels {
        /// Which set.
        what: &'static str,
    },
    /// None of the images asked for could be read. The log names each with its reason.
    #[error("{what}: no image could be read; the log names each and why, check the path and the files")]
    NoneReadable {
        /// Which set.
        what: &'static str,
    },
    /// A search needs more rows than there are, with or without label.
    #[error("{what}: {got} images, {needed} needed; add images or ask for fewer neighbours")]
    TooFewRows {
        /// Which search.
        what: &'static str,
        /// How many there are.
        got: usize,
        /// How many are needed.
        needed: usize,
    },
    /// A protocol needs more labelled rows than there are.
    #[error("{what}: {got} labelled images, {needed} needed; add images, raise the limit, or ask for fewer neighbours")]
    TooFew {
        /// Which set.
        what: &'static str,
        /// How many there are.
        got: usize,
        /// How many are needed.
        needed: usize,
    },
    /// Two sets, or a set and its own sizes, do not fit together.
    #[error("{0}")]
    Mismatch(String),
    /// The model offers no vector of its own an image.
    #[error("this model has no pooling of its own (`global`); use `average`")]
    NoGlobal,
    /// The model has no class token.
    #[error("this model has no class token (`{pooling}`); use `average`")]
    NoClassToken {
        /// What was asked for.
        pooling: &'static str,
    },
    /// The model does not hand out patches before its final norm.
    #[error("this model does not give its patches before the final norm (`before_norm`, low-shot classification)")]
    NoBeforeNorm,
    /// A list of training images cannot be read, or does not fit the data set.
    #[error("{path}: {message}", path = path.display())]
    List {
        /// The file.
        path: PathBuf,
        /// What is wrong, with the line.
        message: String,
    },
    /// A class has fewer images than a subset takes of it.
    #[error("low-shot: class {class} has {got} images, {needed} needed; add images or lower `eval.lowshot.shots`")]
    FewOfClass {
        /// Its name, or its number.
        class: String,
        /// How many there are.
        got: usize,
        /// How many are needed.
        needed: usize,
    },
    /// A feature is not finite: the model has diverged.
    #[error("{what}: a feature of row {row} is not finite; the weights have diverged, take an earlier checkpoint")]
    NotFinite {
        /// Which set.
        what: &'static str,
        /// The row.
        row: usize,
    },
    /// A file of features could not be written. What stood under its name stands, unless the folder alone
    /// could not be synced.
    #[error("{path}: not written: {message}", path = path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        message: String,
    },
}

impl From<candle_core::Error> for Error {
    fn from(error: candle_core::Error) -> Self {
        Self::Tensor(error.into())
    }
}
