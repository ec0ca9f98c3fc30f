//! Training losses.
//!
//! Every loss says how it is reduced (so far each is a mean); every one is a scalar in the dtype of the prediction. No
//! gradient reaches a target.
//! Sources: CAPI, losses and ablations; MOCA, objectives and ablation of the local target.
//!
//! Not here: where targets come from (`tokenizers`), models, temperatures as settings (`methods`).
//!
//! ```
//! use candle_core::{Device, Tensor};
//! use occlude_losses::smooth_l1;
//! let (guess, target) = (Tensor::new(&[0.5_f64, 3.0], &Device::Cpu)?, Tensor::new(&[0.0_f64, 0.0], &Device::Cpu)?);
//! assert_eq!(smooth_l1(&guess, &target, 1.0)?.to_scalar::<f64>()?, (0.125 + 2.5) / 2.0);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use candle_core::{D, Tensor};
use occlude_kernels::{Error, Result, l2_normalize};

pub use occlude_kernels::mean_row_entropy;

/// `-sum_k t_k * log_softmax(l / temperature)_k`, the mean over rows; rows are added in f64.
/// logits and targets: [rows, k]
///
/// # Errors
/// Shapes or dtypes that differ, or a temperature that is not positive.
pub fn soft_cross_entropy(logits: &Tensor, targets: &Tensor, temperature: f64) -> Result<Tensor> {
    occlude_kernels::soft_cross_entropy(logits, &targets.detach(), temperature)
}

/// `sum_k t_k * (log t_k - log_softmax(l / temperature)_k)` with `0 log 0 = 0`, the mean over rows: the divergence of the
/// prediction from its target, which is [`soft_cross_entropy`] less the entropy of the targets. Same gradient, but zero
/// where the prediction is right.  logits and targets: [rows, k]
///
/// # Errors
/// As [`soft_cross_entropy`].
pub fn kl_divergence(logits: &Tensor, targets: &Tensor, temperature: f64) -> Result<Tensor> {
    let cross = soft_cross_entropy(logits, targets, temperature)?;
    Ok((cross - mean_row_entropy(targets)?)?)
}

/// The smallest norm that [`cosine_distance`] divides a row by.
const NORM_FLOOR: f64 = 1e-5;

/// `1 - cosine(prediction, target)`, the mean over rows.  prediction and target: [rows, dim]
///
/// # Errors
/// Shapes or dtypes that differ, another rank, no rows, or a dtype that is not f32 or f64.
pub fn cosine_distance(prediction: &Tensor, target: &Tensor) -> Result<Tensor> {
    let op = "cosine_distance";
    let &[rows, _] = prediction.dims() else { return Err(Error::shape(op, "rows [rows, dim]", prediction.dims())) };
    if rows == 0 {
        return Err(Error::shape(op, "at least one row", prediction.dims()));
    }
    if target.dims() != prediction.dims() {
        return Err(Error::shape(op, format!("a target of shape {:?}", prediction.dims()), target.dims()));
    }
    let unit = |x: &Tensor| l2_normalize(x, NORM_FLOOR);
    let cosines = (unit(prediction)? * unit(&target.detach())?)?.sum(D::Minus1)?; // [rows]
    Ok((1.0 - cosines.mean_all()?)?)
}

/// Smooth L1 (Huber over `beta`), the mean over elements: `d^2 / (2 beta)` where `|d| < beta`, else `|d| - beta / 2`.
/// prediction and target: same shape
///
/// # Errors
/// Shapes that differ, no elements, or a `beta` that is not positive.
pub fn smooth_l1(prediction: &Tensor, target: &Tensor, beta: f64) -> Result<Tensor> {
    if prediction.dims() != target.dims() || prediction.elem_count() == 0 {
        return Err(Error::shape("smooth_l1", format!("a target of shape {:?}", prediction.dims()), target.dims()));
    }
    let holds = beta > 0.0 && beta.is_finite();
    if !holds {
        return Err(Error::argument("smooth_l1", format!("beta {beta}: must be positive")));
    }
    let distance = (prediction - target.detach())?.abs()?;
    // With m = min(|d|, beta) held fixed, m (|d| - m / 2) / beta has the value and the slope of both branches.
    let capped = distance.detach().minimum(beta)?;
    Ok(((&capped * (distance - (&capped * 0.5)?)?)? * (1.0 / beta))?.mean_all()?)
}

#[cfg(test)]
mod tests {
    use super::{cosine_distance, kl_divergence, smooth_l1, soft_cross_entropy};
    use candle_core::{Device, Tensor, Var};
    use occlude_kernels::check::{check_op_with, sample};
    use occlude_kernels::{backward, softmax};

    fn values(data: &[f64]) -> Tensor {
        Tensor::from_slice(data, (1, data.len()), &Device::Cpu).unwrap()
    }

    #[test]
    fn smooth_l1_has_both_branches_and_their_slopes() {
        let x = Var::from_tensor(&values(&[0.5, -0.25, 3.0, -2.0, 1.0])).unwrap();
        let zero = values(&[0.0; 5]);
        let loss = smooth_l1(&x, &zero, 1.0).unwrap();
        let expected = 0.125 + 0.03125 + 2.5 + 1.5 + 0.5;
        assert!((loss.to_scalar::<f64>().unwrap() * 5.0 - expected).abs() < 1e-12);
        let gradients = backward(&loss).unwrap();
        let slopes: Vec<f64> = gradients.get(&x).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        for (slope, expected) in slopes.into_iter().zip([0.5, -0.25, 1.0, -1.0, 1.0]) {
            assert!((slope * 5.0 - expected).abs() < 1e-12, "{slope}");
        }
    }

    #[test]
    fn smooth_l1_slopes_match_central_differences() {
        let (data, target) = ([0.7, -1.7, 0.2], values(&[0.4, 0.1, 0.15]));
        let loss = |data: &[f64]| {
            let x = values(data);
            smooth_l1(&x, &target, 0.5).unwrap().to_scalar::<f64>().unwrap()
        };
        let x = Var::from_tensor(&values(&data)).unwrap();
        let gradients = backward(&smooth_l1(&x, &target, 0.5).unwrap()).unwrap();
        let slopes: Vec<f64> = gradients.get(&x).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        for at in 0..data.len() {
            let (mut up, mut down) = (data, data);
            up[at] += 1e-6;
            down[at] -= 1e-6;
            assert!(((loss(&up) - loss(&down)) / 2e-6 - slopes[at]).abs() < 1e-8);
        }
    }

    #[test]
    fn cross_entropy_is_the_mean_over_rows_and_leaves_targets_alone() {
        let logits = Tensor::from_slice(&[0.1_f64, 0.4, -0.3, 0.0, 1.0, 2.0], (2, 3), &Device::Cpu).unwrap();
        let targets = Tensor::from_slice(&[0.2_f64, 0.3, 0.5, 1.0, 0.0, 0.0], (2, 3), &Device::Cpu).unwrap();
        let (logits, targets) = (Var::from_tensor(&logits).unwrap(), Var::from_tensor(&targets).unwrap());
        let loss = soft_cross_entropy(&logits, &targets, 0.5).unwrap();
        let log_sum = |row: [f64; 3]| row.iter().map(|l| (l / 0.5).exp()).sum::<f64>().ln();
        let first = log_sum([0.1, 0.4, -0.3]) - (0.2 * 0.1 + 0.3 * 0.4 - 0.5 * 0.3) / 0.5;
        let expected = (first + log_sum([0.0, 1.0, 2.0])) / 2.0;
        assert!((loss.to_scalar::<f64>().unwrap() - expected).abs() < 1e-12);
        let gradients = backward(&loss).unwrap();
        assert!(gradients.get(&logits).is_some() && gradients.get(&targets).is_none());
    }

    #[test]
    fn the_divergence_is_zero_where_the_prediction_is_right() {
        let targets = softmax(&sample(1, (4, 5)).unwrap()).unwrap();
        let logits = (targets.log().unwrap() / 3.0).unwrap();
        let right = kl_divergence(&logits, &targets, 1.0 / 3.0).unwrap().to_scalar::<f64>().unwrap();
        assert!(right.abs() < 1e-12, "{right}");
        // By hand, with a target of zero: 0.25 ln(0.25 / p) + 0.75 ln(0.75 / q), p = q = 1/3.
        let (flat, target) = (values(&[0.0; 3]), values(&[0.25, 0.75, 0.0]));
        let expected = 0.25 * 0.75_f64.ln() + 0.75 * 2.25_f64.ln();
        assert!((kl_divergence(&flat, &target, 1.0).unwrap().to_scalar::<f64>().unwrap() - expected).abs() < 1e-12);
        let x = Var::from_tensor(&sample(2, (4, 5)).unwrap()).unwrap();
        let slopes = |loss: &Tensor| backward(loss).unwrap().get(&x).unwrap().to_vec2::<f64>().unwrap();
        let divergence = slopes(&kl_divergence(&x, &targets, 0.5).unwrap());
        assert_eq!(divergence, slopes(&soft_cross_entropy(&x, &targets, 0.5).unwrap()));
        let bad = values(&[f64::NAN, 0.0, 1.0]);
        assert!(kl_divergence(&flat, &bad, 1.0).unwrap().to_scalar::<f64>().unwrap().is_nan());
    }

    #[test]
    fn cosines_agree_with_their_formula_and_its_gradient() {
        let plain = |a: &Tensor, b: &Tensor| -> candle_core::Result<Tensor> {
            let lengths = (a.sqr()?.sum(1)?.sqrt()? * b.sqr()?.sum(1)?.sqrt()?)?;
            1.0 - ((a * b)?.sum(1)? / lengths)?.mean_all()?
        };
        for shape in [(1, 3), (4, 7), (5, 33)] {
            let (x, target) = ([sample(1, shape).unwrap()], [sample(2, shape).unwrap()]);
            check_op_with(&x, &target, |x, t| cosine_distance(&x[0], &t[0]), |x, t| Ok(plain(&x[0], &t[0])?)).unwrap();
        }
        let (x, target) = (sample(1, (2, 3)).unwrap(), Var::from_tensor(&sample(2, (2, 3)).unwrap()).unwrap());
        assert!(!cosine_distance(&x, &target).unwrap().track_op(), "no gradient to the target");
        let bad = values(&[f64::NAN, 0.0]);
        assert!(cosine_distance(&bad, &values(&[1.0, 0.0])).unwrap().to_scalar::<f64>().unwrap().is_nan());
        let nothing = values(&[0.0, 0.0]);
        assert_eq!(cosine_distance(&nothing, &values(&[1.0, 0.0])).unwrap().to_scalar::<f64>().unwrap(), 1.0);
    }

    #[test]
    fn other_shapes_are_refused() {
        let refused = |a: &[f64], b: &[f64]| cosine_distance(&values(a), &values(b)).unwrap_err().to_string();
        assert!(refused(&[1.0], &[1.0, 2.0]).contains("cosine_distance: expected a target of shape [1, 1]"));
        let none = Tensor::zeros((0, 3), candle_core::DType::F64, &Device::Cpu).unwrap();
        assert!(cosine_distance(&none, &none).unwrap_err().to_string().contains("at least one row"));
        assert!(cosine_distance(&none.flatten_all().unwrap(), &none).is_err());
        assert!(kl_divergence(&values(&[1.0]), &values(&[1.0, 2.0]), 1.0).is_err());
        let error = smooth_l1(&values(&[1.0]), &values(&[1.0, 2.0]), 1.0).unwrap_err();
        assert!(error.to_string().contains("[1, 1]"), "{error}");
        assert!(smooth_l1(&values(&[1.0]), &values(&[1.0]), f64::NAN).is_err());
    }
}
