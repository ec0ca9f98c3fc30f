//! The image operations against the reference tensors of MOCA (specification, section 21): every entry, byte for byte.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may stop at a surprise")]

use occlude_data::{CropBox, CropConfig, EvalMode, EvalTransform, Image, Interpolation, Normalize, ops};
use occlude_golden::Tensors;

fn image(tensors: &Tensors, name: &str) -> Image {
    let tensor = &tensors[name];
    let (height, width, _) = tensor.dims3().unwrap();
    Image { width, height, pixels: tensor.flatten_all().unwrap().to_vec1().unwrap() }
}

/// What a word says: its letters, then its number (`contrast0.7`).
fn word(text: &str) -> (&str, f64) {
    let number = text.find(|letter: char| letter.is_ascii_digit() || letter == '-').unwrap_or(text.len());
    let (name, number) = text.split_at(number);
    (name, number.parse().unwrap_or_else(|_| panic!("{text} holds no number")))
}

/// The sides in `t3_l5_h60_w80_to48`.
fn sides<const N: usize>(text: &str) -> [usize; N] {
    let sides: Vec<usize> = text.split('_').map(|text| word(text).1 as usize).collect();
    sides.try_into().unwrap()
}

fn interpolation(name: &str) -> Interpolation {
    match name {
        "bilinear" => Interpolation::Bilinear,
        "bicubic" => Interpolation::Bicubic,
        _ => panic!("no interpolation is called {name}"),
    }
}

/// `resized_crop_down_t3_l5_h60_w80_to48`: bilinear.
fn crop(image: &Image, numbers: &str) -> Image {
    let (_, numbers) = numbers.split_once('_').unwrap();
    let [top, left, height, width, size] = sides(numbers);
    let crop = CropConfig { size, interpolation: Interpolation::Bilinear, ..CropConfig::default() };
    crop.check().unwrap().cut(image, CropBox { top, left, height, width })
}

/// `eval_resize48_bicubic`, perhaps with `_centercrop42`.
fn evaluation(image: &Image, name: &str) -> Image {
    let mut words = name.split('_');
    let (_, resize) = word(words.next().unwrap());
    let interpolation = interpolation(words.next().unwrap());
    let crop = words.next().map(|text| word(text).1);
    let (resize, size) = (resize as usize, crop.unwrap_or(resize) as usize);
    let normalize = Normalize::new([0.0; 3], [1.0; 3]).unwrap();
    let transform = EvalTransform::new(size, EvalMode::ShortSide { resize }, normalize).unwrap();
    let transform = transform.with_interpolation(interpolation);
    if crop.is_some() { transform.picture(image) } else { transform.resized(image) }
}

fn change(image: &mut Image, name: &str, value: f64) {
    match name {
        "brightness" => ops::brightness(image, value as f32),
        "contrast" => ops::contrast(image, value as f32),
        "saturation" => ops::saturation(image, value as f32),
        "hue" => ops::hue(image, value),
        "gaussian_blur_radius" => ops::blur(image, value as f32),
        "solarize" => ops::solarise(image, value as u8),
        _ => panic!("no operation is called {name}"),
    }
}

/// Mirrored by way of the numbers that a view is written as.
fn mirrored(image: &Image) -> Image {
    let mut out = vec![0.0; image.pixels.len()];
    Normalize::new([0.0; 3], [1.0; 3]).unwrap().write(image, true, &mut out);
    let plane = image.width * image.height;
    let pixels = (0..out.len()).map(|at| (out[at % 3 * plane + at / 3] * 255.0).round() as u8).collect();
    Image { pixels, ..*image }
}

#[test]
fn golden_moca_aug_ops_are_bit_exact() {
    let Some(tensors) = occlude_golden::set("moca").tensors("aug_ops") else { return };
    let input = image(&tensors, "input");
    let start = tensors.keys().find(|name| name.starts_with("resized_crop_down_")).unwrap();
    let start = image(&tensors, start);
    for name in tensors.keys().filter(|name| *name != "input" && *name != "to_tensor_normalized") {
        let mut made = start.clone();
        if let Some(numbers) = name.strip_prefix("resized_crop_") {
            made = crop(&input, numbers);
        } else if let Some(rest) = name.strip_prefix("eval_") {
            made = evaluation(&input, rest);
        } else if let Some(chain) = name.strip_prefix("jitter_chain_") {
            chain.split('_').map(word).for_each(|(name, value)| change(&mut made, name, value));
        } else if name == "grayscale3" {
            ops::grey(&mut made);
        } else if name == "hflip" {
            made = mirrored(&made);
        } else {
            let (name, value) = name.rsplit_once('_').unwrap();
            change(&mut made, name, value.parse().unwrap());
        }
        assert!(made == image(&tensors, name), "{name}");
    }
    let mut normalised = vec![0.0; start.pixels.len()];
    let imagenet = Normalize::new(Normalize::IMAGENET_MEAN, Normalize::IMAGENET_STD).unwrap();
    imagenet.write(&start, false, &mut normalised);
    let reference: Vec<f32> = tensors["to_tensor_normalized"].flatten_all().unwrap().to_vec1().unwrap();
    assert!(normalised == reference, "to_tensor_normalized");
}
