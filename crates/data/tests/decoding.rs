//! Decoding of every kind of pixel, on files written here and on the packs of real images.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may stop at a surprise")]

mod common;

use common::{encoded, open_whole, png, source, write};
use image::{DynamicImage, ImageFormat};
use occlude_data::{Error, decode, open_both};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use tempfile::tempdir;

#[test]
fn every_kind_of_pixel_becomes_rgb() {
    let cases: [(DynamicImage, ImageFormat, [u8; 3]); 12] = [
        (image::GrayImage::from_pixel(5, 3, image::Luma([77])).into(), ImageFormat::Png, [77; 3]),
        (image::GrayAlphaImage::from_pixel(5, 3, image::LumaA([77, 0])).into(), ImageFormat::Png, [77; 3]),
        // Alpha is dropped, not composited.
        (image::RgbaImage::from_pixel(5, 3, image::Rgba([9, 8, 7, 0])).into(), ImageFormat::Png, [9, 8, 7]),
        (gray16(40_000).into(), ImageFormat::Png, [156; 3]),
        // Eight-bit values in a 16-bit file.
        (gray16(200).into(), ImageFormat::Tiff, [200; 3]),
        (gray16(65_535).into(), ImageFormat::Tiff, [255; 3]),
        (rgb16([257, 514, 65_535]).into(), ImageFormat::Tiff, [1, 2, 255]),
        // The same with alpha, which is as wide as it likes.
        (rgba16([200, 9, 0, 65_535]).into(), ImageFormat::Tiff, [200, 9, 0]),
        (rgba16([200, 9, 0, 65_535]).into(), ImageFormat::Png, [200, 9, 0]),
        (image::RgbImage::from_pixel(5, 3, image::Rgb([1, 2, 3])).into(), ImageFormat::Tiff, [1, 2, 3]),
        (image::RgbImage::from_pixel(5, 3, image::Rgb([1, 2, 3])).into(), ImageFormat::WebP, [1, 2, 3]),
        (image::GrayImage::from_pixel(5, 3, image::Luma([128])).into(), ImageFormat::Jpeg, [128; 3]),
    ];
    for (pixels, format, expected) in cases {
        let image = decode(&encoded(&pixels, format), "case").unwrap();
        assert_eq!((image.width, image.height), (5, 3), "{format:?}");
        assert!(image.pixels.chunks_exact(3).all(|pixel| pixel == expected), "{format:?} {:?}", pixels.color());
    }
}

fn gray16(value: u16) -> image::ImageBuffer<image::Luma<u16>, Vec<u16>> {
    image::ImageBuffer::from_pixel(5, 3, image::Luma([value]))
}

fn rgb16(value: [u16; 3]) -> image::ImageBuffer<image::Rgb<u16>, Vec<u16>> {
    image::ImageBuffer::from_pixel(5, 3, image::Rgb(value))
}

fn rgba16(value: [u16; 4]) -> image::ImageBuffer<image::Rgba<u16>, Vec<u16>> {
    image::ImageBuffer::from_pixel(5, 3, image::Rgba(value))
}

/// A baseline JPEG of four components and one 8 x 8 block each, constant: written by hand from the JPEG standard.
/// `transform` is that of the Adobe segment: 0 for CMYK, 2 for YCCK; none without the segment.
fn four_components(values: [u8; 4], transform: Option<u8>) -> Vec<u8> {
    let segment = |marker: u8, body: &[u8]| {
        let length = (body.len() as u16 + 2).to_be_bytes();
        [&[0xFF, marker], &length[..], body].concat()
    };
    let adobe = transform.map(|kind| segment(0xEE, &[b"Adobe\0\x64\0\0\0\0", &[kind][..]].concat()));
    // Quantisation by 8: the DC coefficient of a block of value v is v - 128, as the transform multiplies by 8.
    let quantisation = segment(0xDB, &[&[0][..], &[8; 64]].concat());
    let components: Vec<u8> = (1..=4).flat_map(|id| [id, 0x11, 0]).collect();
    let frame = segment(0xC0, &[&[8, 0, 8, 0, 8, 4][..], &components].concat());
    // DC: the categories 0..=11, all with 4-bit codes. AC: only "end of block", one bit.
    let mut counts = [0_u8; 16];
    counts[3] = 12;
    let dc = segment(0xC4, &[&[0x00][..], &counts, &(0..12).collect::<Vec<u8>>()].concat());
    let mut counts = [0_u8; 16];
    counts[0] = 1;
    let ac = segment(0xC4, &[&[0x10][..], &counts, &[0]].concat());
    let selectors: Vec<u8> = (1..=4).flat_map(|id| [id, 0x00]).collect();
    let scan = segment(0xDA, &[&[4][..], &selectors, &[0, 63, 0]].concat());
    let mut bits = String::new();
    for value in values {
        let difference = i32::from(value) - 128;
        let category = 32 - difference.unsigned_abs().leading_zeros();
        bits.push_str(&format!("{category:04b}"));
        let coded = if difference < 0 { difference + (1 << category) - 1 } else { difference };
        if category > 0 {
            bits.push_str(&format!("{coded:0width$b}", width = category as usize));
        }
        bits.push('0');
    }
    while !bits.len().is_multiple_of(8) {
        bits.push('1');
    }
    let packed =
        bits.as_bytes().chunks(8).map(|byte| u8::from_str_radix(std::str::from_utf8(byte).unwrap(), 2).unwrap());
    let coded: Vec<u8> = packed.flat_map(|byte| if byte == 0xFF { vec![0xFF, 0] } else { vec![byte] }).collect();
    let parts = [quantisation, adobe.unwrap_or_default(), frame, dc, ac, scan, coded];
    [&[0xFF, 0xD8][..], &parts.concat(), &[0xFF, 0xD9]].concat()
}

#[test]
fn cmyk_jpegs_become_rgb() {
    // Adobe stores inverted ink: 255 is none, so that the colour is the product of ink and black.
    let cmyk = decode(&four_components([255, 128, 0, 255], Some(0)), "cmyk.jpg").unwrap();
    let near = |pixel: &[u8], expected: [u8; 3]| pixel.iter().zip(expected).all(|(&a, b)| a.abs_diff(b) <= 2);
    assert!(cmyk.pixels.chunks_exact(3).all(|pixel| near(pixel, [255, 128, 0])), "{:?}", &cmyk.pixels[..3]);
    let darker = decode(&four_components([255, 128, 0, 128], Some(0)), "cmyk.jpg").unwrap();
    assert!(near(&darker.pixels[..3], [128, 64, 0]), "{:?}", &darker.pixels[..3]);
    // YCCK without chroma is grey: the stored ink is the complement of the brightness.
    let ycck = decode(&four_components([200, 128, 128, 255], Some(2)), "ycck.jpg").unwrap();
    assert!(near(&ycck.pixels[..3], [55; 3]), "{:?}", &ycck.pixels[..3]);
    // Without the Adobe segment the ink is stored as it is: 0 is none.
    let plain = decode(&four_components([0, 128, 255, 0], None), "plain.jpg").unwrap();
    assert!(near(&plain.pixels[..3], [255, 127, 0]), "{:?}", &plain.pixels[..3]);
}

#[test]
fn a_jpeg_cut_anywhere_is_an_error() {
    let pixels = image::RgbImage::from_fn(32, 32, |x, y| image::Rgb([(x * 8) as u8, (y * 8) as u8, (x * y) as u8]));
    let whole = encoded(&pixels.into(), ImageFormat::Jpeg);
    assert!(decode(&whole, "whole").is_ok());
    for length in (0..whole.len()).step_by(7).chain([whole.len() - 1, whole.len() - 2, whole.len() - 3]) {
        let cut = decode(&whole[..length], "cut.jpg");
        assert!(matches!(cut, Err(Error::Decode { .. })), "cut at {length} of {}", whole.len());
    }
    // Bytes after the end do no harm, even if they look like the start of a scan: a motion photo is JPEG and film.
    for trailer in [&[0; 100][..], &[0x12, 0xFF, 0xDA, 0x34], &whole[..whole.len() - 2]] {
        assert_eq!(decode(&[&whole[..], trailer].concat(), "longer").unwrap(), decode(&whole, "whole").unwrap());
    }
    // The end of a thumbnail is not the end of the picture.
    let thumbnail = [&[0xFF, 0xE1, 0, 6, 0xFF, 0xDA, 0xFF, 0xD9][..], &whole[2..]].concat();
    let cut = [&whole[..2], &thumbnail[..thumbnail.len() - 2]].concat();
    assert!(decode(&[&whole[..2], &thumbnail[..]].concat(), "thumbnail").is_ok() && decode(&cut, "cut").is_err());
}

#[test]
fn other_formats_cut_short_are_errors_too() {
    let noise = image::RgbImage::from_fn(32, 32, |x, y| image::Rgb([(x * 37 + y * 91) as u8, (x * y) as u8, x as u8]));
    for format in [ImageFormat::Png, ImageFormat::WebP, ImageFormat::Tiff] {
        let whole = encoded(&noise.clone().into(), format);
        for length in [0, 1, 10, whole.len() / 2] {
            assert!(decode(&whole[..length], "cut").is_err(), "{format:?} cut at {length}");
        }
    }
}

#[test]
fn damaged_files_are_errors_or_images_and_never_more() {
    let noise = image::RgbImage::from_fn(24, 17, |x, y| image::Rgb([(x * 37 + y * 91) as u8, (x * y) as u8, x as u8]));
    for format in [ImageFormat::Jpeg, ImageFormat::Png, ImageFormat::WebP, ImageFormat::Tiff] {
        let whole = encoded(&noise.clone().into(), format);
        for place in 0..whole.len().min(400) {
            let mut damaged = whole.clone();
            damaged[place] ^= 0x5A;
            // Whatever the decoder makes of it, it does not panic.
            let error = decode(&damaged, "damaged").err().map(|error| error.to_string()).unwrap_or_default();
            assert!(!error.ends_with("the decoder failed on it"), "{format:?} byte {place}");
        }
    }
}

#[test]
fn a_huge_picture_is_refused_by_its_header() {
    let mut bytes = png(1, 1, [0; 3]);
    // IHDR: width and height stand at byte 16; the check sum over type and data follows them.
    bytes[16..24].copy_from_slice(&[0, 0, 0xFF, 0xFF, 0, 0, 0xFF, 0xFF]);
    let mut crc = flate2::Crc::new();
    crc.update(&bytes[12..29]);
    bytes[29..33].copy_from_slice(&crc.sum().to_be_bytes());
    let refused = decode(&bytes, "bomb.png").unwrap_err();
    assert!(matches!(refused, Error::TooLarge { found: 4_294_836_225, .. }), "{refused}");
}

#[test]
fn a_picture_of_one_long_row_is_refused() {
    let row = |width| encoded(&image::GrayImage::new(width, 1).into(), ImageFormat::Png);
    let tiff = |width| encoded(&image::GrayImage::new(width, 1).into(), ImageFormat::Tiff);
    assert!(decode(&row(65_535), "row.png").is_ok() && decode(&tiff(65_535), "row.tif").is_ok());
    for bytes in [row(65_536), tiff(65_536)] {
        let refused = decode(&bytes, "row").unwrap_err();
        assert!(matches!(refused, Error::TooLarge { found: 65_536, .. }), "{refused}");
    }
}

#[test]
fn text_with_an_image_name_is_an_error_that_names_the_file() {
    let root = tempdir().unwrap();
    write(root.path(), "a.jpg", b"<html>not found</html>");
    let refused = open_whole(root.path()).unwrap().read(0).unwrap_err();
    assert!(refused.to_string().ends_with("a.jpg: neither PNG, JPEG, WebP nor TIFF"), "{refused}");
}

#[test]
fn the_photographs_decode_and_the_truncated_one_does_not() {
    let Some(folder) = occlude_golden::data("photos") else { return };
    let set = open_whole(&folder).unwrap();
    assert!(!set.is_empty());
    for index in 0..set.len() {
        let name = set.name(index).rsplit('/').next().unwrap().to_owned();
        match set.read(index) {
            Ok(image) => check_photo(&name, &image),
            Err(error) => assert!(name.contains("truncated"), "{error}"),
        }
    }
}

fn check_photo(name: &str, image: &occlude_data::Image) {
    let size = (image.width, image.height);
    let grey = image.pixels.chunks_exact(3).all(|pixel| pixel[0] == pixel[1] && pixel[1] == pixel[2]);
    match name {
        "astronaut.png" => assert_eq!((size, grey), ((512, 512), false)),
        "camera.png" => assert_eq!((size, grey), ((512, 512), true)),
        "chessboard_GRAY_U16.tif" => {
            assert_eq!((size, grey), ((200, 200), true));
            assert!(image.pixels.contains(&255) && image.pixels.contains(&0));
        }
        "foo3x5x4indexed.png" => assert_eq!(size, (5, 3)),
        "palette_gray.png" => assert!(grey),
        "palette_color.png" => assert!(!grey),
        _ => assert!(image.is_whole() && !name.contains("truncated"), "{name}"),
    }
}

/// Paths of the images inside the archives of `folder` whose names start with `split`.
fn listed(folder: &Path, splits: &[&str]) -> Vec<String> {
    let archives = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let named = |path: &PathBuf| {
        let name = path.file_name().unwrap().to_str().unwrap();
        name.ends_with(".tar") && splits.iter().any(|split| name.starts_with(split))
    };
    let mut images = Vec::new();
    for path in archives.filter(named) {
        for entry in tar::Archive::new(std::fs::File::open(path).unwrap()).entries().unwrap() {
            let entry = entry.unwrap();
            let name = entry.path().unwrap().to_str().unwrap().trim_start_matches("./").to_owned();
            if entry.header().entry_type().is_file() && [".jpg", ".jpeg", ".png"].iter().any(|end| name.ends_with(end))
            {
                images.push(name);
            }
        }
    }
    images
}

/// Opens a pack of folders in archives and compares it with what the archives list.
fn check_pack(folder: &Path) {
    let (train, test) = open_both(&source(folder)).unwrap();
    let test = test.unwrap();
    let lists = [listed(folder, &["train"]), listed(folder, &["test", "val"])];
    assert_eq!(train.classes(), test.classes());
    for (set, list) in [&train, &test].into_iter().zip(&lists) {
        assert!(!set.is_empty());
        assert_eq!(set.len(), list.len());
        let class = |index: usize| set.classes()[set.label(index).unwrap() as usize].clone();
        assert!((0..set.len()).all(|index| set.name(index).contains(&format!(": {}/", class(index)))));
        for index in (0..set.len()).step_by((set.len() / 300).max(1)) {
            assert!(set.read(index).unwrap_or_else(|error| panic!("{error}")).is_whole());
        }
    }
    let listed: BTreeSet<&str> = lists.iter().flatten().map(|name| name.split('/').next().unwrap()).collect();
    assert_eq!(train.classes().len(), listed.len());
}

#[test]
fn the_cifar_pack_loads_as_it_lies() {
    let Some(folder) = occlude_golden::data("cifar10") else { return };
    check_pack(&folder);
}

#[test]
fn the_caltech_pack_loads_as_it_lies() {
    let Some(folder) = occlude_golden::data("caltech") else { return };
    check_pack(&folder);
}

#[test]
fn the_street_pack_gives_its_images_without_the_label_pictures() {
    let Some(folder) = occlude_golden::data("camvid") else { return };
    let (train, test) = open_both(&source(&folder)).unwrap();
    for (set, splits) in [(train, &["train"][..]), (test.unwrap(), &["test", "val"])] {
        let pictures = listed(&folder, splits).into_iter().filter(|name| name.starts_with("images/")).count();
        assert_eq!((set.len(), set.classes().len()), (pictures, 0));
        assert!(pictures > 0 && set.read(0).unwrap().is_whole());
    }
}
