//! Self-attention on queries, keys and values that one product gave: read where they lie.

use crate::attention::{Lane, backward_along, forward_along};
use crate::cpu::{self, Real, SharedRows, Values, by_dtype};
use crate::heads::Sizes;
use crate::visibility::{Sight, Visibility};
use crate::{Error, Result, input, reference};
use candle_core::{CpuStorage, CustomOp1, Layout, Shape, Tensor};
use std::sync::OnceLock;

const OP: &str = "packed attention";

/// [`attention`](crate::attention()) of tokens to each other. qkv: [batch, tokens, 3 * dim], the queries of a token, then
/// its keys, then its values, as a fused linear map gives them -> [batch, tokens, dim]. Heads are contiguous groups of
/// channels of each third. f32 or f64; the same bits as from three tensors, without making them.
///
/// # Errors
/// A shape that does not fit, or a dtype that is not f32 or f64.
pub fn packed_attention(qkv: &Tensor, heads: usize, visibility: &Visibility) -> Result<Tensor> {
    let sizes = check(qkv, heads, visibility)?;
    if !cpu::on_cpu(qkv) {
        return reference::packed_attention(qkv, heads, visibility);
    }
    let op = Packed { sizes, sight: visibility.sight(sizes.nq, sizes.nk)?, log_sums: OnceLock::new() };
    Ok(qkv.contiguous()?.apply_op1(op)?)
}

fn check(qkv: &Tensor, heads: usize, visibility: &Visibility) -> Result<Sizes> {
    input::float(OP, qkv)?;
    let [batch, tokens, width] = *qkv.dims() else {
        return Err(Error::shape(OP, "qkv of shape [batch, tokens, 3 * dim]", qkv.dims()));
    };
    if heads == 0 || !width.is_multiple_of(3 * heads) {
        let message = format!("{heads} heads of queries, keys and values do not divide the {width} channels of qkv");
        return Err(Error::argument(OP, message));
    }
    visibility.check(batch, tokens, tokens)?;
    Ok(Sizes { batch, nq: tokens, nk: tokens, heads, size: width / (3 * heads) })
}

struct Packed {
    sizes: Sizes,
    sight: Option<Sight>,
    /// [batch, heads, tokens], in the dtype of the input.
    log_sums: OnceLock<Tensor>,
}

impl Packed {
    /// Where queries, keys and values lie.
    fn lanes(&self) -> [Lane; 3] {
        let dim = self.sizes.dim();
        [0, 1, 2].map(|third| Lane { tokens: self.sizes.nq, stride: 3 * dim, first: third * dim })
    }

    fn backward<T: Real>(&self, qkv: &[T], gradient: &[T], log_sums: &[T]) -> Vec<T> {
        let mut slopes = vec![T::zero(); qkv.len()];
        let into = SharedRows::new(&mut slopes);
        backward_along([qkv; 3], self.lanes(), [&into; 3], (gradient, log_sums), self.sizes, self.sight.as_ref());
        slopes
    }
}

impl CustomOp1 for Packed {
    fn name(&self) -> &'static str {
        OP
    }

    fn cpu_fwd(&self, qkv: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let Sizes { batch, nq, heads, .. } = self.sizes;
        by_dtype!(OP, cpu::dtype(qkv), T => {
            let qkv = cpu::slice::<T>(qkv, layout)?;
            let (out, log_sums) = forward_along([qkv; 3], self.lanes(), self.sizes, self.sight.as_ref());
            // A second forward pass of one instance does not happen; if it did, it would give the same sums.
            let _ = self.log_sums.set(cpu::tensor(log_sums, (batch, heads, nq))?);
            Ok((cpu::storage(out), Shape::from((batch, nq, self.sizes.dim()))))
        })
    }

    fn bwd(&self, qkv: &Tensor, _: &Tensor, gradient: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let gradient = gradient.contiguous()?;
        let log_sums = self.log_sums.get().ok_or_else(|| Error::argument(OP, "backward before forward"))?;
        by_dtype!(OP, qkv.dtype(), T => {
            let [values, gradient, log_sums] = [qkv, &gradient, log_sums].map(Values::<T>::of);
            cpu::tensor(self.backward::<T>(&values?, &gradient?, &log_sums?), qkv.shape()).map(Some)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::packed_attention;
    use crate::check::{check_large, check_op, output_and_gradients, same_for_any_threads, sample};
    use crate::{RankRule, Result, Visibility, attention, reference};
    use candle_core::{DType, Device, Tensor};

    /// batch, tokens, heads, size -> [batch, tokens, 3 * heads * size]
    fn input((batch, tokens, heads, size): (usize, usize, usize, usize)) -> Tensor {
        (sample(1, (batch, tokens, 3 * heads * size)).unwrap() * 2.0).unwrap()
    }

    fn ranks(tokens: usize) -> Visibility {
        let ranks: Vec<u32> = (0..tokens as u32).map(|i| i * 7 % 4).collect();
        Visibility::Ranks { queries: ranks.clone(), keys: ranks, rule: RankRule::Below }
    }

    #[test]
    fn matches_its_reference_and_its_gradient() {
        for case @ (_, tokens, heads, _) in [(2, 3, 2, 4), (1, 5, 1, 3), (2, 4, 3, 1), (1, 7, 2, 6)] {
            for visibility in [Visibility::All, ranks(tokens)] {
                check_op(
                    &[input(case)],
                    |v| packed_attention(&v[0], heads, &visibility),
                    |v| reference::packed_attention(&v[0], heads, &visibility),
                )
                .unwrap();
            }
        }
    }

    #[test]
    fn many_tokens_match_as_well() {
        for case @ (_, tokens, heads, _) in [(2, 70, 4, 32), (1, 131, 2, 40), (1, 65, 1, 128)] {
            for visibility in [Visibility::All, ranks(tokens)] {
                check_large(
                    &[input(case)],
                    |v| packed_attention(&v[0], heads, &visibility),
                    |v| reference::packed_attention(&v[0], heads, &visibility),
                )
                .unwrap();
            }
        }
    }

    #[test]
    fn bits_are_those_of_three_tensors() {
        let case @ (batch, tokens, heads, size) = (3, 37, 3, 19);
        let apart = |v: &[Tensor]| -> Result<Tensor> {
            let third = |i: usize| v[0].narrow(2, i * heads * size, heads * size);
            attention(&third(0)?, &third(1)?, &third(2)?, heads, &ranks(tokens))
        };
        let together = |v: &[Tensor]| packed_attention(&v[0], heads, &ranks(tokens));
        let bits = |run: &dyn Fn(&[Tensor]) -> Result<Tensor>| {
            let all = output_and_gradients(&[input(case)], DType::F32, run).unwrap();
            let bits = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            all.iter().flat_map(bits).map(f32::to_bits).collect::<Vec<u32>>()
        };
        assert_eq!(bits(&apart), bits(&together));
        assert_eq!(together(&[input(case)]).unwrap().dims(), [batch, tokens, heads * size]);
    }

    #[test]
    fn nothing_in_gives_nothing_out() {
        for (batch, tokens, heads, size) in [(0, 3, 1, 4), (2, 0, 2, 4), (2, 3, 2, 0)] {
            let run = |v: &[Tensor]| packed_attention(&v[0], heads, &Visibility::All);
            let all = output_and_gradients(&[input((batch, tokens, heads, size))], DType::F32, run).unwrap();
            assert_eq!(all[0].dims(), [batch, tokens, heads * size]);
            assert_eq!(all[1].dims(), [batch, tokens, 3 * heads * size]);
        }
    }

    #[test]
    fn nan_stays_in_its_image_and_head() {
        let mut values = vec![0.5_f32; 2 * 2 * 6]; // [2 images, 2 tokens, 3 x 2 heads x 1]
        values[7] = f32::NAN; // image 0, token 1, query of head 1
        let qkv = Tensor::from_vec(values, (2, 2, 6), &Device::Cpu).unwrap();
        let y = packed_attention(&qkv, 2, &Visibility::All).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let nan: Vec<usize> = (0..y.len()).filter(|i| y[*i].is_nan()).collect();
        assert_eq!(nan, [3]);
    }

    #[test]
    fn what_does_not_fit_is_refused_by_name() {
        let refusal = |shape: &[usize], dtype, heads, visibility: &Visibility| {
            let qkv = Tensor::zeros(shape, dtype, &Device::Cpu).unwrap();
            packed_attention(&qkv, heads, visibility).unwrap_err().to_string()
        };
        let all = &Visibility::All;
        assert!(refusal(&[3, 12], DType::F32, 1, all).contains("qkv of shape [batch, tokens, 3 * dim]"));
        assert!(refusal(&[1, 3, 12], DType::F32, 3, all).contains("do not divide the 12 channels"));
        assert!(refusal(&[1, 3, 12], DType::F32, 0, all).contains("0 heads"));
        assert!(refusal(&[1, 3, 12], DType::U8, 2, all).contains("F32 or F64"));
        assert!(refusal(&[1, 3, 12], DType::F32, 2, &ranks(4)).contains("4 ranks of queries"));
    }

    #[test]
    fn threads_do_not_change_a_bit() {
        let run = |v: &[Tensor]| packed_attention(&v[0], 3, &ranks(70));
        same_for_any_threads(|| output_and_gradients(&[input((5, 70, 3, 24))], DType::F32, run)).unwrap();
    }
}
