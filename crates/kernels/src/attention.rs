//! Softmax attention over heads, with visibility.

use crate::cpu::{self, Real, SharedRows, Values, by_dtype};
use crate::heads::{Rows, Scratch, Sizes, backward, forward};
use crate::tiles::Tiles;
use crate::visibility::{Seen, Sight, Visibility};
use crate::{Error, Result, input, precision, reference};
use candle_core::{CpuStorage, CustomOp3, Layout, Shape, Tensor};
use std::sync::OnceLock;

const OP: &str = "attention";

/// `softmax(q k^T / sqrt(head_size)) v` per head over the visible keys. q: [batch, nq, heads * head_size], k and v:
/// [batch, nk, heads * head_size] -> [batch, nq, heads * head_size]. Heads are contiguous groups of channels.
///
/// # Errors
/// Shapes that do not fit, unequal dtypes, or a dtype that is not f32 or f64.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, heads: usize, visibility: &Visibility) -> Result<Tensor> {
    check(q, k, v, heads, visibility)?;
    if !cpu::on_cpu(q) {
        return reference::attention(q, k, v, heads, visibility);
    }
    let (nq, nk) = (q.dim(1)?, k.dim(1)?);
    let sizes = Sizes { batch: q.dim(0)?, nq, nk, heads, size: q.dim(2)? / heads };
    let op = Attention { sizes, sight: visibility.sight(sizes.nq, sizes.nk)?, log_sums: OnceLock::new() };
    Ok(q.contiguous()?.apply_op3(&k.contiguous()?, &v.contiguous()?, op)?)
}

fn check(q: &Tensor, k: &Tensor, v: &Tensor, heads: usize, visibility: &Visibility) -> Result<()> {
    input::same_float(OP, q, k)?;
    input::same_float(OP, q, v)?;
    let [batch, nq, dim] = *q.dims() else { return Err(Error::shape(OP, "q of shape [batch, nq, dim]", q.dims())) };
    if heads == 0 || !dim.is_multiple_of(heads) {
        return Err(Error::argument(OP, format!("{heads} heads do not divide the {dim} channels of q")));
    }
    let [_, nk, _] = *k.dims() else { return Err(Error::shape(OP, "k of shape [batch, nk, dim]", k.dims())) };
    input::shape(OP, "k", k, &[batch, nk, dim])?;
    input::shape(OP, "v", v, &[batch, nk, dim])?;
    visibility.check(batch, nq, nk)
}

/// Keeps the logarithm of each row's softmax denominator; the probabilities are computed anew in the backward pass.
struct Attention {
    sizes: Sizes,
    sight: Option<Sight>,
    /// [batch, heads, nq], in the dtype of the inputs.
    log_sums: OnceLock<Tensor>,
}

impl CustomOp3 for Attention {
    fn name(&self) -> &'static str {
        OP
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        q_layout: &Layout,
        k: &CpuStorage,
        k_layout: &Layout,
        v: &CpuStorage,
        v_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        by_dtype!(OP, cpu::dtype(q), T => {
            let inputs = [cpu::slice::<T>(q, q_layout)?, cpu::slice(k, k_layout)?, cpu::slice(v, v_layout)?];
            let (out, log_sums) = all_forward(inputs, self.sizes, self.sight.as_ref());
            // A second forward pass of one instance does not happen; if it did, it would give the same sums.
            let _ = self.log_sums.set(cpu::tensor(log_sums, (self.sizes.batch, self.sizes.heads, self.sizes.nq))?);
            Ok((cpu::storage(out), q_layout.shape().clone()))
        })
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        _: &Tensor,
        gradient: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let gradient = gradient.contiguous()?;
        let log_sums = self.log_sums.get().ok_or_else(|| Error::argument(OP, "backward before forward"))?;
        by_dtype!(OP, q.dtype(), T => {
            let tensors = [q, k, v, &gradient, log_sums];
            let [q_values, k_values, v_values, gradient, log_sums] = tensors.map(Values::<T>::of);
            let inputs = [&*q_values?, &*k_values?, &*v_values?];
            let [dq, dk, dv] = all_backward(inputs, &gradient?, &log_sums?, self.sizes, self.sight.as_ref());
            // The three come together; that of an untracked input is dropped here.
            let given = |x: &Tensor, dx| x.track_op().then(|| cpu::tensor(dx, x.shape())).transpose();
            Ok((given(q, dq)?, given(k, dk)?, given(v, dv)?))
        })
    }
}

/// Where queries, keys or values lie in a tensor: token `t`, counted over all images, from `first + t * stride` on.
#[derive(Clone, Copy)]
pub(crate) struct Lane {
    /// Tokens of an image.
    pub(crate) tokens: usize,
    pub(crate) stride: usize,
    pub(crate) first: usize,
}

impl Lane {
    /// Tokens that have a tensor to themselves.
    fn whole(sizes: Sizes, tokens: usize) -> Self {
        Self { tokens, stride: sizes.dim(), first: 0 }
    }

    /// Queries, keys and values in tensors of their own.
    fn apart(sizes: Sizes) -> [Self; 3] {
        [sizes.nq, sizes.nk, sizes.nk].map(|tokens| Self::whole(sizes, tokens))
    }

    /// The first element of a head of an image.
    fn start(self, sizes: Sizes, index: usize) -> usize {
        let (image, head) = (index / sizes.heads, index % sizes.heads);
        self.first + image * self.tokens * self.stride + head * sizes.size
    }

    /// One head of one image, in this order.
    fn head<'a, T: Real>(self, values: &'a [T], sizes: Sizes, index: usize, order: Option<&'a [u32]>) -> Rows<'a, T> {
        Rows { values: &values[self.start(sizes, index)..], stride: self.stride, order }
    }

    /// Writes the rows of one head, which come in this order, to its place among all. `from`: rows of `step` elements.
    fn store<T: Real>(
        self,
        to: &SharedRows<'_, T>,
        (sizes, index): (Sizes, usize),
        order: Option<&[u32]>,
        (from, step): (&[T], usize),
    ) {
        let start = self.start(sizes, index);
        for row in 0..self.tokens {
            let token = order.map_or(row, |order| order[row] as usize);
            // SAFETY: each head of each image is one index and writes its own channels of its own tokens alone; an order names
            // each token once, and lanes of one tensor do not meet.
            #[allow(unsafe_code)]
            unsafe {
                to.write(start + token * self.stride, &from[row * step..][..sizes.size]);
            }
        }
    }
}

/// What the image of a head sees, and the order of its queries and keys: by rising rank where that saves work.
fn seen(sight: Option<&Sight>, sizes: Sizes, index: usize, native: bool) -> (Seen<'_>, [Option<&[u32]>; 2]) {
    let Some(sight) = sight else { return (Seen::All, [None; 2]) };
    let Sizes { nq, nk, heads, .. } = sizes;
    match sight.sorted(index / heads, nq, nk).filter(|_| native) {
        Some((seen, orders)) => (seen, orders.map(Some)),
        None => (sight.of(index / heads, nq, nk), [None; 2]),
    }
}

/// Whether [`seen`] gives orders.
fn sorts(sight: Option<&Sight>, tiles: Option<Tiles>) -> bool {
    tiles.is_none() && matches!(sight, Some(Sight::Ranks { sorted: Some(_), .. }))
}

/// The output and the log-sums of all heads of all images; zeros where there is nothing to see or nobody to see it.
pub(crate) fn all_forward<T: Real>(inputs: [&[T]; 3], sizes: Sizes, sight: Option<&Sight>) -> (Vec<T>, Vec<T>) {
    forward_along(inputs, Lane::apart(sizes), sizes, sight)
}

/// [`all_forward`] of inputs that lie anywhere.
pub(crate) fn forward_along<T: Real>(
    inputs: [&[T]; 3],
    [q_lane, k_lane, v_lane]: [Lane; 3],
    sizes: Sizes,
    sight: Option<&Sight>,
) -> (Vec<T>, Vec<T>) {
    let Sizes { batch, nq, heads, .. } = sizes;
    let (out_len, log_len) = (batch * nq * sizes.dim(), batch * heads * nq);
    if inputs.iter().any(|input| input.is_empty()) {
        return (vec![T::zero(); out_len], vec![T::zero(); log_len]);
    }
    let (mut out, mut log_sums) = (Vec::new(), Vec::new());
    let (out_rows, log_rows) = (SharedRows::spare(&mut out, out_len), SharedRows::spare(&mut log_sums, log_len));
    let tiles = precision::attention_tiles::<T>();
    let scratch = || Scratch::forward(sizes, tiles, sorts(sight, tiles));
    cpu::for_each_index(batch * heads, sizes.work(), scratch, |scratch, index| {
        let (seen, [by, keys_by]) = seen(sight, sizes, index, tiles.is_none());
        let q = q_lane.head(inputs[0], sizes, index, by);
        let [k, v] = [(k_lane, inputs[1]), (v_lane, inputs[2])].map(|(lane, x)| lane.head(x, sizes, index, keys_by));
        forward(scratch, sizes, [q, k, v], seen);
        Lane::whole(sizes, nq).store(&out_rows, (sizes, index), by, (&scratch.out, scratch.row));
        // SAFETY: each index has its own row of log-sums.
        #[allow(unsafe_code)]
        unsafe {
            log_rows.write(index * nq, &scratch.log_sums);
        }
    });
    // SAFETY: every head of every image has written its channels of its tokens, which are all there are.
    #[allow(unsafe_code)]
    unsafe {
        out.set_len(out_len);
        log_sums.set_len(log_len);
    }
    (out, log_sums)
}

/// The gradients of queries, keys and values of all heads of all images.
pub(crate) fn all_backward<T: Real>(
    inputs: [&[T]; 3],
    gradient: &[T],
    log_sums: &[T],
    sizes: Sizes,
    sight: Option<&Sight>,
) -> [Vec<T>; 3] {
    if inputs.iter().any(|input| input.is_empty()) {
        return inputs.map(|input| vec![T::zero(); input.len()]);
    }
    let mut gradients = [Vec::new(), Vec::new(), Vec::new()];
    let [dq, dk, dv] = &mut gradients;
    let [q, k, v] = inputs.map(<[T]>::len);
    let into = [&SharedRows::spare(dq, q), &SharedRows::spare(dk, k), &SharedRows::spare(dv, v)];
    backward_along(inputs, Lane::apart(sizes), into, (gradient, log_sums), sizes, sight);
    for (gradient, len) in gradients.iter_mut().zip([q, k, v]) {
        // SAFETY: every head of every image has written its channels of its tokens, which are all there are.
        #[allow(unsafe_code)]
        unsafe {
            gradient.set_len(len);
        }
    }
    gradients
}

/// [`all_backward`] of inputs that lie anywhere; each gradient goes where its input lies. `given`: the gradient of the
/// output, and the log-sums of the forward pass.
pub(crate) fn backward_along<T: Real>(
    inputs: [&[T]; 3],
    [q_lane, k_lane, v_lane]: [Lane; 3],
    [dq, dk, dv]: [&SharedRows<'_, T>; 3],
    given: (&[T], &[T]),
    sizes: Sizes,
    sight: Option<&Sight>,
) {
    let Sizes { batch, nq, heads, .. } = sizes;
    if inputs.iter().any(|input| input.is_empty()) {
        return;
    }
    let tiles = precision::attention_tiles::<T>();
    let scratch = || Scratch::backward(sizes, tiles, sorts(sight, tiles));
    cpu::for_each_index(batch * heads, 3 * sizes.work(), scratch, |scratch, index| {
        let (seen, [by, keys_by]) = seen(sight, sizes, index, tiles.is_none());
        let q = q_lane.head(inputs[0], sizes, index, by);
        let [k, v] = [(k_lane, inputs[1]), (v_lane, inputs[2])].map(|(lane, x)| lane.head(x, sizes, index, keys_by));
        let given = (Lane::whole(sizes, nq).head(given.0, sizes, index, by), &given.1[index * nq..][..nq]);
        backward(scratch, sizes, [q, k, v], given, seen);
        q_lane.store(dq, (sizes, index), by, (&scratch.out, scratch.row));
        k_lane.store(dk, (sizes, index), keys_by, (&scratch.keys_gradient, scratch.row));
        v_lane.store(dv, (sizes, index), keys_by, (&scratch.values_gradient, scratch.row));
    });
}

#[cfg(test)]
mod tests {
    use super::attention;
    use crate::check::{check_large, check_op, output_and_gradients, same_for_any_threads, sample};
    use crate::{RankRule, Visibility, reference};
    use candle_core::{DType, Device, Tensor};
    use std::ops::RangeInclusive;

    /// batch, nq, nk, heads, size.
    type Case = (usize, usize, usize, usize, usize);

    fn inputs((batch, nq, nk, heads, size): Case) -> Vec<Tensor> {
        let tokens = |seed, n| (sample(seed, (batch, n, heads * size)).unwrap() * 2.0).unwrap();
        vec![tokens(1, nq), tokens(2, nk), tokens(3, nk)]
    }

    fn judge(case: Case, visibility: &Visibility) {
        check_op(
            &inputs(case),
            |v| attention(&v[0], &v[1], &v[2], case.3, visibility),
            |v| reference::attention(&v[0], &v[1], &v[2], case.3, visibility),
        )
        .unwrap();
    }

    /// Some pairs of [batch, nq, nk], with one query that sees nothing.
    fn mask(batch: usize, nq: usize, nk: usize) -> Tensor {
        let visible = (0..batch * nq * nk).map(|i| u8::from(i / nk != 1 && (i * i + i / 3) % 3 != 0)).collect();
        Tensor::from_vec(visible, (batch, nq, nk), &Device::Cpu).unwrap()
    }

    #[test]
    fn matches_its_reference_and_its_gradient() {
        for case in [(2, 3, 3, 2, 4), (1, 5, 2, 1, 3), (2, 1, 7, 3, 1), (1, 9, 13, 1, 6)] {
            judge(case, &Visibility::All);
        }
    }

    #[test]
    fn masks_of_all_forms_match_their_reference_and_gradient() {
        let (batch, nq, nk) = (2, 3, 4);
        let each = mask(batch, nq, nk);
        let shared = each.get(1).unwrap();
        let ranks = |queries: Vec<u32>, keys: Vec<u32>, rule| Visibility::Ranks { queries, keys, rule };
        for visibility in [
            Visibility::Mask(each),
            Visibility::Mask(shared),
            ranks(vec![0, 2, 1], vec![0, 1, 1, 2], RankRule::AtMost),
            ranks(vec![0, 2, 1, 1, 1, 3], vec![0, 1, 1, 2], RankRule::Below),
            ranks(vec![0, 2, 1, 1, 1, 3], vec![0, 1, 1, 2, 2, 1, 0, 0], RankRule::AtMost),
            Visibility::Ranges { queries: vec![0, 2, 1], keys: vec![0..=0, 1..=2, 0..=1, RangeInclusive::new(2, 1)] },
        ] {
            judge((batch, nq, nk, 2, 3), &visibility);
        }
    }

    #[test]
    fn sizes_across_blocks_and_tiles_match() {
        for (case, masked) in [
            ((2, 20, 20, 4, 32), false),
            ((1, 131, 150, 2, 40), true),
            ((3, 64, 17, 1, 16), true),
            ((2, 70, 65, 1, 7), false),
            // Rows of scores are a vector longer than the keys.
            ((1, 30, 256, 2, 8), true),
        ] {
            let (batch, nq, nk, heads, _) = case;
            let visibility = if masked { Visibility::Mask(mask(batch, nq, nk)) } else { Visibility::All };
            check_large(
                &inputs(case),
                |v| attention(&v[0], &v[1], &v[2], heads, &visibility),
                |v| reference::attention(&v[0], &v[1], &v[2], heads, &visibility),
            )
            .unwrap();
        }
    }

    /// Some ranks below `most`.
    fn some_ranks(seed: usize, n: usize, most: usize) -> Vec<u32> {
        (0..n).map(|i| ((i + seed) * (i + 3 * seed + 5) / 3 % most) as u32).collect()
    }

    /// `visibility` as a table of pairs.
    fn as_mask(visibility: &Visibility, (batch, nq, nk, ..): Case) -> Visibility {
        let (visible, images) = visibility.pairs(batch, nq, nk).unwrap().unwrap();
        Visibility::Mask(Tensor::from_vec(visible, (images, nq, nk), &Device::Cpu).unwrap())
    }

    #[test]
    fn ranks_give_what_their_mask_gives() {
        for case @ (batch, nq, nk, heads, size) in [
            (2, 70, 131, 2, 16),
            (1, 70, 256, 1, 16),
            (1, 150, 300, 1, 8),
            (3, 33, 33, 1, 128),
            (1, 129, 65, 2, 40),
            (2, 5, 7, 3, 19),
            (2, 64, 64, 1, 64),
        ] {
            let ranks = |queries, keys, rule| Visibility::Ranks { queries, keys, rule };
            let (shared, each) = (some_ranks(1, nq, 6), some_ranks(2, batch * nq, 6));
            let (shared_keys, each_keys) = (some_ranks(3, nk, 6), some_ranks(4, batch * nk, 6));
            let ranges = each_keys.iter().zip(some_ranks(5, batch * nk, 8)).map(|(first, last)| *first..=last);
            for visibility in [
                ranks(shared.clone(), shared_keys.clone(), RankRule::AtMost),
                ranks(each.clone(), shared_keys, RankRule::Below),
                ranks(shared, each_keys.clone(), RankRule::Below),
                ranks(each.clone(), each_keys.clone(), RankRule::AtMost),
                Visibility::Ranges { queries: each.clone(), keys: ranges.collect() },
            ] {
                let mask = as_mask(&visibility, case);
                let all = |visibility: &Visibility, dtype| {
                    let run = |v: &[Tensor]| attention(&v[0], &v[1], &v[2], heads, visibility);
                    let all = output_and_gradients(&inputs(case), dtype, run).unwrap();
                    let values = |t: &Tensor| t.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap();
                    all.iter().flat_map(values).collect::<Vec<f64>>()
                };
                for (dtype, tolerance) in [(DType::F32, 4e-6), (DType::F64, 1e-14)] {
                    let (got, judge) = (all(&visibility, dtype), all(&mask, dtype));
                    let apart = got.iter().zip(&judge).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
                    // Keys that leave sight again are read in the order of the mask, others by rank.
                    let tolerance = if matches!(visibility, Visibility::Ranges { .. }) { 0.0 } else { tolerance };
                    assert!(apart <= tolerance, "{apart}: {case:?}, size {size}, {dtype:?}, {visibility:?}");
                }
            }
        }
    }

    #[test]
    fn ranks_are_the_mask_they_describe() {
        let case = (2, 3, 3, 1, 4);
        let run = |visibility| {
            let inputs = inputs(case);
            let y = attention(&inputs[0], &inputs[1], &inputs[2], 1, &visibility).unwrap();
            y.flatten_all().unwrap().to_vec1::<f64>().unwrap()
        };
        let ranks = |rule| run(Visibility::Ranks { queries: vec![0, 1, 2], keys: vec![0, 1, 2], rule });
        let mask = |rows: &[[u8; 3]; 3]| run(Visibility::Mask(Tensor::new(rows, &Device::Cpu).unwrap()));
        assert_eq!(ranks(RankRule::AtMost), mask(&[[1, 0, 0], [1, 1, 0], [1, 1, 1]]));
        assert_eq!(ranks(RankRule::Below), mask(&[[0, 0, 0], [1, 0, 0], [1, 1, 0]]));
    }

    #[test]
    fn a_query_that_sees_nothing_gives_zero_and_takes_no_gradient() {
        let case = (1, 2, 3, 1, 2);
        let rows = Tensor::new(&[[0_u8, 0, 0], [1, 1, 0]], &Device::Cpu).unwrap();
        let ranks = Visibility::Ranks { queries: vec![0, 2], keys: vec![0, 1, 2], rule: RankRule::Below };
        for visibility in [Visibility::Mask(rows), ranks] {
            let run = |v: &[Tensor]| attention(&v[0], &v[1], &v[2], 1, &visibility);
            let all = output_and_gradients(&inputs(case), DType::F32, run).unwrap();
            let rows = |i: usize| all[i].get(0).unwrap().to_vec2::<f32>().unwrap();
            assert_eq!(rows(0)[0], [0.0; 2]);
            assert_eq!(rows(1)[0], [0.0; 2]);
            assert_eq!(rows(3)[2], [0.0; 2], "a key that nobody sees");
            assert!(all.iter().all(|t| t.sum_all().unwrap().to_scalar::<f32>().unwrap().is_finite()));
        }
    }

    #[test]
    fn large_scores_do_not_overflow_and_nan_stays_in_its_image_and_head() {
        let scores = |first: f32| {
            let q = Tensor::from_vec(vec![first, 1.0, 500.0, 1.0], (2, 1, 2), &Device::Cpu).unwrap();
            let k =
                Tensor::from_vec(vec![300_f32, 1.0, 2.0, 3.0, 300.0, 1.0, 2.0, 3.0], (2, 2, 2), &Device::Cpu).unwrap();
            let y = attention(&q, &k, &k, 2, &Visibility::All).unwrap();
            y.flatten_all().unwrap().to_vec1::<f32>().unwrap()
        };
        assert!(scores(500.0).iter().all(|value| value.is_finite()));
        let nan: Vec<bool> = scores(f32::NAN).iter().map(|value| value.is_nan()).collect();
        assert_eq!(nan, [true, false, false, false]);
    }

    #[test]
    fn nothing_in_gives_nothing_or_zeros_out() {
        for case @ (batch, nq, nk, heads, size) in
            [(0, 3, 3, 1, 4), (2, 0, 3, 2, 4), (1, 2, 0, 2, 4), (1, 0, 0, 3, 2), (2, 3, 4, 2, 0)]
        {
            let ranks = |n: usize| (0..n as u32).collect();
            let each = Tensor::zeros((batch, nq, nk), DType::U8, &Device::Cpu).unwrap();
            for visibility in [
                Visibility::All,
                Visibility::Mask(each),
                Visibility::Ranks { queries: ranks(nq), keys: ranks(nk), rule: RankRule::AtMost },
                Visibility::Ranks { queries: ranks(batch * nq), keys: ranks(batch * nk), rule: RankRule::AtMost },
            ] {
                let run = |v: &[Tensor]| attention(&v[0], &v[1], &v[2], heads, &visibility);
                let all = output_and_gradients(&inputs(case), DType::F32, run).unwrap();
                for (tensor, tokens) in all.iter().zip([nq, nq, nk, nk]) {
                    assert_eq!(tensor.dims(), [batch, tokens, heads * size]);
                    let values = tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
                    assert!(values.iter().all(|value| *value == 0.0), "{case:?}: {values:?}");
                }
            }
        }
    }

    #[test]
    fn what_does_not_fit_is_refused_by_name() {
        let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
        let (q, k) = (zeros(&[2, 3, 4]), zeros(&[2, 5, 4]));
        let refusal = |k: &Tensor, v: &Tensor, heads, visibility: &Visibility| {
            attention(&q, k, v, heads, visibility).unwrap_err().to_string()
        };
        assert!(refusal(&k, &k, 3, &Visibility::All).contains("3 heads do not divide the 4 channels"));
        assert!(refusal(&k, &k, 0, &Visibility::All).contains("0 heads"));
        assert!(refusal(&k, &zeros(&[2, 4, 4]), 2, &Visibility::All).contains("expected v of shape [2, 5, 4]"));
        assert!(refusal(&zeros(&[1, 5, 4]), &k, 2, &Visibility::All).contains("expected k of shape [2, 5, 4]"));
        assert!(refusal(&k, &k, 2, &Visibility::Mask(zeros(&[3, 5]))).contains("U8 for the mask"));
        let mask = Visibility::Mask(zeros(&[5, 3]).to_dtype(DType::U8).unwrap());
        assert!(refusal(&k, &k, 2, &mask).contains("a mask [3, 5] or [2, 3, 5]"));
        let ranks = Visibility::Ranks { queries: vec![0; 3], keys: vec![0; 6], rule: RankRule::Below };
        assert!(refusal(&k, &k, 2, &ranks).contains("6 ranks of keys: must be 5 or 2 * 5"));
        let ranges = Visibility::Ranges { queries: vec![0; 4], keys: vec![0..=1; 5] };
        assert!(refusal(&k, &k, 2, &ranges).contains("4 ranks of queries: must be 3 or 2 * 3"));
        assert!(refusal(&k.to_dtype(DType::F64).unwrap(), &k, 2, &Visibility::All).contains("dtype"));
    }

    #[test]
    fn threads_do_not_change_a_bit() {
        let case = (5, 70, 33, 3, 24);
        let ranks =
            Visibility::Ranks { queries: some_ranks(1, 70, 5), keys: some_ranks(2, 33, 5), rule: RankRule::Below };
        for visibility in [Visibility::Mask(mask(5, 70, 33)), ranks] {
            let run = |v: &[Tensor]| attention(&v[0], &v[1], &v[2], 3, &visibility);
            same_for_any_threads(|| output_and_gradients(&inputs(case), DType::F32, run)).unwrap();
        }
    }
}
