//! The transforms against the reference tensors of CAPI (specification, section 3).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may stop at a surprise")]

use occlude_data::{CropBox, CropConfig, EvalMode, EvalTransform, Image, Normalize, RandomCrop, resize_nearest};
use occlude_golden::Tensors;
use occlude_random::Streams;

fn bytes(tensors: &Tensors, name: &str) -> (Vec<usize>, Vec<u8>) {
    let tensor = &tensors[name];
    (tensor.dims().to_vec(), tensor.flatten_all().unwrap().to_vec1().unwrap())
}

fn image(tensors: &Tensors) -> Image {
    let (dims, pixels) = bytes(tensors, "image");
    Image { width: dims[1], height: dims[0], pixels }
}

fn crop_of_side(size: usize) -> RandomCrop {
    CropConfig { size, ..CropConfig::default() }.check().unwrap()
}

fn imagenet() -> Normalize {
    Normalize::new(Normalize::IMAGENET_MEAN, Normalize::IMAGENET_STD).unwrap()
}

fn integers(tensors: &Tensors, name: &str) -> Vec<i64> {
    tensors[name].flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn golden_capi_transforms_crops_are_bit_exact() {
    let Some(tensors) = occlude_golden::set("capi").tensors("transforms") else { return };
    let image = image(&tensors);
    let boxes = integers(&tensors, "crop_boxes");
    let flips = integers(&tensors, "crop_flip");
    assert_eq!(boxes.len(), 4 * flips.len());
    for (number, (from, flip)) in boxes.chunks_exact(4).zip(&flips).enumerate() {
        let [top, left, height, width] = [from[0], from[1], from[2], from[3]].map(|side| side as usize);
        let (dims, expected) = bytes(&tensors, &format!("crop{number}.u8"));
        let mut cut = crop_of_side(dims[1]).cut(&image, CropBox { top, left, height, width });
        let mut normalised = vec![0.0_f32; expected.len()];
        imagenet().write(&cut, *flip == 1, &mut normalised);
        if *flip == 1 {
            cut.pixels = cut.pixels.chunks_exact(3 * dims[1]).flat_map(mirrored).collect();
        }
        assert_eq!(cut.pixels, expected, "crop{number}.u8");
        let reference: Vec<f32> =
            tensors[&format!("crop{number}.normalised")].flatten_all().unwrap().to_vec1().unwrap();
        assert_eq!(reference.len(), normalised.len());
        let worst = normalised.iter().zip(&reference).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(worst <= 1e-6, "crop{number}.normalised: off by {worst}");
    }
}

/// A row of RGB pixels from right to left.
fn mirrored(row: &[u8]) -> Vec<u8> {
    row.chunks_exact(3).rev().flatten().copied().collect()
}

#[test]
fn golden_capi_transforms_evaluation_is_bit_exact() {
    let Some(tensors) = occlude_golden::set("capi").tensors("transforms") else { return };
    let image = image(&tensors);
    let picture = |size, mode| EvalTransform::new(size, mode, imagenet()).unwrap().picture(&image).pixels;
    let (dims, expected) = bytes(&tensors, "classif_eval.u8");
    let size = dims[0];
    // The set does not say to what short side the image was resized before the cut.
    let matches = |resize| picture(size, EvalMode::ShortSide { resize }) == expected;
    assert!((size..=2 * size).any(matches), "classif_eval.u8");
    let (dims, expected) = bytes(&tensors, "seg_eval.u8");
    assert_eq!(picture(dims[0], EvalMode::Squash), expected, "seg_eval.u8");
    let (from, labels) = bytes(&tensors, "label");
    let (to, expected) = bytes(&tensors, "label_resized");
    assert_eq!(resize_nearest(&labels, (from[1], from[0]), (to[1], to[0])), expected, "label_resized");
}

#[test]
fn golden_capi_transforms_boxes_have_the_reference_statistics() {
    const BOXES: u64 = 20_000;
    let Some(tensors) = occlude_golden::set("capi").tensors("transforms") else { return };
    let image = image(&tensors);
    let crop = crop_of_side(48);
    let streams = Streams::new(11);
    let drawn: Vec<[f64; 4]> = (0..BOXES)
        .map(|index| crop.draw_box(image.width, image.height, &mut streams.stream("augment/0", 0, index)))
        .map(|found| [found.top, found.left, found.height, found.width].map(|side| side as f64))
        .collect();
    let values = |name: &str| -> Vec<f64> { tensors[name].to_vec1().unwrap() };
    let (means, deviations) = (values("crop_stats.mean_top_left_h_w"), values("crop_stats.std_top_left_h_w"));
    for part in 0..4 {
        let mean = drawn.iter().map(|found| found[part]).sum::<f64>() / BOXES as f64;
        let variance = drawn.iter().map(|found| (found[part] - mean).powi(2)).sum::<f64>() / BOXES as f64;
        // The set does not say how many boxes it drew. If 2,000 or more, the difference of the means has a deviation of
        // at most std * sqrt(1 / 20000 + 1 / 2000) = 0.023 std, that of the deviations about the same. Four of those.
        let allowed = 0.1 * deviations[part];
        assert!((mean - means[part]).abs() < allowed, "part {part}: mean {mean}, reference {}", means[part]);
        let deviation = variance.sqrt();
        assert!((deviation - deviations[part]).abs() < allowed, "part {part}: {deviation}, {}", deviations[part]);
    }
}
