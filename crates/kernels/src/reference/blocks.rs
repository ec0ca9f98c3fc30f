//! Plain forms of whole blocks, operator by operator.

use super::dense::{attention, gelu, linear, position_encode};
use super::{gather_rows, layer_norm, rms_norm, scatter_add_rows};
use crate::Result;
use crate::block::{Affine, BlockOptions, BlockWeights, Branch, NormWeights};
use crate::position::Angles;
use crate::visibility::Visibility;
use candle_core::Tensor;

/// [`crate::block`] operator by operator.
///
/// # Errors
/// Shapes that do not fit.
pub fn block(x: &Tensor, context: Option<&Tensor>, weights: &BlockWeights, options: BlockOptions) -> Result<Tensor> {
    let BlockOptions { heads, angles, visibility, branches, .. } = options;
    let angles = angles.as_ref();
    let x = branch(x, &branches[0], |x, images| {
        let tokens = norm(&weights.norm1, x)?;
        let source = match context {
            Some(context) => of_images(context, images)?,
            None => tokens.clone(),
        };
        let encoders = (angles.map(|both| &both.0), angles.map(|both| &both.1));
        attend(&tokens, &source, weights, heads, encoders, &visibility)
    })?;
    branch(&x, &branches[1], |x, _| feed(x, weights))
}

/// [`crate::two_stream_block`] operator by operator, one stream after the other.
///
/// # Errors
/// Shapes that do not fit.
pub fn two_stream_block(
    content: &Tensor,
    query: &Tensor,
    weights: &BlockWeights,
    options: BlockOptions,
) -> Result<(Tensor, Tensor)> {
    let (nk, nq) = (content.dim(1)?, query.dim(1)?);
    let BlockOptions { heads, angles, visibility, branches, .. } = options;
    let images = branches[0].images.as_ref().map_or(content.dim(0)?, Vec::len);
    let pairs = visibility.pairs(images, nk + nq, nk)?;
    let stream = |x: &Tensor, start: usize| -> Result<Tensor> {
        let tokens = x.dim(1)?;
        let visible = match &pairs {
            None => Visibility::All,
            Some((visible, images)) => {
                let all = Tensor::from_vec(visible.clone(), (*images, nk + nq, nk), x.device())?;
                let own = all.narrow(1, start, tokens)?.contiguous()?;
                Visibility::Mask(if *images == 1 { own.squeeze(0)? } else { own })
            }
        };
        let own = angles.as_ref().map(|both| both.0.tokens(start, tokens)).transpose()?;
        let x = branch(x, &branches[0], |x, images| {
            let source = norm(&weights.norm1, &of_images(content, images)?)?;
            let encoders = (own.as_ref(), angles.as_ref().map(|both| &both.1));
            attend(&norm(&weights.norm1, x)?, &source, weights, heads, encoders, &visible)
        })?;
        branch(&x, &branches[1], |x, _| feed(x, weights))
    };
    Ok((stream(content, 0)?, stream(query, nk)?))
}

/// Attention of normed tokens to a source, projected.
fn attend(
    tokens: &Tensor,
    source: &Tensor,
    weights: &BlockWeights,
    heads: usize,
    angles: (Option<&Angles>, Option<&Angles>),
    visibility: &Visibility,
) -> Result<Tensor> {
    let encode = |x: Tensor, angles: Option<&Angles>| match angles {
        Some(angles) => position_encode(&x, angles, heads),
        None => Ok(x),
    };
    let queries = encode(map(&weights.queries, tokens)?, angles.0)?;
    let keys = encode(map(&weights.keys, source)?, angles.1)?;
    let values = map(&weights.values, source)?;
    map(&weights.projection, &attention(&queries, &keys, &values, heads, visibility)?)
}

fn feed(x: &Tensor, weights: &BlockWeights) -> Result<Tensor> {
    map(&weights.contract, &gelu(&map(&weights.expand, &norm(&weights.norm2, x)?)?)?)
}

fn map(map: &Affine, x: &Tensor) -> Result<Tensor> {
    linear(x, &map.weight, map.bias.as_ref())
}

fn norm(norm: &NormWeights, x: &Tensor) -> Result<Tensor> {
    if norm.centred {
        return layer_norm(x, Some(&norm.weight), norm.bias.as_ref(), norm.eps);
    }
    let y = rms_norm(x, Some(&norm.weight), norm.eps)?;
    norm.bias.as_ref().map_or_else(|| Ok(y.clone()), |bias| Ok(y.broadcast_add(bias)?))
}

fn of_images(x: &Tensor, images: Option<&[u32]>) -> Result<Tensor> {
    images.map_or_else(|| Ok(x.clone()), |images| gather_rows(x, images))
}

/// `x + scale * inner(x)` at the images of a branch.
fn branch(x: &Tensor, branch: &Branch, inner: impl Fn(&Tensor, Option<&[u32]>) -> Result<Tensor>) -> Result<Tensor> {
    match &branch.images {
        None => Ok((x + inner(x, None)?)?),
        Some(images) => {
            let some = inner(&gather_rows(x, images)?, Some(images))?;
            scatter_add_rows(x, images, &some, branch.scale)
        }
    }
}
