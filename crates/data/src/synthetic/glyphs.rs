//! The ten shapes, and their coverage of pixels at every size and sub-pixel place, computed once.
//!
//! Lengths are integers in sixteenths of a pixel and every shape is an inequality between them, so a coverage is the
//! same number on every machine.

use std::sync::LazyLock;

/// Names of the classes, by label.
pub(super) const NAMES: [&str; 10] = [
    "horizontal bar",
    "vertical bar",
    "rising bar",
    "falling bar",
    "plus",
    "cross",
    "ring",
    "dot",
    "upper left corner",
    "lower right corner",
];

/// Sizes a glyph comes in.
pub(super) const SIZES: usize = 3;
/// Sub-pixel places along one axis.
pub(super) const PHASES: usize = 4;
/// Side of a coverage stamp in pixels; its middle pixel holds the centre of the glyph.
pub(super) const STAMP: usize = 9;
/// Samples along one side of a pixel; a coverage is a count of `SAMPLES * SAMPLES`.
const SAMPLES: i32 = 8;
/// Coverage of a pixel that lies wholly inside a glyph.
pub(super) const FULL: i32 = SAMPLES * SAMPLES;

const UNITS_PER_PIXEL: i32 = 16;
/// Half extent and half stroke width of each size.
const EXTENTS: [(i32, i32); SIZES] = [(42, 9), (49, 11), (57, 12)];

/// Contrast of each class relative to the others, in sixty-fourths: a dot is small and a plus large, and without this
/// the mere amount of contrast in an image would tell its class.
pub(super) const STRENGTH: [i32; NAMES.len()] = [94, 94, 98, 98, 69, 72, 61, 89, 69, 69];

/// Coverage of the pixels around a glyph, row-major, 0 to [`FULL`].
pub(super) type Stamp = [u8; STAMP * STAMP];

static STAMPS: LazyLock<Vec<Stamp>> = LazyLock::new(all_stamps);

/// The stamp of a glyph of class `label` whose centre lies `phase / PHASES` of a pixel right of and below the corner
/// of the stamp's middle pixel.
pub(super) fn stamp(label: usize, size: usize, phase_x: usize, phase_y: usize) -> &'static Stamp {
    &STAMPS[((label * SIZES + size) * PHASES + phase_y) * PHASES + phase_x]
}

fn all_stamps() -> Vec<Stamp> {
    let mut stamps = Vec::with_capacity(NAMES.len() * SIZES * PHASES * PHASES);
    for label in 0..NAMES.len() {
        for (extent, stroke) in EXTENTS {
            for place in 0..PHASES * PHASES {
                stamps.push(draw(label, extent, stroke, place % PHASES, place / PHASES));
            }
        }
    }
    stamps
}

fn draw(label: usize, extent: i32, stroke: i32, phase_x: usize, phase_y: usize) -> Stamp {
    let centre = |phase: usize| (STAMP as i32 / 2) * UNITS_PER_PIXEL + phase as i32 * UNITS_PER_PIXEL / PHASES as i32;
    let (centre_x, centre_y) = (centre(phase_x), centre(phase_y));
    let mut stamp = [0; STAMP * STAMP];
    for (pixel, coverage) in stamp.iter_mut().enumerate() {
        let (left, top) =
            ((pixel % STAMP) as i32 * UNITS_PER_PIXEL - centre_x, (pixel / STAMP) as i32 * UNITS_PER_PIXEL - centre_y);
        for sample in 0..FULL {
            // Samples lie at the centres of an 8 x 8 grid within the pixel.
            let (x, y) = (left + 2 * (sample % SAMPLES) + 1, top + 2 * (sample / SAMPLES) + 1);
            *coverage += u8::from(inside(label, x, y, extent, stroke));
        }
    }
    stamp
}

/// Whether the point lies in the glyph; `y` grows downwards.
fn inside(label: usize, x: i32, y: i32, extent: i32, stroke: i32) -> bool {
    let bar = |along: i32, across: i32| along.abs() <= extent && across.abs() <= stroke;
    // In coordinates turned by 45 degrees lengths grow by sqrt(2): compare squares.
    let diagonal =
        |along: i32, across: i32| along * along <= 2 * extent * extent && across * across <= 2 * stroke * stroke;
    let edge = |along: i32, across: i32| along.abs() <= extent && (extent - 2 * stroke..=extent).contains(&across);
    let square = x * x + y * y;
    match label {
        0 => bar(x, y),
        1 => bar(y, x),
        2 => diagonal(x - y, x + y),
        3 => diagonal(x + y, x - y),
        4 => bar(x, y) || bar(y, x),
        5 => diagonal(x - y, x + y) || diagonal(x + y, x - y),
        6 => square <= extent * extent && square >= (extent - 2 * stroke) * (extent - 2 * stroke),
        7 => 10 * square <= 3 * extent * extent,
        8 => edge(x, -y) || edge(y, -x),
        _ => edge(x, y) || edge(y, x),
    }
}

#[cfg(test)]
mod tests {
    use super::{EXTENTS, FULL, NAMES, PHASES, SIZES, STAMP, STRENGTH, UNITS_PER_PIXEL, stamp};

    #[test]
    fn every_shape_is_drawn_and_none_is_cut_by_its_stamp() {
        // The least room around a centre: the middle pixel lies to one side of it, its place inside to the other.
        let middle = (STAMP as i32 / 2) * UNITS_PER_PIXEL;
        let last_phase = (PHASES as i32 - 1) * UNITS_PER_PIXEL / PHASES as i32;
        let room = middle.min(middle + UNITS_PER_PIXEL - last_phase);
        assert!(EXTENTS.iter().all(|(extent, stroke)| extent.max(stroke) <= &room), "a glyph leaves its stamp");
        // A diagonal bar turned by 45 degrees reaches (extent + stroke) / sqrt(2) along either axis.
        assert!(EXTENTS.iter().all(|(extent, stroke)| (extent + stroke).pow(2) <= 2 * room.pow(2)));
        for label in 0..NAMES.len() {
            for place in 0..SIZES * PHASES * PHASES {
                let stamp = stamp(label, place % SIZES, place / SIZES % PHASES, place / SIZES / PHASES);
                let area: i32 = stamp.iter().map(|&c| i32::from(c)).sum();
                assert!(area > 4 * FULL, "{} covers {area} samples", NAMES[label]);
                assert!(stamp.iter().all(|&c| i32::from(c) <= FULL));
            }
        }
    }

    #[test]
    fn the_shapes_are_the_named_ones() {
        let at = |label: usize, x: usize, y: usize| stamp(label, 2, 0, 0)[y * STAMP + x];
        // Left of, above, upper left and upper right of the centre, each three pixels off.
        let probes = |label: usize| [at(label, 1, 4), at(label, 4, 1), at(label, 2, 2), at(label, 6, 1)];
        assert!(probes(0)[0] > 0 && probes(0)[1] == 0);
        assert!(probes(1)[1] > 0 && probes(1)[0] == 0);
        assert!(probes(2)[3] > 0 && probes(2)[2] == 0, "a rising bar reaches the upper right");
        assert!(probes(3)[2] > 0 && probes(3)[3] == 0, "a falling bar starts at the upper left");
        assert_eq!(at(6, 4, 4), 0, "a ring is empty in the middle");
        assert!(at(7, 4, 4) > 0, "a dot is not");
    }

    #[test]
    fn the_amount_of_contrast_does_not_tell_the_class() {
        let energy = |label: usize| -> f64 {
            let squares = |place: usize| {
                let stamp = stamp(label, place % SIZES, place / SIZES % PHASES, place / SIZES / PHASES);
                stamp.iter().map(|&c| (f64::from(c) / f64::from(FULL)).powi(2)).sum::<f64>()
            };
            (0..SIZES * PHASES * PHASES).map(squares).sum::<f64>() * f64::from(STRENGTH[label]).powi(2)
        };
        for label in 1..NAMES.len() {
            let ratio = energy(label) / energy(0);
            assert!((0.97..1.03).contains(&ratio), "{}: {ratio}", NAMES[label]);
        }
    }
}
