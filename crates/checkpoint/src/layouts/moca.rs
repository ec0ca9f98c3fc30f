//! The official MOCA layout: the encoder alone (`cls_token`, `blocks.*`), or the whole training state (`encoder.*`,
//! `encoder_teacher.*`, `bow_extractor.*`, ...).
//!
//! A method's state has the official names but for queries, keys and values, which have matrices of their own there
//! (`attn.q.weight`, `attn.k.weight`, `attn.v.weight`) and lie one below the other in a file (`attn.qkv.weight`). What an
//! ablation has that the public code lacks (a second decoder, heads of other targets) keeps its names in a whole state.

use super::fused::{joined, split};
use super::{Imported, Model, fill, read_any, stripped, unfit, write_export};
use crate::{CommitError, Result};
use candle_core::DType;
use occlude_kernels::StateDict;
use std::path::Path;

/// Beginning of an encoder's names in a training state.
#[must_use]
pub fn prefix(model: Model) -> &'static str {
    match model {
        Model::Average => "encoder_teacher.",
        Model::Student => "encoder.",
    }
}

/// One encoder under its official names, in `dtype`: table of positions and last norm included, no head.
///
/// # Errors
/// The state has no such encoder, or a cast fails.
pub fn export(state: &StateDict, model: Model, dtype: DType) -> candle_core::Result<StateDict> {
    stripped(&joined(state)?, prefix(model), dtype)
}

/// The whole training state under its official names, in its own kinds of numbers.
///
/// # Errors
/// It is not the state of a MOCA.
pub fn export_all(state: &StateDict) -> candle_core::Result<StateDict> {
    let official = joined(state)?;
    for model in [Model::Average, Model::Student] {
        if !official.keys().any(|name| name.starts_with(prefix(model))) {
            candle_core::bail!("this state has no tensors named {}*", prefix(model));
        }
    }
    Ok(official)
}

/// Writes [`export`] to a safetensors file, whole.
///
/// # Errors
/// As [`crate::write_tensors`]; an export that fails is [`CommitError::NotCommitted`].
pub fn write(path: &Path, state: &StateDict, model: Model, dtype: DType) -> Result<(), CommitError> {
    write_export(path, export(state, model, dtype))
}

/// Writes [`export_all`] to a safetensors file, whole.
///
/// # Errors
/// As [`crate::write_tensors`]; an export that fails is [`CommitError::NotCommitted`].
pub fn write_all(path: &Path, state: &StateDict) -> Result<(), CommitError> {
    write_export(path, export_all(state))
}

/// Reads an encoder into `model` of `state`: that model's of a training state, or the only one of an exported file.
/// Files are safetensors, or PyTorch's zip form where the name ends in `.pth` or `.pt`: a dictionary of tensors, or one
/// that has it at `model` or `state_dict`.
///
/// # Errors
/// The file cannot be read, has no such encoder, or a tensor of another shape.
pub fn read(path: &Path, state: &StateDict, model: Model) -> Result<Imported> {
    let found = read_any(path)?;
    let theirs = prefix_in(&found, &[prefix(model)]);
    import(path, state, &found, |own| Some(format!("{theirs}{}", own.strip_prefix(prefix(model))?)))
}

/// Reads all there is into `state`, each tensor to its place. A file with one encoder fills both: with those weights
/// training begins.
///
/// # Errors
/// As [`read`].
pub fn read_all(path: &Path, state: &StateDict) -> Result<Imported> {
    let found = read_any(path)?;
    let (teacher, student) = (prefix(Model::Average), prefix(Model::Student));
    let places = [(teacher, prefix_in(&found, &[teacher, student])), (student, prefix_in(&found, &[student, teacher]))];
    let encoder =
        |own: &str| places.iter().find_map(|(ours, theirs)| Some(format!("{theirs}{}", own.strip_prefix(ours)?)));
    import(path, state, &found, |own| Some(encoder(own).unwrap_or_else(|| own.to_owned())))
}

/// The first of `prefixes` that names in a file begin with; nothing where none does.
fn prefix_in(found: &StateDict, prefixes: &[&'static str]) -> &'static str {
    let used = |prefix: &&&str| found.keys().any(|name| name.starts_with(**prefix));
    prefixes.iter().find(used).copied().unwrap_or_default()
}

fn import(
    path: &Path,
    state: &StateDict,
    found: &StateDict,
    named: impl Fn(&str) -> Option<String>,
) -> Result<Imported> {
    let official = joined(state).map_err(unfit(path))?;
    let Imported { state, missing, ignored } = fill(path, "MOCA", &official, found, named)?;
    Ok(Imported { state: split(&state).map_err(unfit(path))?, missing, ignored })
}
