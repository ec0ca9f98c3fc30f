//! Every path this processor has, and tile code over emulated registers, against f64.

use super::amx::{Tiled, emulated::Emulated};
use super::portable::{Portable, first, round};
use super::*;
use std::collections::HashSet;
use std::sync::Mutex;

const SPLITS: [Split; 3] = [Split::One, Split::Two, Split::Three];

/// What multiplies.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Machine {
    Path(Path),
    /// [`Path::Scalar`] as a processor without AVX2 runs it.
    Baseline,
    /// [`Path::Amx`] over arrays.
    Arrays,
}

fn machines() -> impl Iterator<Item = Machine> {
    Path::available().map(Machine::Path).chain([Machine::Baseline, Machine::Arrays])
}

fn multiply(
    machine: Machine,
    split: Split,
    a: Matrix<'_>,
    b: Matrix<'_>,
    c: &mut [f32],
    store: Store,
    epilogue: &dyn Epilogue,
) {
    let scalar = Tiles::new(Path::Scalar, split).unwrap();
    match machine {
        Machine::Path(path) => Tiles::new(path, split).unwrap().product(a, b, c, store, epilogue).unwrap(),
        Machine::Baseline => blocks::product(
            Portable::ANY,
            a,
            &scalar.pack(b),
            Output::new(c, b.shape().1),
            store,
            epilogue,
            Hands::Many,
        ),
        Machine::Arrays => {
            let kernel = Tiled::new(Portable::ANY, Emulated);
            blocks::product(kernel, a, &scalar.pack(b), Output::new(c, b.shape().1), store, epilogue, Hands::Many);
        }
    }
}

/// Numbers in -1..1, each seed its own.
fn noise(seed: u64, len: usize) -> Vec<f32> {
    let mut state = (seed + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

/// A matrix whose memory is row-major or column-major, with `gap` unused elements after each row (or column).
struct Stored {
    values: Vec<f32>,
    shape: (usize, usize),
    strides: (usize, usize),
}

impl Stored {
    fn new(seed: u64, shape: (usize, usize), turned: bool, gap: usize) -> Self {
        let (lines, len) = if turned { (shape.1, shape.0) } else { shape };
        let stride = len + gap;
        let strides = if turned { (1, stride) } else { (stride, 1) };
        Self { values: noise(seed, lines * stride), shape, strides }
    }

    fn view(&self) -> Matrix<'_> {
        Matrix::strided(&self.values, self.shape, self.strides).unwrap()
    }

    fn at(&self, row: usize, column: usize) -> f32 {
        self.values[row * self.strides.0 + column * self.strides.1]
    }
}

/// Sums in f64 of products and of their magnitudes, of operands that `see` changes first.
fn sums(a: &Stored, b: &Stored, see: impl Fn(f32) -> f64) -> Vec<(f64, f64)> {
    let ((m, k), n) = (a.shape, b.shape.1);
    let element = |i: usize| {
        let terms = (0..k).map(|p| see(a.at(i / n, p)) * see(b.at(p, i % n)));
        terms.fold((0.0, 0.0), |(sum, size), term| (sum + term, size + term.abs()))
    };
    (0..m * n).map(element).collect()
}

fn bf16(x: f32) -> f64 {
    f64::from(first(round(x)))
}

const SIZES: [(usize, usize, usize); 22] = [
    (1, 1, 1),
    (2, 3, 1),
    (3, 2, 15),
    (16, 17, 16),
    (17, 16, 33),
    (15, 31, 2),
    (31, 32, 63),
    (32, 33, 32),
    (33, 64, 31),
    (64, 15, 65),
    (63, 65, 17),
    (65, 63, 64),
    (5, 100, 100),
    (100, 1, 31),
    (1, 257, 33),
    (257, 2, 3),
    (6, 511, 34),
    (12, 513, 16),
    (13, 1100, 48),
    (193, 40, 5),
    (200, 100, 257),
    (7, 33, 800),
];

/// Sizes, forms of strides and stores, in a mixture that meets each pair.
fn cases() -> impl Iterator<Item = (Stored, Stored, Store)> {
    SIZES.into_iter().enumerate().flat_map(|(i, (m, k, n))| {
        [(false, false), (false, true), (true, false), (true, true)].into_iter().enumerate().map(
            move |(form, turned)| {
                let gap = if (i + form) % 3 == 0 { 5 } else { 0 };
                let store = if (i + form / 2) % 2 == 0 { Store::Write } else { Store::Add };
                (Stored::new(1, (m, k), turned.0, gap), Stored::new(2, (k, n), turned.1, gap), store)
            },
        )
    })
}

#[test]
fn every_path_sums_rounded_operands_in_f32() {
    for (a, b, store) in cases() {
        let exact = sums(&a, &b, bf16);
        let before = noise(3, exact.len());
        for machine in machines() {
            let mut c = before.clone();
            multiply(machine, Split::One, a.view(), b.view(), &mut c, store, &Plain);
            for (i, (sum, size)) in exact.iter().enumerate() {
                let old = if store == Store::Add { f64::from(before[i]) } else { 0.0 };
                let bound = (a.shape.1 + 3) as f64 * f64::from(f32::EPSILON) * (size + old.abs());
                let off = (f64::from(c[i]) - sum - old).abs();
                assert!(off <= bound, "{machine:?} {:?} x {:?} at {i}: off by {off}, not {bound}", a.shape, b.shape);
            }
        }
    }
}

#[test]
fn paths_agree_bit_by_bit_where_sums_are_exact() {
    for (mut a, mut b, store) in cases() {
        // Whole numbers up to 8: sums stay far below 2^24.
        for x in a.values.iter_mut().chain(&mut b.values) {
            *x = (*x * 8.0).round();
        }
        let exact = sums(&a, &b, f64::from);
        for split in SPLITS {
            for machine in machines() {
                let mut c = vec![3.0; exact.len()];
                multiply(machine, split, a.view(), b.view(), &mut c, store, &Plain);
                let old = if store == Store::Add { 3.0 } else { 0.0 };
                let same = c.iter().zip(&exact).all(|(c, (sum, _))| f64::from(*c) == sum + old);
                assert!(same, "{machine:?} {split:?} {:?} x {:?}", a.shape, b.shape);
            }
        }
    }
}

#[test]
fn scalar_sums_are_the_same_with_and_without_fused_instructions() {
    let (a, b) = (Stored::new(1, (50, 700), false, 0), Stored::new(2, (700, 70), true, 0));
    for split in SPLITS {
        let run = |machine| {
            let mut c = vec![0.0; 50 * 70];
            multiply(machine, split, a.view(), b.view(), &mut c, Store::Write, &Plain);
            c
        };
        assert_eq!(run(Machine::Path(Path::Scalar)), run(Machine::Baseline));
    }
}

#[test]
fn every_path_packs_the_same_bits() {
    let odd = [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN, -0.0, 1e-39, -1e-42];
    let edges =
        [0x3f80_8000, 0x3f81_8000, 0x3f80_8001, 0x3f80_7fff, 0x7f80_0001, 0x007f_ffff, 0x0080_0000, 0x7f7f_8000];
    for (mut x, ..) in cases().map(|(_, b, store)| (b, store)) {
        let special = odd.into_iter().chain(edges.map(f32::from_bits));
        for (x, odd) in x.values.iter_mut().step_by(3).zip(special) {
            *x = odd;
        }
        for split in SPLITS {
            let judge = Tiles::new(Path::Scalar, split).unwrap().pack(x.view());
            for path in Path::available() {
                assert!(Tiles::new(path, split).unwrap().pack(x.view()).same_bits(&judge), "{path:?} {:?}", x.shape);
            }
        }
    }
}

#[test]
fn rounding_is_to_nearest_ties_to_even_and_keeps_what_is_not_finite() {
    let high = |bits| round(f32::from_bits(bits));
    assert_eq!([high(0x3f80_8000), high(0x3f81_8000)], [0x3f80, 0x3f82], "ties");
    assert_eq!([high(0x3f80_8001), high(0x3f80_7fff)], [0x3f81, 0x3f80]);
    assert_eq!([high(0x7f80_0000), high(0xff80_0000), high(0x7f7f_ffff)], [0x7f80, 0xff80, 0x7f80]);
    assert_eq!([high(0x7f80_0001), high(0xffff_ffff)], [0x7fc0, 0xffff], "NaN");
    assert_eq!([high(0x0000_0001), high(0x807f_ffff), high(0x0080_0000)], [0, 0x8000, 0x0080], "denormal");
}

#[test]
fn nan_and_infinity_reach_their_row_and_column_and_no_other() {
    for machine in machines() {
        for split in SPLITS {
            let (mut a, b) = (Stored::new(1, (35, 40), false, 0), Stored::new(2, (40, 37), true, 0));
            a.values[4 * 40 + 7] = f32::NAN;
            a.values[9 * 40] = f32::INFINITY;
            let mut c = vec![0.0; 35 * 37];
            multiply(machine, split, a.view(), b.view(), &mut c, Store::Write, &Plain);
            for (row, c) in c.chunks(37).enumerate() {
                match row {
                    4 => assert!(c.iter().all(|c| c.is_nan()), "{machine:?}"),
                    9 if split == Split::One => assert!(c.iter().all(|c| c.is_infinite()), "{machine:?}"),
                    9 => assert!(c.iter().all(|c| !c.is_finite()), "{machine:?}"),
                    _ => assert!(c.iter().all(|c| c.is_finite()), "{machine:?} row {row}"),
                }
            }
        }
    }
}

fn sequential_f32(a: &Stored, b: &Stored) -> Vec<f32> {
    let (m, n) = (a.shape.0, b.shape.1);
    let element = |i: usize| (0..a.shape.1).fold(0.0, |sum, p| a.at(i / n, p).mul_add(b.at(p, i % n), sum));
    (0..m * n).map(element).collect()
}

#[test]
fn more_parts_come_close_to_f32() {
    let (a, b) = (Stored::new(1, (40, 900), false, 0), Stored::new(2, (900, 50), false, 0));
    let exact = sums(&a, &b, f64::from);
    let relative = |c: &[f32]| {
        let off: f64 = c.iter().zip(&exact).map(|(c, (sum, _))| (f64::from(*c) - sum).powi(2)).sum();
        (off / exact.iter().map(|(sum, _)| sum * sum).sum::<f64>()).sqrt()
    };
    let plain = relative(&sequential_f32(&a, &b));
    for machine in machines() {
        let error = SPLITS.map(|split| {
            let mut c = vec![0.0; exact.len()];
            multiply(machine, split, a.view(), b.view(), &mut c, Store::Write, &Plain);
            relative(&c)
        });
        // The judge sums in f32, one product after the other: about 4e-7.
        let [one, two, three] = error;
        assert!(one < 4e-3 && two < 6e-6 && three < 2.0 * plain, "{machine:?} {error:?}, f32 {plain}");
        assert!(error[0] > 1e-4, "{machine:?}: one part cannot be that good");
    }
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    for (m, k, n) in [(700, 90, 130), (64, 1300, 900)] {
        let (a, b) = (Stored::new(1, (m, k), true, 0), Stored::new(2, (k, n), false, 3));
        for path in Path::available() {
            for split in SPLITS {
                let run = |threads| {
                    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                    let mut c = vec![0.0; m * n];
                    pool.install(|| {
                        multiply(Machine::Path(path), split, a.view(), b.view(), &mut c, Store::Write, &Plain)
                    });
                    c
                };
                let one = run(1);
                assert!(one == run(2) && one == run(3), "{path:?} {split:?}");
            }
        }
    }
}

#[test]
fn a_packed_operand_serves_many_products_on_every_path() {
    let (x, w) = (Stored::new(1, (30, 70), false, 0), Stored::new(2, (50, 70), false, 0));
    for path in Path::available() {
        for split in SPLITS {
            let tiles = Tiles::new(path, split).unwrap();
            let scalar = Tiles::new(Path::Scalar, split).unwrap();
            let mut direct = vec![0.0; 30 * 50];
            tiles.product(x.view(), w.view().t(), &mut direct, Store::Write, &Plain).unwrap();
            let mut packed = scalar.pack(w.view().t());
            for _ in 0..2 {
                let mut c = vec![f32::NAN; 30 * 50];
                tiles.product(x.view(), &packed, &mut c, Store::Write, &Plain).unwrap();
                assert_eq!(c, direct, "{path:?}");
            }
            packed.refill(tiles, w.view()).unwrap();
            assert_eq!(packed.shape(), (50, 70));
            assert!(packed.same_bits(&tiles.pack(w.view())));
        }
    }
}

#[test]
fn an_epilogue_sees_every_element_once_and_finished() {
    for (m, k, n) in [(5, 0, 3), (3, 20, 700), (400, 600, 40), (70, 600, 300)] {
        let (a, b) = (Stored::new(1, (m, k), false, 0), Stored::new(2, (k, n), false, 0));
        let residual = noise(4, m * n);
        for machine in machines() {
            let mut plain = vec![0.0; m * n];
            multiply(machine, Split::Two, a.view(), b.view(), &mut plain, Store::Write, &Plain);
            let seen = Mutex::new(HashSet::new());
            let epilogue = Each(|row: usize, column: usize, c: &mut [f32]| {
                let mut seen = seen.lock().unwrap();
                (column..column + c.len()).for_each(|column| assert!(seen.insert((row, column))));
                c.iter_mut().zip(&residual[row * n + column..]).for_each(|(c, residual)| *c = *c * *c + residual);
            });
            let mut c = vec![0.0; m * n];
            multiply(machine, Split::Two, a.view(), b.view(), &mut c, Store::Write, &epilogue);
            assert_eq!(seen.lock().unwrap().len(), m * n, "{machine:?}");
            for (i, c) in c.iter().enumerate() {
                assert_eq!(*c, plain[i] * plain[i] + residual[i], "{machine:?} {i}");
            }
        }
    }
}

#[test]
fn sums_over_nothing_are_zero_and_empty_matrices_work() {
    let nothing = |rows, columns| Matrix::new(&[], rows, columns).unwrap();
    for machine in machines() {
        for split in SPLITS {
            let mut c = vec![2.0; 15];
            multiply(machine, split, nothing(3, 0), nothing(0, 5), &mut c, Store::Add, &Plain);
            assert_eq!(c, [2.0; 15]);
            multiply(machine, split, nothing(3, 0), nothing(0, 5), &mut c, Store::Write, &Plain);
            assert_eq!(c, [0.0; 15]);
            let some = [1.0; 6];
            multiply(machine, split, nothing(0, 6), Matrix::new(&some, 6, 1).unwrap(), &mut [], Store::Write, &Plain);
            multiply(machine, split, Matrix::new(&some, 2, 3).unwrap(), nothing(3, 0), &mut [], Store::Add, &Plain);
        }
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let (values, tiles) = ([1.0; 12], Tiles::new(Path::Scalar, Split::One).unwrap());
    let x = Matrix::new(&values, 3, 4).unwrap();
    let refused = |b: Matrix<'_>, len| tiles.product(x, b, &mut vec![0.0; len], Store::Write, &Plain).unwrap_err();
    assert_eq!(refused(x, 9), Refused::Inner { a: (3, 4), b: (3, 4) });
    assert_eq!(refused(x.t(), 8), Refused::Output { shape: (3, 3), len: 8 });
    let other = Tiles::new(Path::Scalar, Split::Two).unwrap().pack(x.t());
    assert_eq!(tiles.product(x, &other, &mut [0.0; 9], Store::Write, &Plain), Err(Refused::Packed));
    for path in Path::ALL.into_iter().filter(|path| !path.is_available()) {
        assert_eq!(Tiles::new(path, Split::One), Err(Refused::Unavailable(path)));
    }
    assert!(refused(x, 9).to_string().contains("3 x 4 times 3 x 4"));
}
