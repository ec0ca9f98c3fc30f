//! The block against the same operators one by one, and against central differences.

use super::{Affine, BlockOptions, BlockWeights, Branch, NormWeights, block};
use crate::check::{F32, F64, check_op, output_and_gradients, same, same_for_any_threads, sample};
use crate::{Angles, RankRule, Result, Visibility, attention, gelu, linear, reference};
use candle_core::{DType, Device, Tensor, Var};

/// Sizes of a case.
#[derive(Clone, Copy)]
struct Case {
    batch: usize,
    tokens: usize,
    /// Tokens and width of a context.
    context: Option<(usize, usize)>,
    heads: usize,
    size: usize,
    hidden: usize,
    /// Layer norms, and biases everywhere.
    biases: bool,
}

const SELF: Case = Case { batch: 3, tokens: 4, context: None, heads: 2, size: 4, hidden: 7, biases: false };
const CROSS: Case = Case { context: Some((5, 6)), ..SELF };

impl Case {
    fn dim(self) -> usize {
        self.heads * self.size
    }

    /// x, the context if there is one, then the weights in the order that [`weights`] takes them.
    fn inputs(self) -> Vec<Tensor> {
        let (dim, hidden) = (self.dim(), self.hidden);
        let mut shapes = vec![vec![self.batch, self.tokens, dim]];
        shapes.extend(self.context.map(|(others, width)| vec![self.batch, others, width]));
        let width = self.context.map_or(dim, |(_, width)| width);
        let maps = [(dim, dim), (dim, width), (dim, width), (dim, dim), (hidden, dim), (dim, hidden)];
        shapes.extend([vec![dim], vec![dim]]);
        shapes.extend(maps.iter().map(|(out, inner)| vec![*out, *inner]));
        if self.biases {
            shapes.extend([vec![dim], vec![dim]]);
            shapes.extend(maps.iter().map(|(out, _)| vec![*out]));
        }
        shapes.into_iter().enumerate().map(|(i, shape)| sample(i as u64 + 1, shape).unwrap()).collect()
    }

    /// x, the context, and the weights out of a list made by [`Case::inputs`].
    fn split(self, inputs: &[Tensor]) -> (Tensor, Option<Tensor>, BlockWeights) {
        let skip = 1 + usize::from(self.context.is_some());
        let context = self.context.map(|_| inputs[1].clone());
        (inputs[0].clone(), context, weights(&inputs[skip..], self.biases))
    }
}

pub(super) fn weights(tensors: &[Tensor], biases: bool) -> BlockWeights {
    let bias = |i: usize| biases.then(|| tensors[8 + i].clone());
    let norm = |i: usize| NormWeights { weight: tensors[i].clone(), bias: bias(i), centred: biases, eps: 1e-5 };
    let map = |i: usize| Affine { weight: tensors[2 + i].clone(), bias: bias(2 + i) };
    BlockWeights {
        norm1: norm(0),
        queries: map(0),
        keys: map(1),
        values: map(2),
        projection: map(3),
        norm2: norm(1),
        expand: map(4),
        contract: map(5),
    }
}

fn options(case: Case) -> BlockOptions {
    BlockOptions::new(case.heads)
}

pub(super) fn angles(images: usize, tokens: usize, size: usize, dtype: DType) -> Angles {
    let coords = sample(40, (images, tokens, 2)).unwrap().to_dtype(dtype).unwrap();
    Angles::new(&coords, &(sample(41, (2, size)).unwrap() * 3.0).unwrap().to_dtype(dtype).unwrap()).unwrap()
}

/// Everything that can be asked of a block at once, for the tensors of `dtype`.
fn all_of_it(case: Case, dtype: DType) -> BlockOptions {
    let keys = case.context.map_or(case.tokens, |(others, _)| others);
    let chosen = |images: &[u32], scale| Branch { images: Some(images.to_vec()), scale };
    BlockOptions {
        heads: case.heads,
        angles: Some((angles(2, case.tokens, case.size, dtype), angles(1, keys, case.size, dtype))),
        visibility: Visibility::Ranks {
            // Of the two images that the attention is computed for.
            queries: (0..2 * case.tokens as u32).map(|i| i * 7 % 5).collect(),
            keys: (0..keys as u32).rev().collect(),
            rule: RankRule::AtMost,
        },
        branches: [chosen(&[2, 0], 1.5), chosen(&[1], 3.0)],
        recompute: false,
    }
}

/// The weights of a judged operator are leaves only where memory has no gaps, so the layouts of [`check_op`] apply to `x`
/// and the context, and weights are compared in `dtype` alone.
fn judge(case: Case, options: impl Fn(DType) -> BlockOptions) {
    let inputs = case.inputs();
    // Several operators in a row: each adds its roundings.
    for (dtype, tolerance) in [(DType::F64, 10.0 * F64), (DType::F32, 4.0 * F32)] {
        let run = |f: fn(&Tensor, Option<&Tensor>, &BlockWeights, BlockOptions) -> Result<Tensor>| {
            let run = |v: &[Tensor]| {
                let (x, context, weights) = case.split(v);
                f(&x, context.as_ref(), &weights, options(dtype))
            };
            output_and_gradients(&inputs, dtype, run).unwrap()
        };
        // Without positions a bias of all keys moves every score of a query alike: its gradient is nothing but rounding.
        let nothing = case.biases && options(dtype).angles.is_none();
        let keys_bias = inputs.len() - 4;
        for (i, (got, expected)) in run(block).iter().zip(&run(reference::block)).enumerate() {
            if nothing && i == keys_bias {
                assert!(largest(got) < 1e-5 && largest(expected) < 1e-5, "the gradient of the keys' bias");
                continue;
            }
            same(&format!("tensor {i} in {dtype:?}"), got, expected, tolerance).unwrap();
        }
    }
}

pub(super) fn largest(x: &Tensor) -> f64 {
    let x = x.to_dtype(DType::F64).unwrap().abs().unwrap().flatten_all().unwrap();
    x.to_vec1::<f64>().unwrap().into_iter().fold(0.0, f64::max)
}

#[test]
fn weights_applied_by_themselves_are_the_parts_of_a_block() {
    for case in [SELF, Case { biases: true, ..SELF }] {
        let (x, _, w) = case.split(&case.inputs());
        let tokens = w.norm1.forward(&x).unwrap();
        let [queries, keys, values] = [&w.queries, &w.keys, &w.values].map(|map| map.forward(&tokens).unwrap());
        let attended = attention(&queries, &keys, &values, case.heads, &Visibility::All).unwrap();
        let x1 = (&x + w.projection.forward(&attended).unwrap()).unwrap();
        let hidden = gelu(&w.expand.forward(&w.norm2.forward(&x1).unwrap()).unwrap()).unwrap();
        let expected = (&x1 + w.contract.forward(&hidden).unwrap()).unwrap();
        same("block", &block(&x, None, &w, options(case)).unwrap(), &expected, 10.0 * F64).unwrap();
    }
}

#[test]
fn matches_the_same_operators_one_by_one() {
    for case in [SELF, CROSS, Case { biases: true, ..SELF }, Case { biases: true, ..CROSS }] {
        judge(case, |_| options(case));
        judge(case, |dtype| all_of_it(case, dtype));
    }
}

#[test]
fn large_blocks_match_as_well() {
    let large = Case { batch: 5, tokens: 37, context: None, heads: 3, size: 20, hidden: 130, biases: true };
    for case in [large, Case { context: Some((70, 50)), ..large }] {
        judge(case, |dtype| all_of_it(case, dtype));
    }
}

#[test]
fn the_gradient_is_that_of_central_differences() {
    for case in [SELF, CROSS] {
        let case = Case { batch: 3, tokens: 2, heads: 1, hidden: 3, biases: true, ..case };
        let inputs = case.inputs();
        // Differences move every number of every weight; layouts are varied for x and the context below.
        let run = |v: &[Tensor]| {
            let (x, context, weights) = case.split(v);
            block(&x, context.as_ref(), &weights, all_of_it(case, DType::F64))
        };
        crate::check::check_differences(&inputs, run).unwrap();
    }
}

#[test]
fn x_and_context_may_lie_anywhere_in_memory() {
    let inputs = CROSS.inputs();
    let weights = |v: &[Tensor]| {
        let tensors: Vec<Tensor> = inputs[2..].iter().map(|w| w.to_dtype(v[0].dtype()).unwrap()).collect();
        weights(&tensors, false)
    };
    check_op(
        &inputs[..2],
        |v| block(&v[0], Some(&v[1]), &weights(v), options(CROSS)),
        |v| reference::block(&v[0], Some(&v[1]), &weights(v), options(CROSS)),
    )
    .unwrap();
}

fn gradients_of(case: Case, change: impl Fn(&mut BlockOptions)) -> Vec<Tensor> {
    let run = |v: &[Tensor]| {
        let (x, context, weights) = case.split(v);
        let mut options = all_of_it(case, DType::F32);
        change(&mut options);
        block(&x, context.as_ref(), &weights, options)
    };
    output_and_gradients(&case.inputs(), DType::F32, run).unwrap()
}

#[test]
fn computing_again_gives_the_same_bits() {
    let values = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let (kept, again) = (gradients_of(CROSS, |_| ()), gradients_of(CROSS, |options| options.recompute = true));
    for (kept, again) in kept.iter().zip(&again) {
        assert_eq!(values(kept), values(again));
    }
}

#[test]
fn a_block_used_twice_adds_its_gradients() {
    let run = |f: fn(&Tensor, Option<&Tensor>, &BlockWeights, BlockOptions) -> Result<Tensor>| {
        let run = |v: &[Tensor]| {
            let (x, _, weights) = SELF.split(v);
            f(&f(&x, None, &weights, options(SELF))?, None, &weights, options(SELF))
        };
        output_and_gradients(&SELF.inputs(), DType::F64, run).unwrap()
    };
    for (got, expected) in run(block).iter().zip(&run(reference::block)) {
        same("twice", got, expected, F64).unwrap();
    }
}

#[test]
fn a_second_backward_pass_gives_the_same() {
    let inputs = SELF.inputs();
    let w = Var::from_tensor(&inputs[3]).unwrap();
    let mut tensors = inputs[1..].to_vec();
    tensors[2] = w.as_tensor().clone();
    let y = block(&inputs[0], None, &weights(&tensors, false), options(SELF)).unwrap();
    let loss = y.sqr().unwrap().sum_all().unwrap();
    let gradient = || crate::backward(&loss).unwrap().get(w.as_tensor()).unwrap().to_vec2::<f64>().unwrap();
    assert_eq!(gradient(), gradient());
}

#[test]
fn one_trained_weight_is_enough() {
    let inputs = SELF.inputs();
    for trained in 1..inputs.len() {
        let w = Var::from_tensor(&inputs[trained]).unwrap();
        let mut tensors = inputs[1..].to_vec();
        tensors[trained - 1] = w.as_tensor().clone();
        let y = block(&inputs[0], None, &weights(&tensors, false), options(SELF)).unwrap();
        let gradients = crate::backward(&y.sqr().unwrap().sum_all().unwrap()).unwrap();
        assert!(largest(gradients.get(w.as_tensor()).unwrap()) > 0.0, "weight {trained}");
    }
}

#[test]
fn candles_own_backward_is_refused() {
    let inputs = SELF.inputs();
    let mut tensors = inputs[1..].to_vec();
    tensors[2] = Var::from_tensor(&tensors[2]).unwrap().into_inner();
    let y = block(&inputs[0], None, &weights(&tensors, false), options(SELF)).unwrap();
    let message = y.sum_all().unwrap().backward().unwrap_err().to_string();
    assert!(message.contains("occlude_kernels::backward"), "{message}");
}

#[test]
fn what_is_untracked_records_no_graph() {
    let inputs = SELF.inputs();
    let y = block(&inputs[0], None, &weights(&inputs[1..], false), options(SELF)).unwrap();
    assert!(!y.track_op());
}

#[test]
fn nan_stays_in_its_image() {
    let inputs = SELF.inputs();
    let mut values = inputs[0].flatten_all().unwrap().to_vec1::<f64>().unwrap();
    values[0] = f64::NAN;
    let x = Tensor::from_vec(values, inputs[0].shape(), &Device::Cpu).unwrap();
    let y = block(&x, None, &weights(&inputs[1..], false), options(SELF)).unwrap();
    let images: Vec<Vec<f64>> = y.flatten_from(1).unwrap().to_vec2().unwrap();
    assert!(images[0][0].is_nan() && images[1..].iter().flatten().all(|value| value.is_finite()));
}

#[test]
fn an_empty_batch_and_an_empty_branch_work() {
    let inputs = SELF.inputs();
    let empty = Tensor::zeros((0, 4, 8), DType::F64, &Device::Cpu).unwrap();
    let weights = weights(&inputs[1..], false);
    assert_eq!(block(&empty, None, &weights, options(SELF)).unwrap().dims(), [0, 4, 8]);
    let none = Branch { images: Some(vec![]), scale: 1.0 };
    let options = BlockOptions { branches: [none.clone(), none], ..options(SELF) };
    let y = block(&inputs[0], None, &weights, options).unwrap();
    same("nothing kept", &y, &inputs[0], 0.0).unwrap();
}

#[test]
fn what_does_not_fit_is_refused_by_name() {
    let inputs = CROSS.inputs();
    let (x, context, good) = CROSS.split(&inputs);
    let refusal = |weights: &BlockWeights, options: BlockOptions| {
        block(&x, context.as_ref(), weights, options).unwrap_err().to_string()
    };
    let with = |change: &dyn Fn(&mut BlockOptions)| {
        let mut options = options(CROSS);
        change(&mut options);
        refusal(&good, options)
    };
    assert!(with(&|o| o.heads = 3).contains("3 heads do not divide the 8 channels"));
    assert!(with(&|o| o.branches[0].images = Some(vec![1, 1])).contains("chosen twice"));
    assert!(with(&|o| o.branches[1].images = Some(vec![3])).contains('3'));
    assert!(with(&|o| o.branches[1].scale = 2.0).contains("scale 2"));
    assert!(with(&|o| o.angles = Some((angles(1, 4, 4, DType::F64), angles(1, 4, 4, DType::F64)))).contains("keys"));
    let mut bad = good.clone();
    bad.contract.weight = bad.expand.weight.clone();
    assert!(refusal(&bad, options(CROSS)).contains("contract.weight"));
    let mut computed = good.clone();
    let var = Var::from_tensor(&good.expand.weight).unwrap();
    computed.expand.weight = linear(var.as_tensor(), &good.queries.weight, None).unwrap();
    assert!(refusal(&computed, options(CROSS)).contains("expand.weight is computed"));
    assert!(block(&x, None, &good, options(CROSS)).is_err(), "keys take the width of a context");
}

#[test]
fn threads_do_not_change_a_bit() {
    let large = Case { batch: 6, tokens: 50, context: Some((60, 40)), heads: 2, size: 24, hidden: 200, biases: true };
    for case in [large, Case { context: None, ..large }] {
        same_for_any_threads(|| {
            let run = |v: &[Tensor]| {
                let (x, context, weights) = case.split(v);
                block(&x, context.as_ref(), &weights, all_of_it(case, DType::F32))
            };
            output_and_gradients(&case.inputs(), DType::F32, run)
        })
        .unwrap();
    }
}
