//! Kinds, hierarchies, orders and settings of segments.

use super::{SegmenterConfig, Segments, SegmentsKind, cell_points, sees_content, sees_memory, traversal};
use crate::Grid;
use occlude_random::{Stream, Streams};
use proptest::prelude::*;

const GRID: Grid = Grid { rows: 8, cols: 8 };

fn stream(index: u64) -> Stream {
    Streams::new(7).stream("segments", 0, index)
}

fn blob(blobs: &[usize]) -> SegmenterConfig {
    SegmenterConfig { blobs: blobs.to_vec(), ..SegmenterConfig::default() }
}

#[test]
fn kinds_are_what_they_say() {
    let of = |kind| SegmenterConfig { kind, ..SegmenterConfig::default() }.check(GRID).unwrap().draw(&mut stream(0));
    let raster = of(SegmentsKind::Raster);
    assert_eq!(raster.ranks(), (0..64).collect::<Vec<u32>>());
    let random = of(SegmentsKind::Random);
    assert_eq!((random.count(), random.cells.clone()), (64, raster.cells));
    assert_ne!(random.ranks(), (0..64).collect::<Vec<u32>>());
    let square = of(SegmentsKind::Square);
    assert_eq!(
        (square.count(), &square.cells[..5], &square.cells[8..12]),
        (16, &[0, 0, 1, 1, 2][..], &[0, 0, 1, 1][..])
    );
    assert_eq!(square.cells[63], 15);
    let blobs = of(SegmentsKind::Blob);
    assert_eq!(blobs.levels.len(), 1);
    assert!(blobs.keeps_groups_together());
}

#[test]
fn a_shuffle_keeps_sizes_and_order_of_the_blobs() {
    let drawn = |shuffled| SegmenterConfig { shuffled, ..blob(&[7]) }.check(GRID).unwrap().draw(&mut stream(3));
    let (plain, shuffled) = (drawn(false), drawn(true));
    assert_ne!(plain.cells, shuffled.cells);
    let sizes = |of: &Segments| -> Vec<usize> {
        (0..of.count() as u32).map(|id| of.cells.iter().filter(|cell| **cell == id).count()).collect()
    };
    assert_eq!(sizes(&plain), sizes(&shuffled));
}

#[test]
fn one_row_and_one_column_are_grids_too() {
    assert_eq!(cell_points(Grid::new(1, 3)), [[-2.0, 0.0], [0.0, 0.0], [2.0, 0.0]]);
    assert_eq!(cell_points(Grid::new(2, 1)), [[0.0, -2.0], [0.0, 2.0]]);
    let segments = blob(&[3]).check(Grid::new(1, 1)).unwrap().draw(&mut stream(0));
    assert_eq!((segments.count(), segments.ranks()), (1, vec![0]));
}

#[test]
fn a_group_that_comes_twice_is_noticed() {
    let of = |order: &[u32], levels: &[&[u32]]| {
        let levels = levels.iter().map(|groups| groups.to_vec()).collect();
        Segments { cells: vec![0, 1, 2, 3], levels, order: order.to_vec() }.keeps_groups_together()
    };
    assert!(of(&[2, 0, 1, 3], &[]) && of(&[2, 0, 1, 3], &[&[0, 0, 1, 2]]));
    assert!(!of(&[0, 2, 1, 3], &[&[0, 0, 1, 2]]));
    assert!(!of(&[0, 1, 2, 3], &[&[0, 1, 2, 3], &[0, 1, 0, 1]]), "a level further up");
}

#[test]
fn every_row_of_both_rules_sees_something() {
    for query in 0..5 {
        assert!(sees_content(query, query));
        assert!((0..=query).any(|key| sees_memory(query, key)));
        assert_eq!(sees_memory(query, query), query == 0);
        assert!((query + 1..9).all(|key| !sees_memory(query, key) && !sees_content(query, key)));
    }
}

/// Pearson's statistic of counts that should be equal.
fn chi_square(counts: &[u32]) -> f64 {
    let expected = f64::from(counts.iter().sum::<u32>()) / counts.len() as f64;
    counts.iter().map(|count| (f64::from(*count) - expected).powi(2) / expected).sum()
}

#[test]
fn traversals_are_uniform_among_those_that_keep_groups_together() {
    // Groups {0, 3}, {1, 2}, {4}: 3! orders of groups, 2 * 2 inside: 24 orders, each as likely.
    let levels = vec![vec![0, 1, 1, 0, 2]];
    let mut counts = std::collections::BTreeMap::new();
    let mut rng = stream(1);
    for _ in 0..12_000 {
        *counts.entry(traversal(5, &levels, &mut rng)).or_insert(0_u32) += 1;
    }
    let counts: Vec<u32> = counts.into_values().collect();
    assert_eq!(counts.len(), 24);
    // The statistic of 23 degrees of freedom passes 49.7 once in a thousand.
    assert!(chi_square(&counts) < 49.7, "{counts:?}");
}

#[test]
fn traversals_without_groups_are_uniform_permutations() {
    let mut counts = [0_u32; 24];
    let mut rng = stream(2);
    for _ in 0..12_000 {
        let order = traversal(4, &[], &mut rng);
        let smaller = |at: usize| order[at + 1..].iter().filter(|later| **later < order[at]).count();
        counts[smaller(0) * 6 + smaller(1) * 2 + smaller(2)] += 1;
    }
    assert!(chi_square(&counts) < 49.7, "{counts:?}");
}

#[test]
fn settings_that_do_not_fit_are_named() {
    let refused = |config: SegmenterConfig| config.check(GRID).unwrap_err();
    let square = |side| SegmenterConfig { kind: SegmentsKind::Square, side, ..SegmenterConfig::default() };
    assert!(refused(square(3)).to_string().contains("side = 3: must divide both sides of the 8 x 8 patches"));
    assert!(refused(square(0)).to_string().contains("must divide"));
    assert!(refused(square(8)).to_string().contains("more than one square"));
    assert!(refused(blob(&[])).to_string().contains("blobs = []: must hold between 1 and 8"));
    assert!(refused(blob(&[7, 1])).to_string().contains("blobs = [7, 1]: must be between 2"));
    let shuffled = SegmenterConfig { shuffled: true, ..square(2) };
    assert_eq!(refused(shuffled).field, "shuffled");
    assert!(square(4).check(Grid::new(4, 8)).is_ok(), "two squares");
}

proptest! {
    #[test]
    fn segments_cover_the_grid_without_gaps(
        rows in 1_usize..9, cols in 1_usize..9, finest in 2_usize..17, above in proptest::collection::vec(2_usize..6, 0..3),
        shuffled: bool, seed: u64,
    ) {
        let grid = Grid::new(rows, cols);
        let blobs: Vec<usize> = std::iter::once(finest).chain(above).collect();
        let config = SegmenterConfig { shuffled, ..blob(&blobs) };
        let segments = config.check(grid).unwrap().draw(&mut Streams::new(seed).stream("segments", 0, 0));
        prop_assert_eq!(segments.cells.len(), grid.count());
        prop_assert!(segments.count() >= 1 && segments.count() <= finest);
        let mut ranks = segments.ranks();
        ranks.sort_unstable();
        ranks.dedup();
        prop_assert!(ranks.into_iter().eq(0..segments.count() as u32));
        prop_assert!(segments.keeps_groups_together());
    }
}
