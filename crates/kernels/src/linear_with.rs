//! The linear map together with what usually follows it: activation, residual, stochastic depth.

use crate::block::{Branch, fits};
use crate::cpu::{self, Matrix, Real, Values, by_dtype};
use crate::finish::{Activation, Finished, Finishing, Onto};
use crate::gelu::{self, CHUNK, COST};
use crate::gradients::collect;
use crate::linear::with_last;
use crate::{Error, Result, input, reference};
use candle_core::{CpuStorage, CustomOp3, D, Layout, Shape, Tensor};
use std::borrow::Cow;
use std::sync::{Mutex, PoisonError};

const OP: &str = "linear_with";

/// What follows a linear map. The default is nothing.
#[derive(Clone, Debug, Default)]
pub struct LinearOptions<'a> {
    /// What every element goes through.
    pub activation: Option<Activation>,
    /// [batch, .., out]: what the result is added to.
    pub residual: Option<&'a Tensor>,
    /// The images of the residual that x has rows for, and the factor of what is added to them. The others pass unchanged.
    pub branch: Branch,
}

/// `residual + scale * act(x w^T + b)`, in one pass over the result.
///
/// x: `[.., in]`, w: `[out, in]`, b: `[out]` -> `[.., out]`; f32 or f64. With a residual [batch, .., out], x is
/// [images, .., in] with the images of the branch in its order, and the result has the shape of the residual.
///
/// The map before its activation is kept for the backward pass and freed there: to make it again would cost the product
/// once more. With a bias and a residual that both are trained, candle's graph has no room for the bias: its gradient
/// comes from [`crate::backward`] alone.
///
/// Source: stochastic depth for part of the batch, as public code of pre-norm transformers has it; see [`crate::block`].
///
/// # Errors
/// Shapes that do not fit, unequal dtypes, a dtype that is not f32 or f64, a branch without a residual, an image that is
/// not there or chosen twice, a scale without chosen images, or, beside a tracked residual, a bias that is computed from
/// other tensors.
pub fn linear_with(x: &Tensor, w: &Tensor, b: Option<&Tensor>, options: &LinearOptions<'_>) -> Result<Tensor> {
    check(x, w, b, options)?;
    if !cpu::on_cpu(x) {
        return reference::linear_with(x, w, b, options);
    }
    let (x, w) = (x.contiguous()?, w.contiguous()?);
    let whole = |t: Option<&Tensor>| t.map(Tensor::contiguous).transpose();
    let residual = whole(options.residual)?;
    let tracked = |t: Option<&Tensor>| t.is_some_and(Tensor::track_op);
    // The third place in the graph; what is left over is held by the operator.
    let third = match (tracked(residual.as_ref()), b) {
        (false, Some(_)) => Third::Bias,
        (_, None) if residual.is_none() => Third::Nothing,
        _ => Third::Residual,
    };
    // Beside a tracked residual the bias is held as it is, without gaps: its gradient is known by its identity.
    let bias = whole(b)?;
    let (third_input, bias, residual) = match (third, bias, residual) {
        (Third::Residual, bias, Some(residual)) => (residual, bias, None),
        (Third::Bias, Some(bias), residual) => (bias, None, residual),
        (_, bias, residual) => (Tensor::zeros(0, x.dtype(), x.device())?, bias, residual),
    };
    let keep = options.activation.is_some() && [&x, &w, &third_input].iter().any(|t| t.track_op());
    let (activation, branch) = (options.activation, options.branch.clone());
    let sizes = Sizes::of(&x, &w)?;
    by_dtype!(OP, x.dtype(), T => {
        let op = LinearWith::<T> { sizes, activation, branch, third, bias, residual, keep, before: Mutex::new(None) };
        Ok(x.apply_op3(&w, &third_input, op)?)
    })
}

fn check(x: &Tensor, w: &Tensor, b: Option<&Tensor>, options: &LinearOptions<'_>) -> Result<()> {
    input::same_float(OP, x, w)?;
    let [out, inner] = *w.dims() else { return Err(Error::shape(OP, "a weight [out, in]", w.dims())) };
    if x.rank() == 0 || x.dim(D::Minus1)? != inner {
        return Err(Error::shape(OP, format!("x of shape [.., {inner}]"), x.dims()));
    }
    if let Some(b) = b {
        input::same_float(OP, x, b)?;
        input::shape(OP, "a bias", b, &[out])?;
    }
    let Some(residual) = options.residual else {
        if options.branch.images.is_some() || options.branch.scale != 1.0 {
            return Err(Error::argument(OP, "a branch without a residual: there is nothing to pass unchanged"));
        }
        return Ok(());
    };
    input::same_float(OP, x, residual)?;
    let (Some(batch), [images, _, ..]) = (residual.dims().first(), x.dims()) else {
        return Err(Error::shape(OP, "x [images, .., in] beside a residual [batch, .., out]", x.dims()));
    };
    if options.branch.check(OP, *batch)? != *images {
        return Err(Error::argument(OP, format!("x has {images} images: must be as many as the branch has")));
    }
    let mut expected = with_last(x.shape(), out).into_dims();
    expected[0] = *batch;
    input::shape(OP, "a residual", residual, &expected)?;
    match b {
        Some(b) if residual.track_op() => fits(OP, "the bias", x, b, &[out]),
        _ => Ok(()),
    }
}

/// What stands third in candle's graph, which has room for three.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Third {
    Nothing,
    Bias,
    Residual,
}

/// Sizes of one call: x is [rows, inner], w is [out, inner], an image of the residual has `len` elements.
#[derive(Clone, Copy)]
struct Sizes {
    rows: usize,
    inner: usize,
    out: usize,
    len: usize,
}

impl Sizes {
    fn of(x: &Tensor, w: &Tensor) -> candle_core::Result<Self> {
        let (out, inner) = w.dims2()?;
        let leading = &x.dims()[..x.rank().saturating_sub(1)];
        let of_image: usize = leading.iter().skip(1).product();
        Ok(Self { rows: leading.iter().product(), inner, out, len: of_image * out })
    }
}

struct LinearWith<T> {
    sizes: Sizes,
    activation: Option<Activation>,
    branch: Branch,
    third: Third,
    /// Held here where they do not stand in the graph.
    bias: Option<Tensor>,
    residual: Option<Tensor>,
    /// Whether the map before its activation is kept for the backward pass.
    keep: bool,
    before: Mutex<Option<Vec<T>>>,
}

impl<T: Real> LinearWith<T> {
    fn forward(&self, x: &[T], w: &[T], third: &[T], keep: bool) -> Result<Finished<T>> {
        let bias = self.bias.as_ref().map(Values::<T>::of).transpose()?;
        let residual = self.residual.as_ref().map(Values::<T>::of).transpose()?;
        let (bias, residual) = match self.third {
            Third::Nothing => (bias.as_deref(), residual.as_deref()),
            Third::Bias => (Some(third), residual.as_deref()),
            Third::Residual => (bias.as_deref(), Some(third)),
        };
        let Sizes { rows, inner, out, len } = self.sizes;
        let onto = residual.map(|residual| Onto { residual, branch: &self.branch, len });
        let finishing = Finishing { bias, activation: self.activation, keep, onto };
        Ok(finishing.product(Matrix::new(x, rows, inner), Matrix::new(w, out, inner).t(), None))
    }

    /// The gradient of `x w^T + b` from that of the result.
    fn slopes<'a>(&self, x: &[T], w: &[T], third: &[T], gradient: &'a [T]) -> Result<Cow<'a, [T]>> {
        let outward = self.branch.chosen(gradient, self.sizes.len, self.branch.scale); // [rows, out]
        if self.activation.is_none() {
            return Ok(outward);
        }
        let held = self.before.lock().unwrap_or_else(PoisonError::into_inner).take();
        // Nothing is held in a second pass over one graph.
        let mut before = match held {
            Some(before) => before,
            None => self.forward(x, w, third, true)?.before,
        };
        let work = COST * before.len();
        cpu::for_chunks(&mut before, CHUNK, work, |i, before| {
            gelu::pull(before, &outward[i * CHUNK..][..before.len()]);
        });
        Ok(Cow::Owned(before))
    }
}

impl<T: Real> CustomOp3 for LinearWith<T> {
    fn name(&self) -> &'static str {
        OP
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        w: &CpuStorage,
        w_layout: &Layout,
        third: &CpuStorage,
        third_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let third = cpu::slice::<T>(third, third_layout)?;
        let done = self.forward(cpu::slice(x, x_layout)?, cpu::slice(w, w_layout)?, third, self.keep)?;
        *self.before.lock().unwrap_or_else(PoisonError::into_inner) = self.keep.then_some(done.before);
        let shape = match (self.third, &self.residual) {
            (Third::Residual, _) => third_layout.shape().clone(),
            (_, Some(residual)) => residual.shape().clone(),
            (_, None) => with_last(x_layout.shape(), self.sizes.out),
        };
        Ok((cpu::storage(done.y), shape))
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        third: &Tensor,
        _: &Tensor,
        gradient: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let gradient = gradient.contiguous()?;
        let Sizes { rows, inner, out, .. } = self.sizes;
        let (left, right) = (Values::<T>::of(x)?, Values::<T>::of(w)?);
        let outward = Values::<T>::of(&gradient)?;
        let slopes = self.slopes(&left, &right, &Values::<T>::of(third)?, &outward)?;
        let dy = Matrix::new(&slopes, rows, out);
        let dx = || cpu::tensor(cpu::product(dy, Matrix::new(&right, out, inner)), x.shape());
        let dw = || cpu::tensor(cpu::product(dy.t(), Matrix::new(&left, rows, inner)), w.shape());
        let db = || cpu::column_sums(&slopes, out);
        let third = match self.third {
            _ if !third.track_op() => None,
            Third::Nothing => None,
            Third::Bias => Some(cpu::tensor(db(), out)?),
            Third::Residual => Some(gradient.clone()),
        };
        if let Some(bias) = &self.bias {
            collect(bias, |sum: &mut [T]| crate::simd::add_assign(sum, &db()))?;
        }
        Ok((x.track_op().then(dx).transpose()?, w.track_op().then(dw).transpose()?, third))
    }
}

#[cfg(test)]
#[path = "linear_with_tests.rs"]
mod tests;
