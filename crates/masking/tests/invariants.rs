//! What holds of every mask and every batch, on any grid and at any ratio.
// clippy.toml frees test functions; helpers beside them need it said.
#![allow(clippy::unwrap_used)]

use occlude_masking::{
    BatchMask, Grid, Mask, MaskError, Masker, MaskerConfig, MaskerKind, hidden_count, predict_count,
};
use occlude_random::Streams;
use proptest::prelude::*;

fn masker() -> impl Strategy<Value = Masker> {
    let kind = prop_oneof![Just(MaskerKind::InverseBlock), Just(MaskerKind::Block), Just(MaskerKind::Random)];
    (kind, 0.001..0.999_f64, any::<bool>(), 0.05..=1.0_f64)
        .prop_map(|(kind, ratio, roll, min_aspect)| MaskerConfig { kind, ratio, roll, min_aspect }.check().unwrap())
}

fn assert_whole(mask: &Mask) {
    let mut all = [mask.visible(), mask.hidden()].concat();
    all.sort_unstable();
    assert_eq!(all, (0..mask.grid().count() as u32).collect::<Vec<_>>(), "disjoint and covering");
    assert!(mask.visible().is_sorted() && mask.hidden().is_sorted());
}

proptest! {
    #[test]
    fn a_mask_is_whole_and_exact(masker in masker(), rows in 1..24_usize, cols in 1..24_usize, seed: u64) {
        let grid = Grid::new(rows, cols);
        let mask = masker.mask(grid, &mut Streams::new(seed).stream("mask", 0, 0));
        assert_whole(&mask);
        prop_assert_eq!(mask.hidden().len(), hidden_count(grid, masker.ratio()));
        let again = masker.mask(grid, &mut Streams::new(seed).stream("mask", 0, 0));
        prop_assert_eq!(mask, again);
    }

    #[test]
    fn a_batch_lists_what_its_masks_say(masker in masker(), batch in 1..5_usize, seed: u64) {
        let grid = Grid::new(7, 9);
        let hidden = masker.hidden_count(grid);
        prop_assume!(hidden > 0);
        let stream = |image: usize| Streams::new(seed).stream("mask", 0, image as u64);
        let lists = BatchMask::draw(&masker, grid, batch, hidden.min(5), stream).unwrap();
        prop_assert!(lists.visible.is_sorted());
        prop_assert_eq!(lists.visible.len(), batch * lists.visible_per_image);
        prop_assert_eq!(lists.visible_per_image, grid.count() - hidden);
        for (image, chosen) in lists.predict.chunks(lists.predict_per_image).enumerate() {
            let mask = masker.mask(grid, &mut stream(image));
            let offset = (image * grid.count()) as u32;
            let mut patches: Vec<u32> = chosen.iter().map(|flat| flat - offset).collect();
            prop_assert!(patches.iter().all(|patch| mask.hidden().contains(patch)));
            patches.sort_unstable();
            patches.dedup();
            prop_assert_eq!(patches.len(), hidden.min(5), "without replacement");
        }
    }
}

#[test]
fn masks_are_frozen() {
    // Stored runs resume on these; a change here breaks every one of them.
    let config = |kind| MaskerConfig { kind, ratio: 0.7, ..MaskerConfig::default() };
    let hidden = |kind| {
        let stream = |image: usize| Streams::new(5).stream("mask", 2, image as u64);
        let lists = BatchMask::draw(&config(kind).check().unwrap(), Grid::new(3, 4), 1, 4, stream).unwrap();
        (lists.visible, lists.predict)
    };
    assert_eq!(hidden(MaskerKind::InverseBlock), (vec![0, 1, 4, 5], vec![9, 10, 11, 8]));
    assert_eq!(hidden(MaskerKind::Block), (vec![8, 9, 10, 11], vec![5, 6, 7, 4]));
    assert_eq!(hidden(MaskerKind::Random), (vec![1, 2, 3, 10], vec![9, 0, 8, 11]));
}

#[test]
fn an_unrolled_block_is_a_rectangle_with_a_trimmed_end() {
    let config = MaskerConfig { kind: MaskerKind::Block, ratio: 0.4, roll: false, ..MaskerConfig::default() };
    let grid = Grid::new(12, 10);
    for seed in 0..200 {
        let mask = config.check().unwrap().mask(grid, &mut Streams::new(seed).stream("mask", 0, 0));
        let cols: Vec<usize> = mask.hidden().iter().map(|cell| *cell as usize % grid.cols).collect();
        let (left, right) = (*cols.iter().min().unwrap(), *cols.iter().max().unwrap());
        let width = right - left + 1;
        let first = mask.hidden()[0] as usize;
        let expected: Vec<u32> = (0..mask.hidden().len())
            .map(|cell| ((first / grid.cols + cell / width) * grid.cols + left + cell % width) as u32)
            .collect();
        assert_eq!(mask.hidden(), expected);
    }
}

#[test]
fn predicted_positions_are_uniform_and_in_random_order() {
    // Every hidden patch must come first equally often: a sorted list, or one drawn from its start, would not.
    let grid = Grid::new(4, 5);
    let masker = MaskerConfig { kind: MaskerKind::Random, ratio: 0.5, ..MaskerConfig::default() }.check().unwrap();
    let mask = masker.mask(grid, &mut Streams::new(0).stream("mask", 0, 0));
    let draws = 20_000_u64;
    let mut firsts = vec![0_u64; grid.count()];
    for seed in 0..draws {
        let mut streams = [Streams::new(seed).stream("mask", 0, 1)];
        let lists = BatchMask::from_masks(std::slice::from_ref(&mask), 3, &mut streams).unwrap();
        firsts[lists.predict[0] as usize] += 1;
    }
    let expected = draws as f64 / mask.hidden().len() as f64;
    for patch in mask.hidden() {
        // Five standard deviations of a binomial count.
        assert!((firsts[*patch as usize] as f64 - expected).abs() < 5.0 * expected.sqrt(), "{patch}: {firsts:?}");
    }
}

#[test]
fn counts_truncate_as_the_public_code_does() {
    let published = [(16, 0.65, 166, 8), (14, 0.65, 127, 6), (14, 0.9, 176, 8)];
    for (side, ratio, hidden, predicted) in published {
        assert_eq!(hidden_count(Grid::new(side, side), ratio), hidden);
        assert_eq!(predict_count(hidden, 0.05), predicted);
    }
    assert_eq!(predict_count(10, 0.05), 0);
}

#[test]
fn a_batch_refuses_what_does_not_pair() {
    let mask = |grid: Grid, hidden: usize| Mask::from_fn(grid, |index| index < hidden);
    let square = Grid::new(3, 3);
    let unequal = BatchMask::from_lists(&[mask(square, 4), mask(square, 5)], &[vec![0], vec![0]]);
    assert!(matches!(unequal, Err(MaskError::Unequal { image: 1, got: 5, expected: 4, .. })));
    let other_grid = BatchMask::from_lists(&[mask(square, 4), mask(Grid::new(1, 9), 4)], &[vec![0], vec![0]]);
    assert!(matches!(other_grid, Err(MaskError::Unequal { image: 1, .. })));
    let visible = BatchMask::from_lists(&[mask(square, 4)], &[vec![8]]);
    assert_eq!(visible, Err(MaskError::NotHidden { image: 0, got: 1, expected: 1 }));
    let empty = BatchMask::from_lists(&[], &[]);
    assert_eq!(empty, Err(MaskError::Size { images: 0, patches: 0 }));
    let stream = |image: usize| Streams::new(0).stream("mask", 0, image as u64);
    let greedy = BatchMask::draw(&MaskerConfig::default().check().unwrap(), square, 2, 6, stream);
    assert_eq!(greedy, Err(MaskError::TooManyPredicted { asked: 6, hidden: 5 }));
}

#[test]
fn settings_are_refused_by_name() {
    let refused = |config: MaskerConfig| config.check().unwrap_err().to_string();
    let base = MaskerConfig::default;
    assert_eq!(refused(MaskerConfig { ratio: 1.2, ..base() }), "ratio = 1.2: must be between 0 and 1, both excluded");
    for ratio in [0.0, 1.0, -0.1, f64::NAN] {
        assert!(refused(MaskerConfig { ratio, ..base() }).starts_with("ratio = "));
    }
    for min_aspect in [0.0, 1.5, f64::NAN] {
        assert!(refused(MaskerConfig { min_aspect, ..base() }).starts_with("min_aspect = "));
    }
    let all = MaskerConfig { ratio: 0.1, ..base() }.check().unwrap();
    assert!(all.fits(Grid::new(3, 3)).unwrap_err().to_string().contains("3 x 3"));
    assert!(all.fits(Grid::new(4, 4)).is_ok());
    assert!(serde_json::from_str::<MaskerConfig>(r#"{"ration": 0.5}"#).is_err());
    let read: MaskerConfig = serde_json::from_str(r#"{"kind": "random", "ratio": 0.9}"#).unwrap();
    assert_eq!(read, MaskerConfig { kind: MaskerKind::Random, ratio: 0.9, ..base() });
}
