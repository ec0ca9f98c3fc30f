//! Masks against the reference: single cases bit by bit, 10 000 masks of each kind by their statistics.
// clippy.toml frees test functions; helpers beside them need it said.
#![allow(clippy::unwrap_used)]

use occlude_golden::{Tensors, set};
use occlude_masking::{
    BlockDraws, BlockShape, Grid, Mask, Masker, MaskerConfig, MaskerKind, Roll, hidden_count, log_aspect_range,
};
use occlude_random::Streams;

const CASE_DRAWS: [&str; 9] = ["low", "high", "log aspect", "top", "left", "roll rows", "roll cols", "height", "width"];

fn integers(tensors: &Tensors, name: &str) -> Vec<usize> {
    let values: Vec<i64> = tensors[name].flatten_all().unwrap().to_vec1().unwrap();
    values.into_iter().map(|value| usize::try_from(value).unwrap()).collect()
}

fn kinds(tensors: &Tensors, suffix: &str) -> Vec<String> {
    tensors.keys().filter_map(|name| name.strip_suffix(suffix)).map(str::to_owned).collect()
}

#[test]
fn golden_capi_mask_cases() {
    let Some(cases) = set("capi").tensors("mask_cases") else { return };
    let names = kinds(&cases, ".draws");
    assert!(!names.is_empty());
    for name in names {
        let count = integers(&cases, &format!("{name}.count"));
        let (grid, masked) = (Grid::new(count[0], count[1]), count[2]);
        let inverse = name.starts_with("inverse");
        let cells = if inverse { grid.count() - masked } else { masked };
        let draws: Vec<Vec<f64>> = cases[&format!("{name}.draws")].to_vec2().unwrap();
        let masks: Vec<Vec<Vec<u8>>> = cases[&format!("{name}.masks")].to_vec3().unwrap();
        for (draw, expected) in draws.iter().zip(&masks) {
            assert_eq!(draw.len(), CASE_DRAWS.len());
            let (low, high) = log_aspect_range(grid, cells, MaskerConfig::default().min_aspect);
            assert!((low - draw[0]).abs() < 1e-12 && (high - draw[1]).abs() < 1e-12, "{name}: {low} {high} {draw:?}");
            let shape = BlockShape::from_log_aspect(grid, cells, draw[2]);
            assert_eq!((shape.height as f64, shape.width as f64), (draw[7], draw[8]), "{name}");
            // -1 = no roll.
            let roll = Roll { rows: draw[5].max(0.0) as usize, cols: draw[6].max(0.0) as usize };
            let draws = BlockDraws { log_aspect: draw[2], top: draw[3] as usize, left: draw[4] as usize, roll };
            let block = draws.block(grid, cells);
            let mask = Mask::from_fn(grid, |index| block[index] != inverse);
            let got: Vec<u8> = mask.flags().into_iter().map(u8::from).collect();
            assert_eq!(got, expected.concat(), "{name}");
            assert_eq!(mask.hidden().len(), masked, "{name}");
        }
    }
}

/// The generator that a set of statistics was made with: from its name and its number of masked patches.
fn masker(name: &str, grid: Grid, masked: usize) -> Masker {
    let kind = match name.split('_').next() {
        Some("inverse") => MaskerKind::InverseBlock,
        Some("block") => MaskerKind::Block,
        _ => MaskerKind::Random,
    };
    // Any ratio that truncates to the count: half a patch above it.
    let ratio = (masked as f64 + 0.5) / grid.count() as f64;
    assert_eq!(hidden_count(grid, ratio), masked);
    let roll = name.contains("_roll");
    MaskerConfig { kind, ratio, roll, ..MaskerConfig::default() }.check().unwrap()
}

/// The statistics of the reference file over masks of our own.
struct Statistics {
    samples: usize,
    masked: Vec<usize>,
    both_visible: Vec<usize>,
    /// Rows and columns with a visible patch, rows and columns with a masked one.
    histograms: [Vec<usize>; 4],
}

impl Statistics {
    fn new(grid: Grid) -> Self {
        let [rows, cols] = [vec![0; grid.rows + 1], vec![0; grid.cols + 1]];
        let histograms = [rows.clone(), cols.clone(), rows, cols];
        Self { samples: 0, masked: vec![0; grid.count()], both_visible: vec![0; grid.count()], histograms }
    }

    fn add(&mut self, mask: &Mask) {
        let (grid, hidden) = (mask.grid(), mask.flags());
        self.samples += 1;
        mask.hidden().iter().for_each(|cell| self.masked[*cell as usize] += 1);
        for [row, col] in mask.visible().iter().map(|cell| [*cell as usize / grid.cols, *cell as usize % grid.cols]) {
            for other in mask.visible().iter().map(|cell| *cell as usize) {
                let shift_rows = (other / grid.cols + grid.rows - row) % grid.rows;
                let shift_cols = (other % grid.cols + grid.cols - col) % grid.cols;
                self.both_visible[shift_rows * grid.cols + shift_cols] += 1;
            }
        }
        let row = |row: usize, wanted: bool| (0..grid.cols).any(|col| hidden[row * grid.cols + col] == wanted);
        let col = |col: usize, wanted: bool| (0..grid.rows).any(|row| hidden[row * grid.cols + col] == wanted);
        for (half, wanted) in [(0, false), (2, true)] {
            self.histograms[half][(0..grid.rows).filter(|r| row(*r, wanted)).count()] += 1;
            self.histograms[half + 1][(0..grid.cols).filter(|c| col(*c, wanted)).count()] += 1;
        }
    }
}

#[test]
fn golden_capi_mask_stats() {
    let Some(reference) = set("capi").tensors("mask_stats") else { return };
    let names = kinds(&reference, ".params");
    assert!(!names.is_empty());
    for name in names {
        let params = integers(&reference, &format!("{name}.params"));
        let (grid, masked, samples) = (Grid::new(params[0], params[1]), params[2], params[3]);
        let masker = masker(&name, grid, masked);
        let mut ours = Statistics::new(grid);
        for sample in 0..samples as u64 {
            let mask = masker.mask(grid, &mut Streams::new(5).stream("mask", 0, sample));
            assert_eq!(mask.hidden().len(), masked, "{name}");
            ours.add(&mask);
        }
        compare(&name, &reference, grid, &ours);
    }
}

fn compare(name: &str, reference: &Tensors, grid: Grid, ours: &Statistics) {
    let floats =
        |what: &str| -> Vec<f64> { reference[&format!("{name}.{what}")].flatten_all().unwrap().to_vec1().unwrap() };
    let worst = |ours: &[usize], over: usize, reference: Vec<f64>| {
        assert_eq!(ours.len(), reference.len());
        ours.iter().zip(reference).map(|(count, r)| (*count as f64 / over as f64 - r).abs()).fold(0.0, f64::max)
    };
    let mean = worst(&ours.masked, ours.samples, floats("mean_mask"));
    assert!(mean <= 0.03, "{name}: mean mask differs by {mean}");
    let pairs = worst(&ours.both_visible, ours.samples * grid.count(), floats("visible_autocorrelation"));
    assert!(pairs <= 0.01, "{name}: autocorrelation differs by {pairs}");
    for (what, got) in ["visible_rows", "visible_cols", "masked_rows", "masked_cols"].iter().zip(&ours.histograms) {
        let expected = integers(reference, &format!("{name}.{what}_histogram"));
        let (chi_square, freedom) = two_sample_chi_square(got, &expected);
        // A right generator passes but for about once in a million, at any number of degrees of freedom k: the
        // probability of more than k + 2 sqrt(k x) + 2 x is at most exp(-x) (Laurent and Massart 2000, lemma 1).
        let (k, x) = (freedom as f64, 14.0);
        let bound = k + 2.0 * (k * x).sqrt() + 2.0 * x;
        assert!(chi_square <= bound, "{name}.{what}: chi-square {chi_square} with {freedom} degrees of freedom");
    }
}

/// Chi-square of two histograms with equally many samples; sparse bins (under 10 in both together) are pooled.
fn two_sample_chi_square(a: &[usize], b: &[usize]) -> (f64, usize) {
    assert_eq!(a.iter().sum::<usize>(), b.iter().sum::<usize>());
    let (sparse, mut bins): (Vec<[usize; 2]>, Vec<[usize; 2]>) =
        a.iter().zip(b).map(|(a, b)| [*a, *b]).partition(|[a, b]| a + b < 10);
    bins.push(sparse.iter().fold([0, 0], |sum, bin| [sum[0] + bin[0], sum[1] + bin[1]]));
    bins.retain(|[a, b]| a + b > 0);
    let term = |[a, b]: &[usize; 2]| (*a as f64 - *b as f64).powi(2) / (a + b) as f64;
    (bins.iter().map(term).sum(), bins.len() - 1)
}
