//! The linear map with what follows it, against the same operators one by one.

use super::{LinearOptions, linear_with};
use crate::check::{
    check_differences, check_large, check_op, check_op_with, output_and_gradients, same, same_for_any_threads, sample,
};
use crate::tiles::{Path, Split, Tiles};
use crate::{Activation, Branch, PrecisionScope, Result, reference};
use candle_core::{DType, Device, Tensor, Var};

/// Images of the residual, tokens, in, out.
const SIZES: [[usize; 4]; 4] = [[3, 2, 5, 7], [3, 1, 1, 1], [4, 3, 7, 2], [3, 5, 3, 17]];
const ACTIVATIONS: [Option<Activation>; 2] = [None, Some(Activation::Gelu)];

fn branches() -> [Branch; 3] {
    [Branch::all(), Branch { images: Some(vec![2, 0]), scale: 1.5 }, Branch { images: Some(vec![1]), scale: -0.5 }]
}

/// x, w, b, residual for a branch.
fn inputs([batch, tokens, inner, out]: [usize; 4], branch: &Branch) -> [Tensor; 4] {
    let images = branch.images.as_ref().map_or(batch, Vec::len);
    let shapes = [vec![images, tokens, inner], vec![out, inner], vec![out], vec![batch, tokens, out]];
    let mut seed = 0;
    shapes.map(|shape| {
        seed += 1;
        (sample(seed, shape).unwrap() * 1.5).unwrap()
    })
}

type Operator = fn(&Tensor, &Tensor, Option<&Tensor>, &LinearOptions<'_>) -> Result<Tensor>;

/// x, w, b, residual.
fn run(op: Operator, v: &[Tensor], activation: Option<Activation>, branch: &Branch) -> Result<Tensor> {
    op(&v[0], &v[1], Some(&v[2]), &LinearOptions { activation, residual: Some(&v[3]), branch: branch.clone() })
}

#[test]
fn matches_its_reference_and_its_gradient_without_a_residual() {
    for size in SIZES {
        for activation in ACTIVATIONS {
            let options = LinearOptions { activation, ..LinearOptions::default() };
            let v = inputs(size, &Branch::all());
            let with = |op: Operator| {
                move |v: &[Tensor]| {
                    op(&v[0], &v[1], v.get(2), &LinearOptions { activation, ..LinearOptions::default() })
                }
            };
            for given in [2, 3] {
                check_op(&v[..given], with(linear_with), with(reference::linear_with)).unwrap();
            }
            assert!(
                linear_with(&v[0], &v[1], None, &options).unwrap().dims() == [&v[0].dims()[..2], &[size[3]]].concat()
            );
        }
    }
}

#[test]
fn matches_its_reference_and_its_gradient_with_a_residual() {
    for size in SIZES {
        for (activation, branch) in ACTIVATIONS.iter().flat_map(|a| branches().map(|branch| (*a, branch))) {
            let [x, w, b, residual] = inputs(size, &branch);
            let with = |op: Operator| {
                let branch = &branch;
                move |v: &[Tensor], c: &[Tensor]| {
                    run(op, &[v[0].clone(), v[1].clone(), c[0].clone(), v[2].clone()], activation, branch)
                }
            };
            let tracked = [x.clone(), w.clone(), residual.clone()];
            check_op_with(&tracked, std::slice::from_ref(&b), with(linear_with), with(reference::linear_with)).unwrap();
            // A residual that is not trained: the bias stands in the graph.
            let with = |op: Operator| {
                let branch = &branch;
                move |v: &[Tensor], c: &[Tensor]| {
                    run(op, &[v[0].clone(), v[1].clone(), v[2].clone(), c[0].clone()], activation, branch)
                }
            };
            check_op_with(&[x, w, b], &[residual], with(linear_with), with(reference::linear_with)).unwrap();
        }
    }
}

#[test]
fn a_bias_beside_a_residual_has_its_gradient() {
    for (activation, branch) in ACTIVATIONS.iter().flat_map(|a| branches().map(|branch| (*a, branch))) {
        let v = inputs([3, 2, 5, 7], &branch);
        check_differences(&v, |v| run(linear_with, v, activation, &branch)).unwrap();
        check_large(
            &inputs([40, 13, 33, 210], &branch),
            |v| run(linear_with, v, activation, &branch),
            |v| run(reference::linear_with, v, activation, &branch),
        )
        .unwrap();
    }
}

#[test]
fn only_what_is_trained_has_a_gradient() {
    let branch = &branches()[1];
    for trained in 0..4 {
        let mut v = inputs([3, 2, 5, 7], branch);
        v[trained] = Var::from_tensor(&v[trained]).unwrap().into_inner();
        let loss = run(linear_with, &v, Some(Activation::Gelu), branch).unwrap().sqr().unwrap().sum_all().unwrap();
        let (gradients, again) = (crate::backward(&loss).unwrap(), crate::backward(&loss).unwrap());
        assert_eq!(gradients.len(), 1);
        let values = gradients.get(&v[trained]).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
        assert!(values.iter().any(|value| *value != 0.0), "input {trained}");
        assert_eq!(again.get(&v[trained]).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap(), values);
    }
    assert!(!run(linear_with, &inputs([3, 2, 5, 7], branch), None, branch).unwrap().track_op());
}

#[test]
fn tiles_finish_as_native_products_do() {
    // Three bf16 to an operand: near f32.
    let tiles = Tiles::new(Path::Scalar, Split::Three).unwrap();
    for (activation, branch) in ACTIVATIONS.iter().flat_map(|a| branches().map(|branch| (*a, branch))) {
        let v = inputs([3, 70, 33, 290], &branch);
        let of = |dtype| output_and_gradients(&v, dtype, |v| run(linear_with, v, activation, &branch)).unwrap();
        let exact = of(DType::F64);
        let rounded = {
            let _scope = PrecisionScope::of(Some(Tiles::new(Path::Scalar, Split::One).unwrap()));
            of(DType::F32)
        };
        let _scope = PrecisionScope::of(Some(tiles));
        for ((got, exact), rounded) in of(DType::F32).iter().zip(&exact).zip(&rounded).take(3) {
            same("tiles", got, exact, 2e-5).unwrap();
            assert!(same("rounded", rounded, exact, 2e-5).is_err(), "the scope decides");
        }
    }
}

#[test]
fn threads_do_not_change_a_bit() {
    for (activation, branch) in ACTIVATIONS.iter().flat_map(|a| branches().map(|branch| (*a, branch))) {
        let v = inputs([9, 101, 64, 410], &branch);
        same_for_any_threads(|| output_and_gradients(&v, DType::F32, |v| run(linear_with, v, activation, &branch)))
            .unwrap();
        same_for_any_threads(|| {
            let _scope = PrecisionScope::of(Some(Tiles::new(Path::Scalar, Split::One).unwrap()));
            output_and_gradients(&v, DType::F32, |v| run(linear_with, v, activation, &branch))
        })
        .unwrap();
    }
}

#[test]
fn empty_inputs_give_what_is_left() {
    let gelu = Some(Activation::Gelu);
    let none = Branch { images: Some(vec![]), scale: 2.0 };
    let v = inputs([3, 2, 5, 7], &none);
    same("no image", &run(linear_with, &v, gelu, &none).unwrap(), &v[3], 0.0).unwrap();
    for size in [[0, 2, 5, 7], [3, 0, 5, 7], [3, 2, 0, 7], [3, 2, 5, 0]] {
        let v = inputs(size, &Branch::all());
        let of = |op: Operator| output_and_gradients(&v, DType::F64, |v| run(op, v, gelu, &Branch::all()));
        // Candle's own graph gives empty inputs no gradient, so outputs alone are compared.
        let (got, expected) =
            (of(linear_with).unwrap(), run(reference::linear_with, &v, gelu, &Branch::all()).unwrap());
        same("empty", &got[0], &expected, 1e-12).unwrap();
        got[1..].iter().zip(&v).for_each(|(gradient, input)| assert_eq!(gradient.dims(), input.dims()));
    }
}

#[test]
fn nan_stays_in_its_image() {
    let branch = &branches()[1];
    let mut v = inputs([3, 2, 5, 7], branch);
    let mut values = v[0].flatten_all().unwrap().to_vec1::<f64>().unwrap();
    values[0] = f64::NAN;
    v[0] = Tensor::from_vec(values, v[0].shape(), &Device::Cpu).unwrap();
    let y = run(linear_with, &v, Some(Activation::Gelu), branch).unwrap();
    let images: Vec<Vec<f64>> = y.flatten_from(1).unwrap().to_vec2().unwrap();
    // The first image of x is the last of the residual.
    assert!(images[2][..7].iter().all(|value| value.is_nan()) && images[2][7..].iter().all(|value| value.is_finite()));
    assert!(images[..2].iter().flatten().all(|value| value.is_finite()));
}

#[test]
fn what_does_not_fit_is_refused_by_name() {
    let branch = branches()[1].clone();
    let [x, w, b, residual] = inputs([3, 2, 5, 7], &branch);
    let refusal = |x: &Tensor, b: &Tensor, residual: Option<&Tensor>, branch: Branch| {
        let options = LinearOptions { activation: None, residual, branch };
        linear_with(x, &w, Some(b), &options).unwrap_err().to_string()
    };
    let of = |images: &[u32]| Branch { images: Some(images.to_vec()), scale: 1.0 };
    assert_eq!(
        refusal(&residual, &b, None, Branch::all()),
        "linear_with: expected x of shape [.., 5], got shape [3, 2, 7]"
    );
    assert!(refusal(&x, &x, None, Branch::all()).contains("a bias"));
    assert!(refusal(&x, &b.to_dtype(DType::F32).unwrap(), None, Branch::all()).contains("dtype F64"));
    assert!(refusal(&x, &b, None, branch.clone()).contains("without a residual"));
    assert!(refusal(&x, &b, Some(&residual), Branch::all()).contains("x has 2 images"));
    assert!(refusal(&x, &b, Some(&x), branch.clone()).contains("row 2 of a tensor of 2 rows"));
    assert!(refusal(&x, &b, Some(&residual), of(&[1, 1])).contains("image 1 is chosen twice"));
    assert!(refusal(&x, &b, Some(&residual), Branch { images: None, scale: 2.0 }).contains("scale 2"));
    assert!(
        refusal(&x, &b, Some(&residual.narrow(1, 0, 1).unwrap()), branch.clone())
            .contains("a residual of shape [3, 2, 7]")
    );
    assert!(
        refusal(&x.get(0).unwrap().get(0).unwrap(), &b, Some(&residual), branch.clone()).contains("[images, .., in]")
    );
    let computed = (Var::from_tensor(&b).unwrap().as_tensor() * 2.0).unwrap();
    let trained = Var::from_tensor(&residual).unwrap().into_inner();
    assert!(refusal(&x, &computed, Some(&trained), branch).contains("the bias is computed from other tensors"));
    assert!(linear_with(&x, &b, None, &LinearOptions::default()).is_err());
}
