//! Two streams against the same operators one by one, and against central differences.

use super::tests::{angles, largest, weights};
use super::{BlockOptions, BlockWeights, Branch, block, joined_stream_block, two_stream_block};
use crate::check::{F32, F64, check_differences, check_op, output_and_gradients, same, same_for_any_threads, sample};
use crate::{RankRule, Result, Visibility, reference};
use candle_core::{DType, Device, Tensor};

/// Sizes of a case.
#[derive(Clone, Copy)]
struct Case {
    batch: usize,
    /// Tokens of content and of the query stream.
    content: usize,
    query: usize,
    heads: usize,
    size: usize,
    hidden: usize,
    /// Layer norms, and biases everywhere.
    biases: bool,
}

const SMALL: Case = Case { batch: 3, content: 5, query: 3, heads: 2, size: 4, hidden: 7, biases: false };

impl Case {
    /// Content and query stream, then the weights.
    fn inputs(self) -> Vec<Tensor> {
        let (dim, hidden) = (self.heads * self.size, self.hidden);
        let maps = [(dim, dim), (dim, dim), (dim, dim), (dim, dim), (hidden, dim), (dim, hidden)];
        let mut shapes = vec![vec![self.batch, self.content, dim], vec![self.batch, self.query, dim]];
        shapes.extend([vec![dim], vec![dim]]);
        shapes.extend(maps.iter().map(|(out, inner)| vec![*out, *inner]));
        if self.biases {
            shapes.extend([vec![dim], vec![dim]]);
            shapes.extend(maps.iter().map(|(out, _)| vec![*out]));
        }
        shapes.into_iter().enumerate().map(|(i, shape)| sample(i as u64 + 1, shape).unwrap()).collect()
    }

    /// All that can be asked at once: keys that come into sight and keys that leave it, positions, branches.
    fn all_of_it(self, dtype: DType) -> BlockOptions {
        let chosen = |images: &[u32], scale| Branch { images: Some(images.to_vec()), scale };
        let (nk, all) = (self.content as u32, (self.content + self.query) as u32);
        BlockOptions {
            angles: Some((angles(2, all as usize, self.size, dtype), angles(1, nk as usize, self.size, dtype))),
            visibility: Visibility::Ranges {
                queries: (0..2 * all).map(|i| i * 7 % 6).collect(),
                keys: (0..nk).map(|j| if j % 3 == 1 { 0..=j } else { j * 5 % 6..=u32::MAX }).collect(),
            },
            branches: [chosen(&[2, 0], 1.5), chosen(&[1], 3.0)],
            ..BlockOptions::new(self.heads)
        }
    }

    fn plain(self, _: DType) -> BlockOptions {
        BlockOptions::new(self.heads)
    }
}

type Streams = fn(&Tensor, &Tensor, &BlockWeights, BlockOptions) -> Result<(Tensor, Tensor)>;

/// Both streams in one tensor.
fn joined(f: Streams, v: &[Tensor], biases: bool, options: BlockOptions) -> Result<Tensor> {
    let (content, query) = f(&v[0], &v[1], &weights(&v[2..], biases), options)?;
    Ok(Tensor::cat(&[content, query], 1)?)
}

fn judge(case: Case, options: fn(Case, DType) -> BlockOptions) {
    let inputs = case.inputs();
    // Several operators in a row: each adds its roundings.
    for (dtype, tolerance) in [(DType::F64, 10.0 * F64), (DType::F32, 4.0 * F32)] {
        let run = |f: Streams| {
            output_and_gradients(&inputs, dtype, |v| joined(f, v, case.biases, options(case, dtype))).unwrap()
        };
        // Without positions the gradient of the keys' bias is nothing but rounding.
        let nothing = (case.biases && options(case, dtype).angles.is_none()).then(|| inputs.len() - 4);
        for (i, (got, expected)) in run(two_stream_block).iter().zip(&run(reference::two_stream_block)).enumerate() {
            if nothing == Some(i) {
                let rounding = if dtype == DType::F64 { 1e-12 } else { 1e-4 };
                let most = largest(got).max(largest(expected));
                assert!(most < rounding, "the gradient of the keys' bias in {dtype:?}: {most}");
                continue;
            }
            same(&format!("tensor {i} in {dtype:?}"), got, expected, tolerance).unwrap();
        }
    }
}

#[test]
fn two_streams_match_the_same_operators_one_by_one() {
    for case in [SMALL, Case { biases: true, ..SMALL }, Case { content: 2, query: 7, ..SMALL }] {
        judge(case, Case::plain);
        judge(case, Case::all_of_it);
    }
}

#[test]
fn large_streams_match_as_well() {
    let large = Case { batch: 5, content: 70, query: 37, heads: 3, size: 20, hidden: 130, biases: true };
    judge(Case { biases: false, ..large }, Case::plain);
    judge(large, Case::all_of_it);
}

#[test]
fn the_gradient_is_that_of_central_differences() {
    let case = Case { content: 3, query: 2, heads: 1, hidden: 3, biases: true, ..SMALL };
    let run = |v: &[Tensor]| joined(two_stream_block, v, true, case.all_of_it(DType::F64));
    check_differences(&case.inputs(), run).unwrap();
}

#[test]
fn streams_may_lie_anywhere_in_memory() {
    let inputs = SMALL.inputs();
    let run = |f: Streams, v: &[Tensor]| {
        let rest = inputs[2..].iter().map(|w| w.to_dtype(v[0].dtype()).unwrap());
        let all: Vec<Tensor> = v.iter().cloned().chain(rest).collect();
        joined(f, &all, false, SMALL.all_of_it(v[0].dtype()))
    };
    check_op(&inputs[..2], |v| run(two_stream_block, v), |v| run(reference::two_stream_block, v)).unwrap();
}

#[test]
fn each_stream_is_a_block_of_its_own() {
    let inputs = Case { biases: true, ..SMALL }.inputs();
    let weights = weights(&inputs[2..], true);
    let ranks = |queries: Vec<u32>| Visibility::Ranks { queries, keys: vec![0, 2, 1, 1, 0], rule: RankRule::AtMost };
    let (own, others) = (vec![0, 2, 1, 1, 0], vec![1, 0, 0]);
    let options = |visibility| BlockOptions { visibility, ..BlockOptions::new(2) };
    let both = options(ranks([own.clone(), others.clone()].concat()));
    let (content, query) = two_stream_block(&inputs[0], &inputs[1], &weights, both).unwrap();
    same("content", &content, &block(&inputs[0], None, &weights, options(ranks(own))).unwrap(), F64).unwrap();
    let norm = &weights.norm1;
    let source = crate::layer_norm(&inputs[0], Some(&norm.weight), norm.bias.as_ref(), norm.eps).unwrap();
    let last = block(&inputs[1], Some(&source), &weights, options(ranks(others))).unwrap();
    same("query", &query, &last, F64).unwrap();
}

fn values(t: &Tensor) -> Vec<f32> {
    t.flatten_all().unwrap().to_vec1::<f32>().unwrap()
}

#[test]
fn computing_again_gives_the_same_bits() {
    let run = |recompute: bool| {
        let run = |v: &[Tensor]| {
            joined(two_stream_block, v, false, BlockOptions { recompute, ..SMALL.all_of_it(DType::F32) })
        };
        output_and_gradients(&SMALL.inputs(), DType::F32, run).unwrap()
    };
    for (kept, again) in run(false).iter().zip(&run(true)) {
        assert_eq!(values(kept), values(again));
    }
}

#[test]
fn layers_in_a_row_add_their_gradients_and_may_stay_joined() {
    let twice = |f: Streams| {
        let run = |v: &[Tensor]| {
            let w = weights(&v[2..], false);
            let (content, query) = f(&v[0], &v[1], &w, SMALL.all_of_it(v[0].dtype()))?;
            let (content, query) = f(&content, &query, &w, SMALL.all_of_it(v[0].dtype()))?;
            Ok(Tensor::cat(&[content, query], 1)?)
        };
        output_and_gradients(&SMALL.inputs(), DType::F64, run).unwrap()
    };
    let joined = |v: &[Tensor]| {
        let (w, x) = (weights(&v[2..], false), Tensor::cat(&v[..2], 1)?);
        let x = joined_stream_block(&x, SMALL.content, &w, SMALL.all_of_it(x.dtype()))?;
        joined_stream_block(&x, SMALL.content, &w, SMALL.all_of_it(x.dtype()))
    };
    let joined = output_and_gradients(&SMALL.inputs(), DType::F64, joined).unwrap();
    let apart = twice(two_stream_block);
    for ((got, expected), joined) in apart.iter().zip(&twice(reference::two_stream_block)).zip(&joined) {
        same("twice", got, expected, 10.0 * F64).unwrap();
        same("joined", joined, got, 0.0).unwrap();
    }
}

/// MaPeT's streams of two layers: a prediction depends on the patches visited before it, and on no other.
#[test]
fn a_prediction_depends_on_what_comes_before_it() {
    let (places, cut) = ([0_u32, 3, 5, 1, 2, 4], 2);
    let targets: Vec<usize> = (0..6).filter(|j| places[*j] >= cut).collect();
    let (n, t) = (places.len(), targets.len());
    let mut queries: Vec<u32> = places.iter().map(|place| (*place).max(cut - 1)).collect();
    queries.extend(vec![cut - 1; t]);
    queries.extend(targets.iter().map(|i| places[*i] - 1));
    let mut keys: Vec<_> = places.iter().map(|place| *place..=u32::MAX).collect();
    keys.extend(targets.iter().map(|j| 0..=places[*j] - 1));
    let options = || BlockOptions {
        visibility: Visibility::Ranges { queries: queries.clone(), keys: keys.clone() },
        ..BlockOptions::new(2)
    };
    let case = Case { batch: 1, content: n + t, query: t, ..SMALL };
    let inputs = case.inputs();
    let weights = weights(&inputs[2..], false);
    for (row, target) in targets.iter().enumerate() {
        let content = candle_core::Var::from_tensor(&inputs[0]).unwrap();
        let (c, g) = two_stream_block(content.as_tensor(), &inputs[1], &weights, options()).unwrap();
        let (_, g) = two_stream_block(&c, &g, &weights, options()).unwrap();
        let loss = g.narrow(1, row, 1).unwrap().sqr().unwrap().sum_all().unwrap();
        let gradients = crate::backward(&loss).unwrap();
        let gradient = gradients.get(content.as_tensor()).unwrap();
        for (patch, place) in places.iter().enumerate() {
            let depends = largest(&gradient.narrow(1, patch, 1).unwrap()) > 0.0;
            assert_eq!(depends, *place < places[*target], "target {target}, patch {patch}");
        }
    }
}

#[test]
fn nan_in_a_query_stays_in_its_token() {
    let inputs = SMALL.inputs();
    let mut values = inputs[1].flatten_all().unwrap().to_vec1::<f64>().unwrap();
    values[0] = f64::NAN;
    let query = Tensor::from_vec(values, inputs[1].shape(), &Device::Cpu).unwrap();
    let run = |content: &Tensor, query: &Tensor| {
        let weights = weights(&inputs[2..], false);
        let (content, query) = two_stream_block(content, query, &weights, BlockOptions::new(2)).unwrap();
        [content, query].map(|t| t.flatten_to(1).unwrap().to_vec2::<f64>().unwrap())
    };
    let nan = |rows: &[Vec<f64>]| rows.iter().map(|row| row[0].is_nan()).collect::<Vec<bool>>();
    let [content, others] = run(&inputs[0], &query);
    assert!(!nan(&content).contains(&true));
    assert_eq!(nan(&others), [&[true][..], &[false; 8]].concat());
    let [content, others] = run(&(&inputs[0] * f64::NAN).unwrap(), &inputs[1]);
    assert!(!nan(&content).contains(&false) && !nan(&others).contains(&false), "all read the content");
}

#[test]
fn streams_without_tokens_or_images_work() {
    for case in [
        Case { query: 0, ..SMALL },
        Case { content: 0, ..SMALL },
        Case { batch: 0, ..SMALL },
        Case { content: 0, query: 0, ..SMALL },
    ] {
        let inputs = case.inputs();
        let run = |f: Streams| f(&inputs[0], &inputs[1], &weights(&inputs[2..], false), BlockOptions::new(2)).unwrap();
        let ((content, query), expected) = (run(two_stream_block), run(reference::two_stream_block));
        same("content", &content, &expected.0, F64).unwrap();
        same("query", &query, &expected.1, F64).unwrap();
        let gradients =
            output_and_gradients(&inputs, DType::F64, |v| joined(two_stream_block, v, false, case.plain(DType::F64)));
        assert!(
            gradients.unwrap().iter().all(|t| values(&t.to_dtype(DType::F32).unwrap()).iter().all(|v| v.is_finite()))
        );
    }
}

#[test]
fn what_does_not_fit_is_refused_by_name() {
    let inputs = SMALL.inputs();
    let weights = weights(&inputs[2..], false);
    let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F64, &Device::Cpu).unwrap();
    let refusal = |content: &Tensor, query: &Tensor, options: BlockOptions| {
        two_stream_block(content, query, &weights, options).unwrap_err().to_string()
    };
    let plain = || BlockOptions::new(2);
    let (c, g) = (&inputs[0], &inputs[1]);
    assert!(refusal(&zeros(&[3, 8]), g, plain()).contains("two_stream_block: expected content"));
    assert!(refusal(c, &zeros(&[2, 3, 8]), plain()).contains("a query stream [3, tokens, 8]"));
    assert!(refusal(c, &zeros(&[3, 3, 6]), plain()).contains("a query stream [3, tokens, 8]"));
    assert!(refusal(c, &g.to_dtype(DType::F32).unwrap(), plain()).contains("dtype"));
    let ranks = |queries| Visibility::Ranks { queries, keys: vec![0; 5], rule: RankRule::AtMost };
    let of_content_alone = BlockOptions { visibility: ranks(vec![0; 5]), ..plain() };
    assert!(refusal(c, g, of_content_alone).contains("5 ranks of queries: must be 8 or 3 * 8"));
    let positions = |queries, keys| BlockOptions {
        angles: Some((angles(1, queries, 4, DType::F64), angles(1, keys, 4, DType::F64))),
        ..plain()
    };
    assert!(refusal(c, g, positions(5, 5)).contains("angles of queries [1 or 3, 8, 4]"));
    assert!(refusal(c, g, positions(8, 8)).contains("angles of keys [1 or 3, 5, 4]"));
    let message = joined_stream_block(c, 6, &weights, plain()).unwrap_err().to_string();
    assert!(message.contains("6 tokens with keys among 5"), "{message}");
}

#[test]
fn threads_do_not_change_a_bit() {
    let large = Case { batch: 6, content: 60, query: 45, heads: 2, size: 24, hidden: 200, biases: true };
    same_for_any_threads(|| {
        let run = |v: &[Tensor]| joined(two_stream_block, v, true, large.all_of_it(DType::F32));
        output_and_gradients(&large.inputs(), DType::F32, run)
    })
    .unwrap();
}
