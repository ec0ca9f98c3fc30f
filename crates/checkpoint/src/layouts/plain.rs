//! The layout of methods with one network (RandSAC, MAE): the encoder alone (`patch_embed.*`, `blocks.*`, `norm.*`), or the
//! decoder too (`decoder_blocks.*`, `skip.weight`, ...).
//!
//! Names are those of the usual ViT and of the RandSAC specification. There is no public RandSAC checkpoint; those of
//! masked autoencoders have these names.

use super::fused::{joined, split};
use super::{Imported, fill, read_any, unfit, write_export};
use crate::{CommitError, Result};
use candle_core::DType;
use occlude_kernels::StateDict;
use std::path::Path;

/// What the names of a decoder, which is dropped after training, begin with.
const DECODER: [&str; 3] = ["decoder_", "mask_token", "skip."];

/// The encoder under its official names, in `dtype`: table of positions and last norm included.
///
/// # Errors
/// The state has no encoder, or a cast fails.
pub fn export(state: &StateDict, dtype: DType) -> candle_core::Result<StateDict> {
    let cast = |(name, tensor): (String, candle_core::Tensor)| Ok((name, tensor.to_dtype(dtype)?));
    export_all(state)?.into_iter().filter(|(name, _)| !is_decoder(name)).map(cast).collect()
}

/// Encoder and decoder under their official names, in their own kind of numbers.
///
/// # Errors
/// The state has no encoder.
pub fn export_all(state: &StateDict) -> candle_core::Result<StateDict> {
    let official = joined(state)?;
    if !official.contains_key("patch_embed.proj.weight") {
        candle_core::bail!("this state has no tensor named patch_embed.proj.weight");
    }
    Ok(official)
}

/// Writes [`export`] to a safetensors file, whole.
///
/// # Errors
/// As [`crate::write_tensors`]; an export that fails is [`CommitError::NotCommitted`].
pub fn write(path: &Path, state: &StateDict, dtype: DType) -> Result<(), CommitError> {
    write_export(path, export(state, dtype))
}

/// Writes [`export_all`] to a safetensors file, whole.
///
/// # Errors
/// As [`crate::write_tensors`]; an export that fails is [`CommitError::NotCommitted`].
pub fn write_all(path: &Path, state: &StateDict) -> Result<(), CommitError> {
    write_export(path, export_all(state))
}

/// Reads all there is into `state`. A file with an encoder alone leaves the decoder as it was.
///
/// # Errors
/// The file cannot be read, has no such encoder, or a tensor of another shape.
pub fn read(path: &Path, state: &StateDict) -> Result<Imported> {
    let found = read_any(path)?;
    let official = joined(state).map_err(unfit(path))?;
    let Imported { state, missing, ignored } =
        fill(path, "RandSAC or MAE", &official, &found, |own| Some(own.to_owned()))?;
    Ok(Imported { state: split(&state).map_err(unfit(path))?, missing, ignored })
}

fn is_decoder(name: &str) -> bool {
    DECODER.iter().any(|prefix| name.starts_with(prefix))
}
