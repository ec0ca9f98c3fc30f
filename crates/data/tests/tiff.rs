//! Kinds of TIFF that few writers make, written here by hand.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may stop at a surprise")]

use occlude_data::{Image, Result, decode};

/// Numbers of a file in its byte order and width of offsets.
#[derive(Clone, Copy)]
struct Order {
    little: bool,
    big: bool,
}

impl Order {
    fn number(self, value: u64, width: usize) -> Vec<u8> {
        let bytes = value.to_le_bytes()[..width].to_vec();
        if self.little { bytes } else { bytes.into_iter().rev().collect() }
    }

    /// A picture of 3 x 2 pixels in one strip with these further entries of 16-bit numbers.
    fn tiff(self, data: &[u8], entries: &[(u16, &[u16])]) -> Vec<u8> {
        let word = if self.big { 8 } else { 4 };
        let mut all: Vec<(u16, Vec<u16>)> = entries.iter().map(|&(tag, values)| (tag, values.to_vec())).collect();
        let header = 4 + if self.big { 4 + word } else { word };
        all.extend([(256, vec![3]), (257, vec![2]), (278, vec![2]), (279, vec![data.len() as u16])]);
        all.extend((!all.iter().any(|(tag, _)| *tag == 273)).then(|| (273, vec![header as u16])));
        all.extend((!all.iter().any(|(tag, _)| *tag == 259)).then(|| (259, vec![1])));
        all.sort();
        let start = header + data.len();
        let directory = if self.big { 8 } else { 2 } + all.len() * (4 + 2 * word) + word;
        let mut extra = Vec::new();
        let mut out = if self.little { b"II".to_vec() } else { b"MM".to_vec() };
        out.extend(self.number(if self.big { 43 } else { 42 }, 2));
        out.extend(if self.big { [self.number(8, 2), self.number(0, 2)].concat() } else { Vec::new() });
        out.extend(self.number(start as u64, word));
        out.extend_from_slice(data);
        out.extend(self.number(all.len() as u64, if self.big { 8 } else { 2 }));
        for (tag, values) in &all {
            out.extend([self.number(u64::from(*tag), 2), self.number(3, 2)].concat());
            out.extend(self.number(values.len() as u64, word));
            let mut field: Vec<u8> = values.iter().flat_map(|&value| self.number(value.into(), 2)).collect();
            if field.len() > word {
                let place = start + directory + extra.len();
                extra.append(&mut field);
                field = self.number(place as u64, word);
            }
            field.resize(word, 0);
            out.extend(field);
        }
        out.extend(self.number(0, word));
        out.extend(extra);
        out
    }
}

const PLAIN: Order = Order { little: true, big: false };

fn pixels(bytes: &[u8]) -> Vec<[u8; 3]> {
    let image = decode(bytes, "case.tif").unwrap();
    assert_eq!((image.width, image.height), (3, 2));
    image.pixels.chunks_exact(3).map(|pixel| pixel.try_into().unwrap()).collect()
}

#[test]
fn palettes_are_looked_up_at_every_depth_and_in_every_byte_order() {
    let indices = [0_u8, 1, 3, 3, 2, 1];
    let packed = |bits: usize| -> Vec<u8> {
        let row = |row: &[u8]| {
            let mut bytes = vec![0_u8; (3 * bits).div_ceil(8)];
            row.iter().enumerate().for_each(|(x, value)| bytes[x * bits / 8] |= value << (8 - bits - x * bits % 8));
            bytes
        };
        indices.chunks(3).flat_map(row).collect()
    };
    let colours = [[1, 2, 3], [10, 20, 30], [100, 110, 120], [255, 0, 255]];
    let expected: Vec<[u8; 3]> = indices.iter().map(|&index| colours[usize::from(index)]).collect();
    for order in [(true, false), (false, false), (true, true), (false, true)] {
        let order = Order { little: order.0, big: order.1 };
        for bits in [2, 4, 8] {
            // All reds, all greens, all blues; each scaled by 257, or left as it is.
            for scale in [257, 1] {
                let mut map = vec![0_u16; 3 << bits];
                for (index, colour) in colours.iter().enumerate() {
                    (0..3).for_each(|channel| map[(channel << bits) + index] = colour[channel] as u16 * scale);
                }
                let entries: [(u16, &[u16]); 3] = [(258, &[bits as u16]), (262, &[3]), (320, &map)];
                assert_eq!(pixels(&order.tiff(&packed(bits), &entries)), expected, "{bits} bits, scale {scale}");
            }
        }
    }
}

#[test]
fn a_palette_that_is_absent_or_too_short_is_an_error() {
    let entries: [(u16, &[u16]); 3] = [(258, &[8]), (262, &[3]), (320, &[0; 6])];
    let refused = |entries| decode(&PLAIN.tiff(&[0, 1, 2, 0, 1, 2], entries), "case.tif").unwrap_err().to_string();
    assert!(refused(&entries).contains("not in its palette"));
    assert!(refused(&entries[..2]).starts_with("case.tif: TIFF: "));
}

#[test]
fn brightness_and_differences_become_rgb() {
    let data: Vec<u8> = [[100, 128, 128], [76, 85, 255], [255, 128, 128]].concat().repeat(2);
    let entries = |subsampling| [(258, &[8_u16, 8, 8][..]), (262, &[6]), (277, &[3]), (530, subsampling)];
    let found = pixels(&PLAIN.tiff(&data, &entries(&[1, 1])));
    assert_eq!(found[..3], [[100; 3], [254, 0, 0], [255; 3]]);
    let refused = decode(&PLAIN.tiff(&data, &entries(&[2, 2])), "case.tif").unwrap_err().to_string();
    assert!(refused.contains("TIFF") && !refused.contains('\n'), "{refused}");
}

#[test]
fn grey_of_every_depth_is_scaled() {
    let floats: Vec<u8> =
        [0.0_f32, 0.5, 1.0, 2.0, -1.0, f32::NAN].iter().flat_map(|value| value.to_le_bytes()).collect();
    let found = pixels(&PLAIN.tiff(&floats, &[(258, &[32]), (262, &[1]), (339, &[3])]));
    assert_eq!(found, [[0; 3], [128; 3], [255; 3], [255; 3], [0; 3], [0; 3]]);
    let wide: Vec<u8> = [0_u32, 1 << 31, u32::MAX].repeat(2).iter().flat_map(|value| value.to_le_bytes()).collect();
    assert_eq!(pixels(&PLAIN.tiff(&wide, &[(258, &[32]), (262, &[1])]))[..3], [[0; 3], [128; 3], [255; 3]]);
    // Four bits; the same with 0 for white; one bit.
    let packed = [0x0F, 0x80, 0xF0, 0x00];
    let found = pixels(&PLAIN.tiff(&packed, &[(258, &[4]), (262, &[1])]));
    assert_eq!(found, [[0; 3], [255; 3], [136; 3], [255; 3], [0; 3], [0; 3]]);
    assert_eq!(pixels(&PLAIN.tiff(&packed, &[(258, &[4]), (262, &[0])]))[..3], [[255; 3], [0; 3], [119; 3]]);
    assert_eq!(pixels(&PLAIN.tiff(&[0x40, 0xA0], &[(258, &[1]), (262, &[1])]))[..3], [[0; 3], [255; 3], [0; 3]]);
    // With alpha.
    let alpha = [7, 0, 8, 255, 9, 1].repeat(2);
    let found = pixels(&PLAIN.tiff(&alpha, &[(258, &[8, 8]), (262, &[1]), (277, &[2]), (338, &[2])]));
    assert_eq!(found[..3], [[7; 3], [8; 3], [9; 3]]);
}

#[test]
fn ink_becomes_rgb_interleaved_or_in_planes() {
    let inks = [[0, 0, 0, 0], [255, 0, 0, 0], [0, 0, 0, 255], [0, 128, 255, 0], [0, 0, 0, 128], [9, 9, 9, 255]];
    let expected = [[255; 3], [0, 255, 255], [0; 3], [255, 127, 0], [127; 3], [0; 3]];
    let entries = [(258, &[8_u16, 8, 8, 8][..]), (262, &[5]), (277, &[4])];
    assert_eq!(pixels(&PLAIN.tiff(&inks.concat(), &entries)), expected);
    let planes: Vec<u8> = (0..4).flat_map(|channel| inks.map(|ink| ink[channel])).collect();
    let mut entries = entries.to_vec();
    entries.extend([(284, &[2_u16][..]), (273, &[8, 14, 20, 26])]);
    let in_planes = PLAIN.tiff(&planes, &entries);
    assert_eq!(pixels(&with_strip_sizes(in_planes, planes.len(), 6)), expected);
}

/// Rewrites the one strip length that `tiff` writes into one for each of four planes.
fn with_strip_sizes(mut bytes: Vec<u8>, written: usize, size: u16) -> Vec<u8> {
    let entry =
        [279_u16.to_le_bytes(), 3_u16.to_le_bytes(), 1_u16.to_le_bytes(), [0, 0], (written as u16).to_le_bytes()];
    let entry = entry.concat();
    let at = bytes.windows(entry.len()).position(|window| window == entry).unwrap();
    let place = bytes.len() as u32;
    bytes[at + 4] = 4;
    bytes[at + 8..at + 12].copy_from_slice(&place.to_le_bytes());
    bytes.extend([size; 4].iter().flat_map(|size| size.to_le_bytes()));
    bytes
}

#[test]
fn what_cannot_be_read_is_said() {
    let refused = |entries: &[(u16, &[u16])]| -> Result<Image> { decode(&PLAIN.tiff(&[0; 18], entries), "case.tif") };
    for entries in [
        // CIE Lab, signed samples, an unknown compression.
        &[(258, &[8_u16, 8, 8][..]), (262, &[8]), (277, &[3])][..],
        &[(258, &[8]), (262, &[1]), (339, &[2])],
        &[(258, &[8]), (262, &[1]), (259, &[999])],
    ] {
        let refused = refused(entries).unwrap_err().to_string();
        assert!(refused.starts_with("case.tif: TIFF: ") && !refused.contains('\n'), "{refused}");
    }
}
