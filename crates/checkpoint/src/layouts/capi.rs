//! The official CAPI layout: one model, `backbone.*` and `head.*`, f32 or bf16.
//!
//! A method's state holds the student under `student.` and its average under `student_ema.`; the official file holds
//! one of them with the prefix removed. Reading fills one of them again; the frequency tables of the file are used as
//! stored.

use super::{Imported, Model, fill, read_any, stripped, write_export};
use crate::{CommitError, Result};
use candle_core::DType;
use occlude_kernels::StateDict;
use std::path::Path;

/// How much of a file is read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Scope {
    /// Encoder and predictor: what evaluation needs.
    #[default]
    Backbone,
    /// The prediction head as well.
    All,
}

/// Beginning of a model's names in a training state.
#[must_use]
pub fn prefix(model: Model) -> &'static str {
    match model {
        Model::Average => "student_ema.",
        Model::Student => "student.",
    }
}

/// The tensors of one model under their official names, in `dtype`.
///
/// # Errors
/// The state has no tensor of that model, or a cast fails.
pub fn export(state: &StateDict, model: Model, dtype: DType) -> candle_core::Result<StateDict> {
    let mut tensors = stripped(state, prefix(model), dtype)?;
    tensors.retain(|name, _| is_official(name));
    Ok(tensors)
}

/// Writes [`export`] to a safetensors file, whole.
///
/// # Errors
/// As [`crate::write_tensors`]; an export that fails is [`CommitError::NotCommitted`].
pub fn write(path: &Path, state: &StateDict, model: Model, dtype: DType) -> Result<(), CommitError> {
    write_export(path, export(state, model, dtype))
}

/// Reads a file in the official layout (safetensors, or PyTorch's zip form where the name ends in `.pth` or `.pt`)
/// into `model` of `state`.
///
/// # Errors
/// The file cannot be read, has none of the official names, or a tensor of another shape.
pub fn read(path: &Path, state: &StateDict, model: Model, scope: Scope) -> Result<Imported> {
    let wanted = |name: &str| name.starts_with("backbone.") || (scope == Scope::All && name.starts_with("head."));
    let named = |own: &str| Some(own.strip_prefix(prefix(model)).filter(|name| wanted(name))?.to_owned());
    fill(path, "CAPI", state, &read_any(path)?, named)
}

fn is_official(name: &str) -> bool {
    name.starts_with("backbone.") || name.starts_with("head.")
}
