//! The block in candle's graph.

use super::attend::{self, Attend};
use super::branch::Branch;
use super::feed::Feed;
use super::weights::BlockWeights;
use crate::cpu::{self, Real, Values, by_dtype};
use crate::heads::Sizes;
use crate::position::{Angles, Encode};
use crate::visibility::{Sight, Visibility};
use crate::{Error, Result, input, reference};
use candle_core::{CpuStorage, CustomOp3, Layout, Shape, Tensor};
use std::sync::{Mutex, PoisonError};

const OP: &str = "block";

/// What a block is told beside its weights.
#[derive(Clone, Debug)]
pub struct BlockOptions {
    /// Attention heads.
    pub heads: usize,
    /// Position encoding of queries and of keys; the images of a table are those the attention is computed for, or one
    /// for all.
    pub angles: Option<(Angles, Angles)>,
    /// Which keys a query sees; its images are those the attention is computed for.
    pub visibility: Visibility,
    /// The two residual branches: attention, MLP.
    pub branches: [Branch; 2],
    /// Keep nothing but the input, and compute the rest again in the backward pass: about a third more time, a fraction of
    /// the memory.
    pub recompute: bool,
}

impl BlockOptions {
    /// Plain attention with this many heads: no positions, everything visible, nothing dropped, activations kept.
    #[must_use]
    pub fn new(heads: usize) -> Self {
        let branches = [Branch::all(), Branch::all()];
        Self { heads, angles: None, visibility: Visibility::All, branches, recompute: false }
    }
}

/// A pre-norm transformer block: `x + attention(norm1(x))`, then `x + contract(gelu(expand(norm2(x))))`. Keys and values
/// come from `context` as it is, or without one from `norm1(x)`.
/// x: [batch, tokens, dim], context: [batch, others, width] -> [batch, tokens, dim]; f32 or f64.
///
/// The gradients of the weights come from [`crate::backward`]; candle's own `Tensor::backward` does not know them.
///
/// Source: pre-norm block, Xiong et al. (2020), table 1; cross-attention, CAPI, section on the predictor; a branch for
/// part of the batch is stochastic depth as its public code has it.
///
/// # Errors
/// Shapes that do not fit, unequal dtypes, a dtype that is not f32 or f64, or a weight that is neither a variable nor
/// untracked.
pub fn block(x: &Tensor, context: Option<&Tensor>, weights: &BlockWeights, options: BlockOptions) -> Result<Tensor> {
    let plan = Plan::new(x, context.map_or(Source::Own, Source::Context), weights, &options)?;
    if !cpu::on_cpu(x) {
        return reference::block(x, context, weights, options);
    }
    run(plan, x, context, weights, options)
}

/// The operator, after the checks.
pub(super) fn run(
    plan: Plan,
    x: &Tensor,
    context: Option<&Tensor>,
    weights: &BlockWeights,
    options: BlockOptions,
) -> Result<Tensor> {
    let sight = options.visibility.sight(plan.sizes.nq, plan.sizes.nk)?;
    let anchor = weights.anchor();
    // Where nothing is tracked candle drops the operator, and all that it keeps, at once.
    let keep = !options.recompute;
    let x = x.contiguous()?;
    let context = context.map_or_else(|| Tensor::zeros(0, x.dtype(), x.device()), Tensor::contiguous)?;
    let encode = options.angles.map(|(queries, keys)| (Encode { angles: queries }, Encode { angles: keys }));
    let (weights, branches) = (weights.clone(), options.branches);
    by_dtype!(OP, x.dtype(), T => {
        let op = Block::<T> { plan, weights, branches, sight, encode, keep, saved: Mutex::new(None) };
        Ok(x.apply_op3(&context, anchor, op)?)
    })
}

/// What keys and values are made from.
#[derive(Clone, Copy)]
pub(super) enum Source<'a> {
    /// The normed tokens.
    Own,
    /// So many leading normed tokens of each image.
    Leading(usize),
    /// Other tokens, as they are.
    Context(&'a Tensor),
}

/// Sizes of one call.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    /// Those of the attention: its batch is the images that it is computed for.
    sizes: Sizes,
    context: Option<usize>,
}

impl Plan {
    pub(super) fn new(x: &Tensor, source: Source<'_>, weights: &BlockWeights, options: &BlockOptions) -> Result<Self> {
        input::float(OP, x)?;
        let [batch, nq, dim] = *x.dims() else {
            return Err(Error::shape(OP, "x of shape [batch, tokens, dim]", x.dims()));
        };
        let heads = options.heads;
        if heads == 0 || !dim.is_multiple_of(heads) {
            return Err(Error::argument(OP, format!("{heads} heads do not divide the {dim} channels of x")));
        }
        let (nk, width) = match source {
            Source::Own => (nq, None),
            Source::Leading(nk) if nk <= nq => (nk, None),
            Source::Leading(nk) => {
                return Err(Error::argument(OP, format!("{nk} tokens with keys among {nq}: must be {nq} at most")));
            }
            Source::Context(context) => {
                input::same_float(OP, x, context)?;
                let [images, others, width] = *context.dims() else {
                    return Err(Error::shape(OP, "a context [batch, others, width]", context.dims()));
                };
                if images != batch {
                    return Err(Error::shape(OP, format!("a context of {batch} images"), context.dims()));
                }
                (others, Some(width))
            }
        };
        weights.check(OP, x, dim, width.unwrap_or(dim))?;
        let mut chosen = [batch; 2];
        for (branch, chosen) in options.branches.iter().zip(&mut chosen) {
            *chosen = branch.check(OP, batch)?;
        }
        let sizes = Sizes { batch: chosen[0], nq, nk, heads, size: dim / heads };
        options.visibility.check(sizes.batch, nq, nk)?;
        if let Some((queries, keys)) = &options.angles {
            check_angles("queries", queries, x, sizes, nq)?;
            check_angles("keys", keys, x, sizes, nk)?;
        }
        Ok(Self { sizes, context: width })
    }
}

fn check_angles(what: &str, angles: &Angles, x: &Tensor, sizes: Sizes, tokens: usize) -> Result<()> {
    input::same_float(OP, x, angles.cos())?;
    let dims = angles.cos().dims();
    if matches!(*dims, [images, n, size] if (images == sizes.batch || images == 1) && n == tokens && size == sizes.size)
    {
        return Ok(());
    }
    let expected = format!("angles of {what} [1 or {}, {tokens}, {}]", sizes.batch, sizes.size);
    Err(Error::shape(OP, expected, dims))
}

struct Block<T> {
    plan: Plan,
    weights: BlockWeights,
    branches: [Branch; 2],
    sight: Option<Sight>,
    encode: Option<(Encode, Encode)>,
    /// Whether activations are kept for the backward pass.
    keep: bool,
    saved: Mutex<Option<Saved<T>>>,
}

/// Activations of a forward pass.
struct Saved<T> {
    attention: attend::Saved<T>,
    middle: Vec<T>, // [batch, tokens, dim], between the branches
    hidden: Vec<T>, // [images, tokens, hidden], before the activation
}

impl<T: Real> Block<T> {
    fn attend(&self) -> Attend<'_> {
        Attend {
            weights: &self.weights,
            branch: &self.branches[0],
            sizes: self.plan.sizes,
            context: self.plan.context,
            sight: self.sight.as_ref(),
            encode: self.encode.as_ref(),
        }
    }

    fn feed(&self) -> Feed<'_> {
        let len = self.plan.sizes.nq * self.plan.sizes.dim();
        Feed { weights: &self.weights, branch: &self.branches[1], len }
    }

    fn forward(&self, x: &[T], context: Option<&[T]>) -> candle_core::Result<(Vec<T>, Saved<T>)> {
        let (middle, attention) = self.attend().forward(x, context)?;
        let (y, hidden) = self.feed().forward(&middle)?;
        Ok((y, Saved { attention, middle, hidden }))
    }

    fn backward(
        &self,
        x: &[T],
        context: Option<&[T]>,
        gradient: Vec<T>,
    ) -> candle_core::Result<(Vec<T>, Option<Vec<T>>)> {
        let held = self.saved.lock().unwrap_or_else(PoisonError::into_inner).take();
        // Nothing is held where it is to be computed again, and in a second pass over one graph.
        let Saved { attention, middle, hidden } = match held {
            Some(saved) => saved,
            None => self.forward(x, context)?.1,
        };
        let gradient = self.feed().backward(&middle, hidden, gradient)?;
        drop(middle);
        self.attend().backward(x, context, attention, gradient)
    }

    fn context<'a>(&self, context: &'a [T]) -> Option<&'a [T]> {
        self.plan.context.map(|_| context)
    }
}

impl<T: Real> CustomOp3 for Block<T> {
    fn name(&self) -> &'static str {
        OP
    }

    /// The third input is the weight that stands for all of them in the graph.
    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        context: &CpuStorage,
        context_layout: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let (x, context) = (cpu::slice::<T>(x, x_layout)?, cpu::slice::<T>(context, context_layout)?);
        let (y, saved) = self.forward(x, self.context(context))?;
        *self.saved.lock().unwrap_or_else(PoisonError::into_inner) = self.keep.then_some(saved);
        Ok((cpu::storage(y), x_layout.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        context: &Tensor,
        _: &Tensor,
        _: &Tensor,
        gradient: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let gradient = cpu::copied(&Values::<T>::of(&gradient.contiguous()?)?);
        let outside = Values::<T>::of(context)?;
        let (dx, outside) = self.backward(&Values::<T>::of(x)?, self.context(&outside), gradient)?;
        let dx = x.track_op().then(|| cpu::tensor(dx, x.shape())).transpose()?;
        let outside = outside.filter(|_| context.track_op()).map(|dc| cpu::tensor(dc, context.shape())).transpose()?;
        Ok((dx, outside, None))
    }
}
