//! What holds for every shape and value, tried on many.
#![allow(clippy::unwrap_used)] // a test stops at the first surprise

use candle_core::{D, DType, Tensor};
use occlude_kernels::check::{check_op, check_op_with, same, sample};
use occlude_kernels::{
    Activation, Affine, Angles, BlockOptions, BlockWeights, Branch, LinearOptions, Measure, NormWeights, RankRule,
    Visibility, attention, batch_norm, batch_norm_with, frequency_table, gather_rows, gelu, l2_normalize, layer_norm,
    linear, linear_with, nearest, packed_attention, pixel_loss, position_encode, reference, rms_norm, scatter_add_rows,
    scatter_rows, sinkhorn, soft_cross_entropy, softmax, two_stream_block, weight_norm,
};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;

/// The same cases in every run.
const SEED: RngSeed = RngSeed::Fixed(3);
/// Of sums of f64 in another order.
const ROUNDING: f64 = 1e-11;

fn positive_rows(seed: u64, rows: usize, k: usize) -> Tensor {
    reference::softmax(&sample(seed, (rows, k)).unwrap()).unwrap()
}

/// Some visibility of every kind over `queries` x `keys`, from the bits of `seed`.
fn visibility(kind: usize, seed: u64, batch: usize, queries: usize, keys: usize) -> Visibility {
    let ranks = |salt: u64, n: usize| -> Vec<u32> {
        (0..n as u64).map(|i| ((seed ^ salt).rotate_left(i as u32 * 7) % 4) as u32).collect()
    };
    match kind {
        0 => Visibility::All,
        1 => Visibility::Mask(sample(seed, (queries, keys)).unwrap().ge(-0.5).unwrap()),
        2 => Visibility::Mask(sample(seed, (batch, queries, keys)).unwrap().ge(-0.5).unwrap()),
        3 => Visibility::Ranks { queries: ranks(1, queries), keys: ranks(2, keys), rule: RankRule::AtMost },
        4 => Visibility::Ranks { queries: ranks(1, queries), keys: ranks(2, batch * keys), rule: RankRule::Below },
        _ => {
            let keys = ranks(2, keys).into_iter().zip(ranks(3, keys)).map(|(first, last): (u32, u32)| first..=last);
            Visibility::Ranges { queries: ranks(1, batch * queries), keys: keys.collect() }
        }
    }
}

proptest! {
    // Each case runs the operator some thousand times for the central differences.
    #![proptest_config(ProptestConfig { cases: 32, rng_seed: SEED, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn norms_agree_with_their_references(seed in 1_u64..1000, rows in 1_usize..6, dim in 2_usize..40) {
        let inputs = [sample(seed, (rows, dim)).unwrap(), sample(seed + 1, dim).unwrap(), sample(seed + 2, dim).unwrap()];
        check_op(&inputs[..2], |v| rms_norm(&v[0], Some(&v[1]), 1e-3), |v| reference::rms_norm(&v[0], Some(&v[1]), 1e-3))
            .unwrap();
        check_op(
            &inputs,
            |v| layer_norm(&v[0], Some(&v[1]), Some(&v[2]), 1e-2),
            |v| reference::layer_norm(&v[0], Some(&v[1]), Some(&v[2]), 1e-2),
        )
        .unwrap();
    }

    #[test]
    fn column_norms_agree_with_their_references(seed in 1_u64..1000, rows in 4_usize..9, dim in 1_usize..20) {
        let inputs = [sample(seed, (rows, dim)).unwrap(), sample(seed + 1, dim).unwrap(), sample(seed + 2, dim).unwrap()];
        check_op(
            &inputs,
            |v| Ok(batch_norm(&v[0], Some(&v[1]), Some(&v[2]), 0.1)?.y),
            |v| Ok(reference::batch_norm(&v[0], Some(&v[1]), Some(&v[2]), 0.1)?.y),
        )
        .unwrap();
        let given = [sample(seed + 3, dim).unwrap(), sample(seed + 4, dim).unwrap().sqr().unwrap()];
        check_op_with(
            &inputs,
            &given,
            |v, c| batch_norm_with(&v[0], &c[0], &c[1], Some(&v[1]), Some(&v[2]), 0.1),
            |v, c| reference::batch_norm_with(&v[0], &c[0], &c[1], Some(&v[1]), Some(&v[2]), 0.1),
        )
        .unwrap();
    }

    #[test]
    fn pixel_losses_agree_with_their_reference(
        seed in 1_u64..1000, rows in 1_usize..6, dim in 2_usize..40, eps in prop::option::of(0.01_f64..1.0),
    ) {
        check_op_with(
            &[sample(seed, (rows, dim)).unwrap()],
            &[sample(seed + 1, (rows, dim)).unwrap()],
            |v, x| pixel_loss(&v[0], &x[0], eps),
            |v, x| reference::pixel_loss(&v[0], &x[0], eps),
        )
        .unwrap();
    }

    #[test]
    fn linear_and_gelu_agree_with_their_references(
        seed in 1_u64..1000, rows in 1_usize..6, inner in 1_usize..20, outer in 1_usize..20,
    ) {
        let inputs =
            [sample(seed, (rows, inner)).unwrap(), sample(seed + 1, (outer, inner)).unwrap(), sample(seed + 2, outer).unwrap()];
        check_op(&inputs, |v| linear(&v[0], &v[1], Some(&v[2])), |v| reference::linear(&v[0], &v[1], Some(&v[2]))).unwrap();
        check_op(&inputs[..1], |v| gelu(&(&v[0] * 4.0)?), |v| reference::gelu(&(&v[0] * 4.0)?)).unwrap();
    }

    #[test]
    fn finished_linear_maps_agree_with_their_reference(
        seed in 1_u64..1000, tokens in 1_usize..4, inner in 1_usize..20, outer in 1_usize..20, gelu in any::<bool>(),
        images in prop::sample::subsequence(vec![0_u32, 1, 2, 3], 1..=4).prop_shuffle(), scale in -2.0_f64..2.0,
    ) {
        let inputs = [
            sample(seed, (images.len(), tokens, inner)).unwrap(),
            sample(seed + 1, (outer, inner)).unwrap(),
            sample(seed + 2, (4, tokens, outer)).unwrap(),
        ];
        let (activation, branch) = (gelu.then_some(Activation::Gelu), Branch { images: Some(images), scale });
        let run = |op: fn(&Tensor, &Tensor, Option<&Tensor>, &LinearOptions<'_>) -> occlude_kernels::Result<Tensor>| {
            let branch = branch.clone();
            move |v: &[Tensor], b: &[Tensor]| {
                let options = LinearOptions { activation, residual: Some(&v[2]), branch: branch.clone() };
                op(&v[0], &v[1], Some(&b[0]), &options)
            }
        };
        check_op_with(
            &inputs,
            &[sample(seed + 3, outer).unwrap()],
            run(linear_with),
            run(reference::linear_with),
        )
        .unwrap();
    }

    #[test]
    fn softmax_and_its_loss_agree_with_their_references(
        seed in 1_u64..1000, rows in 1_usize..6, k in 2_usize..40, temperature in 0.05_f64..2.0,
    ) {
        let logits = [sample(seed, (rows, k)).unwrap()];
        check_op(&logits, |v| softmax(&v[0]), |v| reference::softmax(&v[0])).unwrap();
        check_op_with(
            &logits,
            &[positive_rows(seed + 1, rows, k)],
            |v, t| soft_cross_entropy(&v[0], &t[0], temperature),
            |v, t| reference::soft_cross_entropy(&v[0], &t[0], temperature),
        )
        .unwrap();
    }

    #[test]
    fn unit_rows_and_split_weights_agree_with_their_references(
        seed in 1_u64..1000, rows in 1_usize..6, dim in 2_usize..40,
    ) {
        let inputs = [sample(seed, (rows, dim)).unwrap(), sample(seed + 1, (rows, 1)).unwrap()];
        check_op(&inputs[..1], |v| l2_normalize(&v[0], 1e-7), |v| reference::l2_normalize(&v[0], 1e-7)).unwrap();
        check_op(&inputs, |v| weight_norm(&v[0], &v[1], 1e-8), |v| reference::weight_norm(&v[0], &v[1], 1e-8)).unwrap();
    }

    #[test]
    fn row_moves_agree_with_their_references(
        seed in 1_u64..1000, rows in 1_usize..8, width in 1_usize..20, picks in prop::collection::vec(any::<u32>(), 1..10),
    ) {
        let index: Vec<u32> = picks.iter().map(|pick| pick % rows as u32).collect();
        let mut unique = index.clone();
        unique.sort_unstable();
        unique.dedup();
        unique.reverse();
        let base = sample(seed, (rows, width)).unwrap();
        let src = sample(seed + 1, (index.len(), width)).unwrap();
        let inputs = [base.clone(), src.clone()];
        check_op(&inputs[..1], |v| gather_rows(&v[0], &index), |v| reference::gather_rows(&v[0], &index)).unwrap();
        check_op(
            &inputs,
            |v| scatter_add_rows(&v[0], &index, &v[1], 0.75),
            |v| reference::scatter_add_rows(&v[0], &index, &v[1], 0.75),
        )
        .unwrap();
        let inputs = [base, src.narrow(0, 0, unique.len()).unwrap()];
        check_op(&inputs, |v| scatter_rows(&v[0], &unique, &v[1]), |v| reference::scatter_rows(&v[0], &unique, &v[1]))
            .unwrap();
    }

    #[test]
    fn attention_agrees_with_its_reference(
        seed in 1_u64..1000, batch in 1_usize..3, queries in 1_usize..6, keys in 1_usize..6, heads in 1_usize..4,
        size in 1_usize..6, kind in 0_usize..6,
    ) {
        let part = |salt, n: usize| sample(seed + salt, (batch, n, heads * size)).unwrap();
        let inputs = [part(0, queries), part(1, keys), part(2, keys)];
        let seen = visibility(kind, seed, batch, queries, keys);
        check_op(
            &inputs,
            |v| attention(&v[0], &v[1], &v[2], heads, &seen),
            |v| reference::attention(&v[0], &v[1], &v[2], heads, &seen),
        )
        .unwrap();
    }

    #[test]
    fn packed_attention_agrees_with_its_reference(
        seed in 1_u64..1000, batch in 1_usize..3, tokens in 1_usize..6, heads in 1_usize..4, size in 1_usize..6,
        kind in 0_usize..6,
    ) {
        let qkv = [sample(seed, (batch, tokens, 3 * heads * size)).unwrap()];
        let seen = visibility(kind, seed, batch, tokens, tokens);
        check_op(
            &qkv,
            |v| packed_attention(&v[0], heads, &seen),
            |v| reference::packed_attention(&v[0], heads, &seen),
        )
        .unwrap();
    }

    #[test]
    fn two_streams_agree_with_their_reference(
        seed in 1_u64..1000, batch in 1_usize..3, content in 1_usize..6, query in 0_usize..6, heads in 1_usize..3,
        size in 1_usize..4, hidden in 1_usize..6, kind in 0_usize..6,
    ) {
        let dim = heads * size;
        let inputs = [sample(seed, (batch, content, dim)).unwrap(), sample(seed + 1, (batch, query, dim)).unwrap()];
        let tensor = |salt: u64, shape: &[usize], dtype| sample(seed + salt, shape).unwrap().to_dtype(dtype).unwrap();
        // A floor under the root that keeps a nearly constant token from magnifying rounding.
        let norm =
            |salt, dtype| NormWeights { weight: tensor(salt, &[dim], dtype), bias: None, centred: salt % 2 == 0, eps: 0.1 };
        let map = |salt, out, inner, dtype| Affine {
            weight: tensor(salt, &[out, inner], dtype),
            bias: (salt % 2 == 0).then(|| tensor(salt + 20, &[out], dtype)),
        };
        let weights = |dtype| BlockWeights {
            norm1: norm(2, dtype),
            queries: map(3, dim, dim, dtype),
            keys: map(4, dim, dim, dtype),
            values: map(5, dim, dim, dtype),
            projection: map(6, dim, dim, dtype),
            norm2: norm(7, dtype),
            expand: map(8, hidden, dim, dtype),
            contract: map(9, dim, hidden, dtype),
        };
        let visibility = visibility(kind, seed, batch, content + query, content);
        let options = || BlockOptions { visibility: visibility.clone(), ..BlockOptions::new(heads) };
        let both = |(content, query): (Tensor, Tensor)| Ok(Tensor::cat(&[content, query], 1)?);
        check_op_with(
            if query == 0 { &inputs[..1] } else { &inputs },
            if query == 0 { &inputs[1..] } else { &[] },
            |v, rest| both(two_stream_block(&v[0], v.get(1).unwrap_or_else(|| &rest[0]), &weights(v[0].dtype()), options())?),
            |v, rest| {
                let query = v.get(1).unwrap_or_else(|| &rest[0]);
                both(reference::two_stream_block(&v[0], query, &weights(v[0].dtype()), options())?)
            },
        )
        .unwrap();
    }

    #[test]
    fn positions_agree_with_their_reference(
        seed in 1_u64..1000, batch in 1_usize..3, tokens in 1_usize..6, heads in 1_usize..4, quarter in 1_usize..5,
    ) {
        let x = sample(seed, (batch, tokens, heads * quarter * 4)).unwrap();
        let coords = sample(seed + 1, (batch, tokens, 2)).unwrap();
        let table = frequency_table(quarter * 4).unwrap();
        let table = Tensor::from_vec(table, (2, quarter * 4), x.device()).unwrap();
        let angles = |dtype: DType| Angles::new(&coords.to_dtype(dtype)?, &table.to_dtype(dtype)?);
        check_op(
            &[x],
            |v| position_encode(&v[0], &angles(v[0].dtype())?, heads),
            |v| reference::position_encode(&v[0], &angles(v[0].dtype())?, heads),
        )
        .unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, rng_seed: SEED, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn assignments_are_balanced(
        seed in 1_u64..1000, groups in 1_usize..4, samples in 1_usize..20, k in 1_usize..40, iterations in 1_usize..6,
    ) {
        let logits = sample(seed, (groups, samples, k)).unwrap();
        let got = sinkhorn(&logits, 0.5, iterations).unwrap();
        same("sinkhorn", &got, &reference::sinkhorn(&logits, 0.5, iterations).unwrap(), ROUNDING).unwrap();
        // Rows end normalised, but for the 1e-8 beside a sum of 1e-3 at least; a common shift of a prototype's logits is
        // absorbed.
        let sums = got.sum(D::Minus1).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
        prop_assert!(sums.iter().all(|sum| (1.0 - 2e-5..1.0).contains(sum)), "{sums:?}");
        let shifted = logits.broadcast_add(&sample(seed + 1, (groups, 1, k)).unwrap()).unwrap();
        same("shifted", &sinkhorn(&shifted, 0.5, iterations).unwrap(), &got, 1e-9).unwrap();
    }

    #[test]
    fn no_centroid_is_nearer_than_the_nearest(
        seed in 1_u64..1000, rows in 1_usize..80, k in 1_usize..1200, dim in 1_usize..40,
    ) {
        let (x, centroids) = (sample(seed, (rows, dim)).unwrap(), sample(seed + 1, (k, dim)).unwrap());
        let products = x.matmul(&centroids.t().unwrap()).unwrap();
        let found = nearest(&x, &centroids, Measure::Dot).unwrap();
        same("largest", &found.values, &products.max(1).unwrap(), ROUNDING).unwrap();
        let found = nearest(&x, &centroids, Measure::Euclidean).unwrap();
        let picked = centroids.index_select(&found.indices, 0).unwrap();
        let distance = (&x - &picked).unwrap().sqr().unwrap().sum(1).unwrap();
        same("distance", &found.values, &distance, ROUNDING).unwrap();
        let lengths = |t: &Tensor| t.sqr().unwrap().sum(1).unwrap();
        let all = (products * -2.0).unwrap().broadcast_add(&lengths(&x).unsqueeze(1).unwrap()).unwrap();
        let smallest = all.broadcast_add(&lengths(&centroids)).unwrap().min(1).unwrap();
        same("smallest", &found.values, &smallest, 1e-10).unwrap();
        // A centroid is its own nearest.
        let itself = nearest(&centroids, &centroids, Measure::Euclidean).unwrap();
        prop_assert_eq!(itself.indices.to_vec1::<u32>().unwrap(), (0..k as u32).collect::<Vec<_>>());
    }

    #[test]
    fn softmax_rows_sum_to_one_and_ignore_a_shift(seed in 1_u64..1000, rows in 1_usize..9, k in 1_usize..300, shift in -1e3_f64..1e3) {
        let x = sample(seed, (rows, k)).unwrap();
        let y = softmax(&x).unwrap();
        same("sums", &y.sum(D::Minus1).unwrap(), &Tensor::ones(rows, DType::F64, x.device()).unwrap(), ROUNDING).unwrap();
        same("shift", &softmax(&(&x + shift).unwrap()).unwrap(), &y, ROUNDING).unwrap();
    }

    #[test]
    fn what_is_gathered_is_what_was_scattered(seed in 1_u64..1000, rows in 1_usize..30, width in 1_usize..70, keep in 1_usize..30) {
        let x = sample(seed, (rows, width)).unwrap();
        // A permutation of the rows by a stride without common factor, cut short.
        let stride = (1..=rows).rev().find(|&stride| gcd(stride, rows) == 1).unwrap();
        let index: Vec<u32> = (0..keep.min(rows)).map(|i| (i * stride % rows) as u32).collect();
        let part = gather_rows(&x, &index).unwrap();
        let back = scatter_rows(&x.zeros_like().unwrap(), &index, &part).unwrap();
        same("gathered", &gather_rows(&back, &index).unwrap(), &part, 0.0).unwrap();
        let added = scatter_add_rows(&x, &index, &part, -1.0).unwrap();
        same("parts", &(added + back).unwrap(), &x, 0.0).unwrap();
    }
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}
