//! One image: glyphs on a lattice over a weakly shaded ground, plus noise. Integers only.

use super::glyphs::{self, FULL, PHASES, SIZES, STAMP};
use occlude_random::Stream;
use rand::RngCore;

/// Side of a lattice cell in pixels.
pub(super) const CELL: usize = 8;

/// One cell in `GAP` is left empty.
const GAP: i32 = 10;
/// Largest shift of a glyph from the middle of its cell, in quarters of a pixel.
const JITTER: i32 = 8;
/// Contrast of a glyph to the ground, in levels, before the strength of its class.
const CONTRAST: (i32, i32) = (44, 76);
/// How far one channel of a glyph may stray from its contrast, in levels.
const HUE: i32 = 10;
/// Mean level of the ground.
const GROUND: i32 = 128;
/// Largest shift of the ground of one cell, and of one of its channels besides. It outweighs the glyphs in any sum over
/// pixels, and nothing around a cell foretells it.
const QUILT: (i32, i32) = (40, 20);
/// Largest shift of one channel of a whole image. Weak on purpose: context predicts it, so clusters would encode it.
const TINT: i32 = 5;
/// Largest difference of the ground from the middle to an edge, weak for the same reason.
const SHADE: i32 = 5;
/// Half width of the triangular noise of a channel of a pixel, in levels.
const NOISE: i32 = 48;

/// Draws integers from a stream in a way that is ours, so that no release of another crate changes an image.
struct Draws(Stream);

impl Draws {
    /// Uniform in `low..=high`.
    fn between(&mut self, low: i32, high: i32) -> i32 {
        let width = (high - low + 1) as u64;
        low + ((u64::from(self.0.next_u32()) * width) >> 32) as i32
    }

    /// Three draws around `middle`.
    fn colour(&mut self, middle: i32, spread: i32) -> [i32; 3] {
        std::array::from_fn(|_| middle + self.between(-spread, spread))
    }
}

/// Renders an image of class `label`: interleaved RGB, `3 * side * side` bytes. `side` is a multiple of [`CELL`].
pub(super) fn image(label: usize, side: usize, stream: Stream) -> Vec<u8> {
    let mut draws = Draws(stream);
    let mut levels = ground(side, &mut draws);
    let cells = side / CELL;
    for cell in 0..cells * cells {
        if draws.between(1, GAP) > 1 {
            place(&mut levels, side, label, (cell % cells, cell / cells), &mut draws);
        }
    }
    with_noise(&levels, &mut draws)
}

/// A quilt: every cell has a colour of its own, over a tint and a weak slope that the image shares.
fn ground(side: usize, draws: &mut Draws) -> Vec<i32> {
    let tint = draws.colour(GROUND, TINT);
    let cells = side / CELL;
    let mut patch = || {
        let level = draws.between(-QUILT.0, QUILT.0);
        draws.colour(level, QUILT.1)
    };
    let quilt: Vec<[i32; 3]> = (0..cells * cells).map(|_| patch()).collect();
    let (slope_x, slope_y) = (draws.between(-SHADE, SHADE), draws.between(-SHADE, SHADE));
    let from_middle = |place: usize| 2 * place as i32 + 1 - side as i32;
    let mut levels = Vec::with_capacity(3 * side * side);
    for y in 0..side {
        for x in 0..side {
            let shade = (slope_x * from_middle(x) + slope_y * from_middle(y)) / side as i32;
            let own = quilt[y / CELL * cells + x / CELL];
            levels.extend((0..3).map(|channel| tint[channel] + own[channel] + shade));
        }
    }
    levels
}

/// Adds one glyph near the middle of its cell, lighter or darker than the ground.
fn place(levels: &mut [i32], side: usize, label: usize, cell: (usize, usize), draws: &mut Draws) {
    let phases = PHASES as i32;
    let mut shifted = |index: usize| (index * CELL + CELL / 2) as i32 * phases + draws.between(-JITTER, JITTER);
    let (x, y) = (shifted(cell.0), shifted(cell.1)); // quarters of a pixel, not negative: JITTER is below half a cell
    let size = draws.between(0, SIZES as i32 - 1) as usize;
    let sign = 2 * draws.between(0, 1) - 1;
    let contrast = draws.between(CONTRAST.0, CONTRAST.1);
    let colour = draws.colour(contrast, HUE).map(|channel| sign * channel * glyphs::STRENGTH[label] / 64);

    let stamp = glyphs::stamp(label, size, (x % phases) as usize, (y % phases) as usize);
    let corner = |place: i32| place / phases - STAMP as i32 / 2;
    let (left, top) = (corner(x), corner(y));
    for (row, line) in (top..).zip(stamp.chunks_exact(STAMP)) {
        for (column, &coverage) in (left..).zip(line) {
            let outside = |place: i32| place < 0 || place >= side as i32;
            if coverage == 0 || outside(row) || outside(column) {
                continue;
            }
            let pixel = 3 * (row as usize * side + column as usize);
            for (level, channel) in levels[pixel..pixel + 3].iter_mut().zip(colour) {
                *level += channel * i32::from(coverage) / FULL;
            }
        }
    }
}

/// Independent triangular noise on every channel, then clipping to 8 bits.
fn with_noise(levels: &[i32], draws: &mut Draws) -> Vec<u8> {
    let mut bytes = vec![0_u8; 2 * levels.len()];
    draws.0.fill_bytes(&mut bytes);
    let noisy = |(&level, pair): (&i32, &[u8])| {
        let noise = (i32::from(pair[0]) - i32::from(pair[1])) * NOISE / 256;
        (level + noise).clamp(0, 255) as u8
    };
    levels.iter().zip(bytes.chunks_exact(2)).map(noisy).collect()
}
