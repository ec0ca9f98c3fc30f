//! The block on two streams that share its weights: one reads itself, the other reads the first.
//!
//! Norms, residuals, projections and MLP know single tokens only, so both streams lie behind one another in each image and
//! run through [`block`](super::block) together; keys and values are made from the leading tokens alone.

use super::operator::{BlockOptions, Plan, Source, run};
use super::weights::BlockWeights;
use crate::{Error, Result, cpu, input, reference};
use candle_core::Tensor;

const OP: &str = "two_stream_block";

/// A pre-norm transformer block on two streams with the same weights. With `a = norm1(content)` and `b = norm1(query)`,
/// `content + attention(q: a, kv: a)` and `query + attention(q: b, kv: a)`; then each stream plus
/// `contract(gelu(expand(norm2(.))))`. content: [batch, nk, dim], query: [batch, nq, dim] -> the same shapes; f32 or f64.
///
/// The options speak of both streams at once, the queries of the content first: `visibility` of nk + nq queries over nk
/// keys, `angles` of nk + nq queries and of nk keys, `branches` of images, whose two streams are kept or dropped together.
/// [`Visibility`](crate::Visibility) lists the masks of MaPeT and RandSAC in this form.
///
/// Layers in a row: [`joined_stream_block`] saves putting the streams together and taking them apart between layers. In
/// the last layer, where only the query stream is read on, `block(query, Some(norm1(content)), ..)` is the same and leaves
/// the rest out.
///
/// The gradients of the weights come from [`crate::backward`], as those of [`crate::block`].
///
/// Source: two-stream attention of XLNet, Yang et al. (2019), section 2.3, as RandSAC and MaPeT have it.
///
/// # Errors
/// As [`crate::block`], or streams of other batches or widths.
pub fn two_stream_block(
    content: &Tensor,
    query: &Tensor,
    weights: &BlockWeights,
    options: BlockOptions,
) -> Result<(Tensor, Tensor)> {
    input::same_float(OP, content, query)?;
    let [batch, nk, dim] = *content.dims() else {
        return Err(Error::shape(OP, "content of shape [batch, tokens, dim]", content.dims()));
    };
    match *query.dims() {
        [images, _, width] if images == batch && width == dim => {}
        _ => return Err(Error::shape(OP, format!("a query stream [{batch}, tokens, {dim}]"), query.dims())),
    }
    let both = Tensor::cat(&[content.contiguous()?, query.contiguous()?], 1)?;
    let both = joined_stream_block(&both, nk, weights, options)?;
    // A view of an empty batch must not start behind its end: candle could not read it.
    let start = if both.elem_count() == 0 { 0 } else { nk };
    Ok((both.narrow(1, 0, nk)?, both.narrow(1, start, query.dim(1)?)?))
}

/// [`two_stream_block`] on streams that lie behind one another in each image, `nk` tokens of content first.
/// x: [batch, nk + nq, dim] -> the same shape.
///
/// # Errors
/// As [`crate::block`], or more than all tokens as content.
pub fn joined_stream_block(x: &Tensor, nk: usize, weights: &BlockWeights, options: BlockOptions) -> Result<Tensor> {
    let plan = Plan::new(x, Source::Leading(nk), weights, &options)?;
    if !cpu::on_cpu(x) {
        let (content, query) = (x.narrow(1, 0, nk)?, x.narrow(1, nk, x.dim(1)? - nk)?);
        let (content, query) = reference::two_stream_block(&content, &query, weights, options)?;
        return Ok(Tensor::cat(&[content, query], 1)?);
    }
    run(plan, x, None, weights, options)
}
