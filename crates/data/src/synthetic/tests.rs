//! The drawn set: frozen pictures, balance, and how poorly pixels tell its classes.

use super::Synthetic;
use crate::{Dataset, Split};

/// FNV-1a over all bytes of the first images.
fn fingerprint(set: &Synthetic, count: usize) -> u64 {
    let bytes = (0..count).flat_map(|index| set.read(index).unwrap().pixels);
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3))
}

#[test]
fn images_do_not_change_between_releases_or_machines() {
    let frozen = [
        (Synthetic::new(0, Split::Train, 20), FROZEN[0]),
        (Synthetic::new(0, Split::Test, 20), FROZEN[1]),
        (Synthetic::new(7, Split::Train, 20), FROZEN[2]),
        (Synthetic::new(0, Split::Train, 20).with_side(48).unwrap(), FROZEN[3]),
    ];
    let got: Vec<u64> = frozen.iter().map(|(set, _)| fingerprint(set, 20)).collect();
    assert_eq!(got, FROZEN, "stored runs would no longer resume exactly, and measured figures no longer hold");
}

const FROZEN: [u64; 4] =
    [13_049_274_582_399_092_170, 12_676_804_593_698_874_296, 17_795_174_032_834_111_641, 11_465_768_481_524_054_782];

#[test]
fn an_image_depends_on_its_index_only() {
    let long = Synthetic::whole(3, Split::Train);
    let short = Synthetic::new(3, Split::Train, 50);
    assert_eq!(long.len(), Synthetic::TRAIN);
    assert_eq!(long.read(41).unwrap(), short.read(41).unwrap());
    assert_ne!(long.read(41).unwrap(), long.read(51).unwrap(), "same class, another image");
    assert_ne!(long.read(41).unwrap(), Synthetic::whole(3, Split::Test).read(41).unwrap(), "splits differ");
    assert_ne!(long.read(41).unwrap(), Synthetic::whole(4, Split::Train).read(41).unwrap(), "seeds differ");
}

#[test]
fn classes_are_balanced_and_named() {
    let set = Synthetic::new(0, Split::Test, 1000);
    let mut counts = vec![0; set.classes().len()];
    (0..set.len()).for_each(|index| counts[set.label(index).unwrap() as usize] += 1);
    assert_eq!(counts, [100; 10]);
    assert!(set.classes().iter().all(|name| !name.is_empty()));
    assert_eq!(set.name(12), "synthetic/test/000012");
}

#[test]
fn a_side_that_does_not_fit_the_lattice_is_refused() {
    let set = || Synthetic::new(0, Split::Train, 10);
    let image = set().with_side(64).unwrap().read(0).unwrap();
    assert_eq!((image.width, image.height, image.pixels.len()), (64, 64, 3 * 64 * 64));
    assert_eq!(set().with_side(60).unwrap_err().field, "side");
}

/// Rows of unit length: pixels less the mean level, then divided by their norm.
fn rows(set: &Synthetic, form: impl Fn(f32) -> f32) -> Vec<Vec<f32>> {
    let row = |index: usize| {
        let pixels = set.read(index).unwrap().pixels;
        let row: Vec<f32> = pixels.iter().map(|&level| form(f32::from(level) - 128.0)).collect();
        let norm = dot(&row, &row).sqrt();
        row.into_iter().map(|value| value / norm).collect()
    };
    (0..set.len()).map(row).collect()
}

/// Eight sums side by side, so that the compiler can use vectors.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0_f32; 8];
    for (a, b) in a.chunks_exact(8).zip(b.chunks_exact(8)) {
        (0..8).for_each(|lane| sums[lane] += a[lane] * b[lane]);
    }
    sums.iter().sum()
}

/// Index of the row most like `query`.
fn most_like(rows: &[Vec<f32>], query: &[f32]) -> usize {
    let mut best = (0, f32::NEG_INFINITY);
    for (index, row) in rows.iter().enumerate() {
        let likeness = dot(row, query);
        if likeness > best.1 {
            best = (index, likeness);
        }
    }
    best.0
}

fn percent_right(test: &[Vec<f32>], guess: impl Fn(&[f32]) -> usize) -> f64 {
    let right = test.iter().enumerate().filter(|(index, row)| guess(row) % 10 == index % 10).count();
    100.0 * right as f64 / test.len() as f64
}

#[test]
fn pixels_are_poor_features() {
    let bank = rows(&Synthetic::new(0, Split::Train, 2000), |level| level);
    let test = rows(&Synthetic::new(0, Split::Test, 500), |level| level);
    let nearest = percent_right(&test, |row| most_like(&bank, row));
    assert!(nearest < 25.0, "nearest neighbour of pixels: {nearest} %");
}

#[test]
fn the_mean_image_of_a_class_tells_nothing() {
    let bank = rows(&Synthetic::new(0, Split::Train, 2000), |level| level);
    let test = rows(&Synthetic::new(0, Split::Test, 500), |level| level);
    let by_mean = percent_right(&test, |row| most_like(&class_means(&bank), row));
    assert!(by_mean < 20.0, "nearest class mean of pixels: {by_mean} %");
}

fn class_means(rows: &[Vec<f32>]) -> Vec<Vec<f32>> {
    let mut means = vec![vec![0.0; rows[0].len()]; 10];
    for (index, row) in rows.iter().enumerate() {
        means[index % 10].iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
    }
    for mean in &mut means {
        let norm = dot(mean, mean).sqrt();
        mean.iter_mut().for_each(|value| *value /= norm);
    }
    means
}

/// What a person sees: the direction in which neighbouring pixels agree, wherever the glyph lies.
#[test]
fn the_shapes_are_there_for_who_looks_at_them() {
    let profile = |set: &Synthetic, index: usize| -> Vec<f32> {
        let image = set.read(index).unwrap();
        let at = |x: usize, y: usize| f32::from(image.pixels[3 * (y * 32 + x) + 1]);
        let mut sums = vec![0.0; 4];
        // Squared differences along the two axes and the two diagonals, two pixels apart, inside cells.
        for (y, x) in (0..30).flat_map(|y| (0..30).map(move |x| (y, x))).filter(|(y, x)| y % 8 < 6 && x % 8 < 6) {
            let pairs = [(x, y, x + 2, y), (x, y, x, y + 2), (x + 2, y, x, y + 2), (x, y, x + 2, y + 2)];
            for (sum, (x0, y0, x1, y1)) in sums.iter_mut().zip(pairs) {
                *sum += (at(x0, y0) - at(x1, y1)).powi(2);
            }
        }
        sums
    };
    let test = Synthetic::new(0, Split::Test, 400);
    // Along its own direction a bar changes least: bars alone, label 0 to 3.
    let bars: Vec<usize> = (0..test.len()).filter(|index| index % 10 < 4).collect();
    let least = |sums: Vec<f32>| (0..4).min_by(|&a, &b| sums[a].total_cmp(&sums[b])).unwrap();
    let right = bars.iter().filter(|&&index| least(profile(&test, index)) == index % 10).count();
    assert!(right * 10 > bars.len() * 8, "{right} of {} bars", bars.len());
}
