//! Why a config was not read.

use crate::Source;
use occlude_settings::ConfigError;
use std::path::PathBuf;

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a config was not read or not accepted. Every message is one line.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The file could not be opened.
    #[error("{path}: {source}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The text is not TOML.
    #[error("{place}, line {line}: {message}")]
    Syntax {
        /// Where the text came from.
        place: Source,
        /// 1-based.
        line: usize,
        /// What the parser said.
        message: String,
    },
    /// `--set` without `=`, or with an empty key.
    #[error("--set {text}: write it as KEY=VALUE, such as `--set train.batch=64`")]
    NotAnAssignment {
        /// What was given.
        text: String,
    },
    /// No setting has this name.
    #[error("{place}: unknown key `{key}`{hint}")]
    UnknownKey {
        /// Where it was written.
        place: Source,
        /// Full name, dots between levels.
        key: String,
        /// What might have been meant.
        hint: String,
    },
    /// A value of the wrong kind, such as a word for a number.
    #[error("{place}: {key} = {value}: must be {expected}")]
    WrongType {
        /// Where it was written.
        place: Source,
        /// Full name.
        key: String,
        /// The value as written.
        value: String,
        /// What is allowed.
        expected: String,
    },
    /// The value does not fit the schema, as serde put it.
    #[error("{place}: {message}")]
    Unfit {
        /// Where it was written, as far as known.
        place: String,
        /// What is wrong, with the key.
        message: String,
    },
    /// No preset has this name.
    #[error("unknown preset `{name}`{hint}")]
    UnknownPreset {
        /// The name given.
        name: String,
        /// What might have been meant, and what exists.
        hint: String,
    },
    /// No table of published experiments has this name, or none of its rows.
    #[error("unknown {what} `{name}`{hint}")]
    UnknownRow {
        /// What was looked for: `method`, `row`, `scale`.
        what: &'static str,
        /// The name given.
        name: String,
        /// What might have been meant, and what exists.
        hint: String,
    },
    /// A published experiment that is not carried.
    #[error("{name} is not carried: {why}")]
    NotCarried {
        /// The name given.
        name: String,
        /// Why there is no row.
        why: String,
    },
    /// A value that its room refuses.
    #[error(transparent)]
    Refused(#[from] ConfigError),
    /// The config cannot be written as TOML.
    #[error("the settings cannot be written as TOML: {0}")]
    Write(#[from] toml::ser::Error),
}
