//! A linear map into cross-entropy, without the scores in memory.
//!
//! The forward pass goes through the rows part by part: scores of a part, their loss and, where a gradient is wanted, what
//! it hands to the rows and to the weight. Nothing as large as all scores exists, for either pass.

use crate::cpu::{self, Matrix, Real, Values, by_dtype};
use crate::cross_entropy::{all_gradients, all_losses, summed};
use crate::{Error, Result, gather_rows, input, linear, soft_cross_entropy};
use candle_core::{CpuStorage, CustomOp2, Layout, Shape, Tensor};
use std::any::Any;
use std::sync::Mutex;

const OP: &str = "linear_cross_entropy";
/// Scores of a part: some MiB. The same for any number of threads.
const PART: usize = 1 << 20;

/// `soft_cross_entropy(x w^T, targets[rows], temperature)`: row `i` of `x` is compared with row `rows[i]` of the targets; with
/// `None` rows are in order. A scalar in the dtype of `x`; no gradient reaches the targets.
/// x: [n, d], w: [k, d], targets: [m, k]
///
/// # Errors
/// Shapes or dtypes that do not fit, no rows, no classes, a row beyond the targets, or a temperature that is not
/// positive.
pub fn linear_cross_entropy(
    x: &Tensor,
    w: &Tensor,
    targets: &Tensor,
    rows: Option<&[u32]>,
    temperature: f64,
) -> Result<Tensor> {
    check(x, w, targets, rows, temperature)?;
    if !cpu::on_cpu(x) {
        let targets = rows.map_or_else(|| Ok(targets.clone()), |rows| gather_rows(&targets.detach(), rows))?;
        return soft_cross_entropy(&linear(x, w, None)?, &targets, temperature);
    }
    let op = LinearCrossEntropy {
        targets: targets.detach().contiguous()?,
        rows: rows.map(<[u32]>::to_vec),
        temperature,
        wanted: [x.track_op(), w.track_op()],
        made: Mutex::new(None),
    };
    Ok(x.contiguous()?.apply_op2(&w.contiguous()?, op)?)
}

fn check(x: &Tensor, w: &Tensor, targets: &Tensor, rows: Option<&[u32]>, temperature: f64) -> Result<()> {
    input::same_float(OP, x, w)?;
    input::same_float(OP, x, targets)?;
    let &[n, d] = x.dims() else { return Err(Error::shape(OP, "x [n, d]", x.dims())) };
    let k = match *w.dims() {
        [k, inner] if inner == d && k > 0 => k,
        _ => return Err(Error::shape(OP, format!("w [k, {d}]"), w.dims())),
    };
    if n == 0 {
        return Err(Error::shape(OP, "at least one row", x.dims()));
    }
    let m = match *targets.dims() {
        [m, classes] if classes == k && (rows.is_some() || m == n) => m,
        _ => return Err(Error::shape(OP, format!("targets [.., {k}], a row for each of x"), targets.dims())),
    };
    if let Some(rows) = rows {
        if rows.len() != n {
            return Err(Error::argument(OP, format!("{} rows of targets for {n} rows", rows.len())));
        }
        if let Some(row) = rows.iter().find(|row| **row as usize >= m) {
            return Err(Error::argument(OP, format!("row {row} of {m} targets")));
        }
    }
    input::positive(OP, "temperature", temperature)
}

struct LinearCrossEntropy {
    targets: Tensor,
    rows: Option<Vec<u32>>,
    temperature: f64,
    /// Whether `x` and `w` want a gradient.
    wanted: [bool; 2],
    /// What the forward pass made of both, as `Made<T>`; the backward pass takes it.
    made: Mutex<Option<Box<dyn Any + Send>>>,
}

/// Gradients of the loss: [n, d] and [k, d]; empty where none is wanted.
struct Made<T> {
    x: Vec<T>,
    w: Vec<T>,
}

/// The sizes: x is [n, d], w is [k, d].
#[derive(Clone, Copy)]
struct Sizes {
    n: usize,
    d: usize,
    k: usize,
}

impl LinearCrossEntropy {
    /// The loss and the gradients that are wanted.
    fn run<T: Real>(&self, x: &[T], w: &[T], targets: &[T], Sizes { n, d, k }: Sizes) -> (f64, Made<T>) {
        let mut made = Made { x: Vec::new(), w: Vec::new() };
        if self.wanted[0] {
            made.x.reserve_exact(n * d);
        }
        if self.wanted[1] {
            made.w = vec![T::zero(); k * d];
        }
        let (part, mut loss, mut gathered) = ((PART / k).max(1), 0.0, Vec::new());
        let scale = 1.0 / (self.temperature * n as f64);
        for start in (0..n).step_by(part) {
            let count = part.min(n - start);
            let rows = Matrix::new(&x[start * d..(start + count) * d], count, d);
            let scores = cpu::product(rows, Matrix::new(w, k, d).t()); // [count, k]
            let truth: &[T] = match &self.rows {
                None => &targets[start * k..(start + count) * k],
                Some(list) => {
                    gathered.clear();
                    for row in &list[start..start + count] {
                        gathered.extend_from_slice(&targets[*row as usize * k..][..k]);
                    }
                    &gathered
                }
            };
            let stats = all_losses::<T>(&scores, truth, k, self.temperature);
            loss += summed(&stats);
            if self.wanted == [false; 2] {
                continue;
            }
            let slopes = all_gradients::<T>(&scores, truth, k, self.temperature, scale, &stats); // [count, k]
            let slopes = Matrix::new(&slopes, count, k);
            if self.wanted[0] {
                made.x.extend(cpu::product(slopes, Matrix::new(w, k, d)));
            }
            if self.wanted[1] {
                cpu::add_product(&mut made.w, slopes.t(), rows, None);
            }
        }
        (loss / n as f64, made)
    }
}

impl CustomOp2 for LinearCrossEntropy {
    fn name(&self) -> &'static str {
        OP
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        w: &CpuStorage,
        w_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let ((n, d), (k, _)) = (x_layout.shape().dims2()?, w_layout.shape().dims2()?);
        by_dtype!(OP, cpu::dtype(x), T => {
            let (x, w) = (cpu::slice::<T>(x, x_layout)?, cpu::slice::<T>(w, w_layout)?);
            let (loss, made) = self.run::<T>(x, w, &Values::<T>::of(&self.targets)?, Sizes { n, d, k });
            if let Ok(mut place) = self.made.lock() {
                *place = Some(Box::new(made));
            }
            Ok((cpu::storage(vec![T::of(loss)]), Shape::from(())))
        })
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        _loss: &Tensor,
        g: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        by_dtype!(OP, x.dtype(), T => {
            let made = self.made.lock().ok().and_then(|mut made| made.take());
            let made = match made.map(Box::<dyn Any + Send>::downcast::<Made<T>>) {
                Some(Ok(made)) => *made,
                // A second backward pass through the same graph: once more.
                _ => {
                    let ((n, d), k) = (x.dims2()?, w.dim(0)?);
                    let (x, w) = (Values::<T>::of(x)?, Values::<T>::of(w)?);
                    self.run::<T>(&x, &w, &Values::<T>::of(&self.targets)?, Sizes { n, d, k }).1
                }
            };
            let g = g.to_scalar::<T>()?;
            let scaled = |mut values: Vec<T>, shape: &Shape, wanted: bool| {
                cpu::for_chunks(&mut values, cpu::ELEMENTS, shape.elem_count(), |_, part| part.iter_mut().for_each(|v| *v *= g));
                wanted.then(|| cpu::tensor(values, shape)).transpose()
            };
            Ok((scaled(made.x, x.shape(), self.wanted[0])?, scaled(made.w, w.shape(), self.wanted[1])?))
        })
    }
}

/// [`linear_cross_entropy`] by candle's operators.
#[cfg(test)]
fn composed(x: &Tensor, w: &Tensor, targets: &Tensor, rows: &[u32], temperature: f64) -> Result<Tensor> {
    use crate::reference;
    let index = Tensor::new(rows, x.device())?;
    let targets = targets.detach().index_select(&index, 0)?;
    reference::soft_cross_entropy(&reference::linear(x, w, None)?, &targets, temperature)
}

#[cfg(test)]
mod tests {
    use super::{PART, composed, linear_cross_entropy};
    use crate::check::{check_large, check_op_with, output_and_gradients, same_for_any_threads, sample};
    use crate::{Precision, backward, reference};
    use candle_core::{DType, Tensor, Var};

    fn targets(rows: usize, k: usize) -> Tensor {
        (reference::softmax(&sample(9, (rows, k)).unwrap()).unwrap() * 0.8).unwrap()
    }

    #[test]
    fn agrees_with_its_reference_and_its_gradient() {
        for (n, d, k) in [(1, 1, 2), (3, 5, 7), (5, 16, 3), (2, 9, 33)] {
            let rows: Vec<u32> = (0..n as u32).map(|row| (row * 3 + 1) % 4).collect();
            for temperature in [0.3, 1.0] {
                check_op_with(
                    &[sample(1, (n, d)).unwrap(), sample(2, (k, d)).unwrap()],
                    &[targets(4, k)],
                    |v, t| linear_cross_entropy(&v[0], &v[1], &t[0], Some(&rows), temperature),
                    |v, t| composed(&v[0], &v[1], &t[0], &rows, temperature),
                )
                .unwrap();
            }
        }
    }

    #[test]
    fn many_parts_match_as_well() {
        let (k, n) = (PART / 64, 150);
        let (x, w, targets) = (sample(1, (n, 3)).unwrap(), sample(2, (k, 3)).unwrap(), targets(n, k));
        let rows: Vec<u32> = (0..n as u32).collect();
        check_large(
            &[x, w],
            |v| linear_cross_entropy(&v[0], &v[1], &targets.to_dtype(v[0].dtype())?, None, 0.5),
            |v| composed(&v[0], &v[1], &targets.to_dtype(v[0].dtype())?, &rows, 0.5),
        )
        .unwrap();
    }

    #[test]
    fn any_number_of_threads_gives_equal_bits() {
        let (x, w) = (sample(1, (301, 19)).unwrap(), sample(2, (67, 19)).unwrap());
        for dtype in [DType::F32, DType::F64] {
            let targets = targets(301, 67).to_dtype(dtype).unwrap();
            same_for_any_threads(|| {
                output_and_gradients(&[x.clone(), w.clone()], dtype, |v| {
                    linear_cross_entropy(&v[0], &v[1], &targets, None, 0.12)
                })
            })
            .unwrap();
        }
    }

    #[test]
    fn only_what_is_tracked_has_a_gradient_and_a_second_pass_gives_it_again() {
        let w = Var::from_tensor(&sample(2, (7, 3)).unwrap()).unwrap();
        let (x, targets) = (sample(1, (5, 3)).unwrap(), Var::from_tensor(&targets(5, 7)).unwrap());
        let loss = linear_cross_entropy(&x, &w, &targets, None, 1.0).unwrap();
        let (first, second) = (backward(&loss).unwrap(), backward(&loss).unwrap());
        assert_eq!(first.len(), 1);
        let values = |of: &crate::Gradients| of.get(&w).unwrap().to_vec2::<f64>().unwrap();
        assert_eq!(values(&first), values(&second));
        assert!(!linear_cross_entropy(&x, &w.as_detached_tensor(), &targets, None, 1.0).unwrap().track_op());
    }

    #[test]
    fn every_precision_is_near() {
        let [x, w] = [(40, 64), (33, 64)].map(|shape| sample(1, shape).unwrap().to_dtype(DType::F32).unwrap());
        let targets = targets(40, 33).to_dtype(DType::F32).unwrap();
        let loss = || linear_cross_entropy(&x, &w, &targets, None, 1.0).unwrap().to_scalar::<f32>().unwrap();
        let exact = loss();
        for precision in Precision::ALL {
            let _scope = precision.scope();
            assert!((loss() - exact).abs() < 2e-3 * exact, "{precision}");
        }
    }

    #[test]
    fn what_does_not_fit_is_refused_and_nan_is_not_hidden() {
        let (x, w, t) = (sample(1, (3, 4)).unwrap(), sample(2, (5, 4)).unwrap(), targets(2, 5));
        let refused = |x: &Tensor, w: &Tensor, t: &Tensor, rows: Option<&[u32]>, temperature: f64| {
            linear_cross_entropy(x, w, t, rows, temperature).unwrap_err().to_string()
        };
        assert!(refused(&x, &w, &t, None, 1.0).contains("a row for each of x"));
        assert!(refused(&x, &w, &t, Some(&[0, 1, 2]), 1.0).contains("row 2 of 2 targets"));
        assert!(refused(&x, &w, &t, Some(&[0]), 1.0).contains("1 rows of targets for 3 rows"));
        assert!(refused(&x, &x, &t, Some(&[0, 1, 1]), 1.0).contains("targets [.., 3]"));
        assert!(refused(&x, &t, &t, Some(&[0, 1, 1]), 1.0).contains("w [k, 4]"));
        assert!(refused(&x, &w, &t, Some(&[0, 1, 1]), 0.0).contains("temperature"));
        let none = Tensor::zeros((0, 4), DType::F64, x.device()).unwrap();
        assert!(refused(&none, &w, &t, Some(&[]), 1.0).contains("at least one row"));
        let bad = (&x * f64::NAN).unwrap();
        let loss = linear_cross_entropy(&bad, &w, &t, Some(&[0, 1, 1]), 1.0).unwrap();
        assert!(loss.to_scalar::<f64>().unwrap().is_nan());
    }
}
