//! What a prediction depends on: earlier segments, the first one on itself, nothing else.

use super::{ARCHITECTURES, IMAGES, PATCHES, build_as, images, of};
use crate::randsac::{Randsac, RandsacConfig};
use candle_core::{DType, Tensor};
use occlude_kernels::check::stir;
use occlude_kernels::{Visibility, gather_rows};
use occlude_masking::{SegmenterConfig, SegmentsKind, sees_content, sees_memory};
use occlude_vit::Sights;

fn kinds() -> Vec<SegmenterConfig> {
    let of = |kind| SegmenterConfig { kind, ..SegmenterConfig::default() };
    let blobs = |blobs: &[usize]| SegmenterConfig { blobs: blobs.to_vec(), ..of(SegmentsKind::Blob) };
    vec![
        of(SegmentsKind::Raster),
        of(SegmentsKind::Random),
        of(SegmentsKind::Square),
        blobs(&[4]),
        blobs(&[5, 3]),
        blobs(&[6, 4, 2]),
        SegmenterConfig { shuffled: true, ..blobs(&[4]) },
    ]
}

/// The prediction of every patch of an image.
fn predicted(method: &Randsac, images: &Tensor, sights: &Sights, image: usize) -> Vec<Vec<f64>> {
    method.network().predict(images, sights).unwrap().get(image).unwrap().to_vec2().unwrap() // [patches, pixels]
}

/// The images with one patch of one of them moved a little.
fn nudged(images: &Tensor, image: usize, patch: usize) -> Tensor {
    let (side, width) = (4, 16);
    let mut values: Vec<f64> = images.flatten_all().unwrap().to_vec1().unwrap();
    let (top, left) = (patch / 4 * side, patch % 4 * side);
    for channel in 0..3 {
        for row in top..top + side {
            for col in left..left + side {
                values[((image * 3 + channel) * width + row) * width + col] += 1e-3 * (1 + row + 2 * col) as f64;
            }
        }
    }
    Tensor::from_vec(values, images.shape(), images.device()).unwrap()
}

/// By moving pixels: no gradient is given to them.
#[test]
fn a_prediction_depends_on_what_the_memory_rule_lets_it_see() {
    let (images, image) = (images(3).to_dtype(DType::F64).unwrap(), 1);
    for architecture in ARCHITECTURES {
        for segments in kinds() {
            let method = build_as(&RandsacConfig { segments: segments.clone(), ..of(architecture) }, DType::F64);
            stir(&method.trained, 0.2).unwrap();
            let ranks = method.ranks(IMAGES, &super::context(5));
            let (sights, own) = (Sights::of(&ranks, PATCHES), &ranks[image * PATCHES..][..PATCHES]);
            let before = predicted(&method, &images, &sights, image);
            for moved in 0..PATCHES {
                let after = predicted(&method, &nudged(&images, image, moved), &sights, image);
                for patch in 0..PATCHES {
                    let pairs = before[patch].iter().zip(&after[patch]);
                    let apart = pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
                    let what = format!("{architecture:?}, {segments:?}: patch {patch} of {moved}: {apart:e}");
                    let sees = sees_memory(own[patch], own[moved]);
                    assert!(if sees { apart > 1e-9 } else { apart == 0.0 }, "{what}");
                }
            }
        }
    }
}

/// Dense tables of pairs, built from the plain rules, are the judge of ranks.
#[test]
fn ranks_are_what_the_tables_of_pairs_say() {
    for architecture in ARCHITECTURES {
        let method = build_as(&of(architecture), DType::F64);
        stir(&method.trained, 0.2).unwrap();
        let (images, ranks) = (images(1).to_dtype(DType::F64).unwrap(), method.ranks(IMAGES, &super::context(2)));
        let table = |rules: &[fn(u32, u32) -> bool]| {
            let of_image = |ranks: &[u32]| -> Vec<u8> {
                let rows = rules.iter().flat_map(|rule| ranks.iter().map(move |query| (rule, query)));
                rows.flat_map(|(rule, query)| ranks.iter().map(|key| u8::from(rule(*query, *key)))).collect()
            };
            let pairs: Vec<u8> = ranks.chunks(PATCHES).flat_map(of_image).collect();
            let shape = (IMAGES, rules.len() * PATCHES, PATCHES);
            Visibility::Mask(Tensor::from_vec(pairs, shape, images.device()).unwrap())
        };
        let dense = Sights {
            content: table(&[sees_content]),
            memory: table(&[sees_memory]),
            both: table(&[sees_content, sees_memory]),
        };
        let by_ranks = method.step_with(&images, &ranks).unwrap();
        let by_pairs = method.step_seeing(&images, &ranks, &dense).unwrap();
        // Up to rounding: by ranks, the sums of attention come in another order.
        assert_eq!(by_ranks.losses.len(), by_pairs.losses.len());
        for ((name, by_ranks), (other, by_pairs)) in by_ranks.losses.iter().zip(&by_pairs.losses) {
            assert_eq!(name, other);
            assert!((by_ranks / by_pairs - 1.0).abs() < 1e-12, "{architecture:?}: {by_ranks} and {by_pairs}");
        }
        for param in method.trained.trained() {
            let of = |gradients: &occlude_kernels::Gradients| gradients.get(&param.tensor).unwrap().clone();
            let off = (of(&by_ranks.gradients) - of(&by_pairs.gradients)).unwrap();
            // Not relative: the biases of keys have no gradient but rounding.
            let off = off.abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar::<f64>().unwrap();
            assert!(off < 1e-12, "{architecture:?}: {}: {off:e}", param.name);
        }
    }
}

#[test]
fn images_of_a_batch_do_not_meet() {
    let method = build_as(&of(ARCHITECTURES[1]), DType::F64);
    let (all, ranks) = (images(1).to_dtype(DType::F64).unwrap(), method.ranks(IMAGES, &super::context(2)));
    let losses = method.losses(&all, &Sights::of(&ranks, PATCHES)).unwrap();
    let (one, own) = (all.narrow(0, 2, 1).unwrap(), &ranks[2 * PATCHES..]);
    let alone = method.losses(&one.contiguous().unwrap(), &Sights::of(own, PATCHES)).unwrap();
    let rows: Vec<u32> = (2 * PATCHES as u32..3 * PATCHES as u32).collect();
    let together = gather_rows(&losses.unsqueeze(1).unwrap(), &rows).unwrap().squeeze(1).unwrap();
    let apart = occlude_golden::relative_difference(&alone, &together);
    assert!(apart < 1e-12, "{apart:e}");
}
