//! The codebook on small sizes, by hand.

use super::{Choice, Chosen, CodebookConfig, CodebookUpdate, OnlineCodebook, Place};
use candle_core::{DType, Device, Tensor};
use occlude_kernels::ParamStore;
use occlude_kernels::check::{same, same_for_any_threads, sample};
use occlude_masking::Grid;
use occlude_random::Streams;

const GRID: Grid = Grid { rows: 3, cols: 4 };
const DIM: usize = 5;

fn codebook(update: CodebookUpdate, include: bool) -> (ParamStore, OnlineCodebook) {
    let config = CodebookConfig {
        words: 6,
        new_words_per_step: 2,
        border: 1,
        update,
        fps_include_codebook: include,
        ..CodebookConfig::default()
    };
    let mut store = ParamStore::frozen(Streams::new(2), DType::F64, &Device::Cpu);
    let codebook = OnlineCodebook::new(&mut store.root(), &config.check(GRID, 3).unwrap(), DIM).unwrap();
    (store, codebook)
}

fn random_tokens() -> (ParamStore, OnlineCodebook) {
    codebook(CodebookUpdate::RandomToken, false)
}

/// Three images of twelve patches.
fn tokens() -> Tensor {
    sample(4, (3, 12, DIM)).unwrap()
}

fn rows(t: &Tensor) -> Vec<Vec<f64>> {
    t.to_vec2().unwrap()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn unit(a: &[f64]) -> Vec<f64> {
    a.iter().map(|v| v / dot(a, a).sqrt()).collect()
}

fn token(image: usize, patch: usize) -> Vec<f64> {
    rows(&tokens().get(image).unwrap())[patch].clone()
}

fn places(list: &[(u32, u32)]) -> Choice {
    let words = list.iter().map(|(image, patch)| Place { image: *image, patch: *patch }).collect();
    Choice { view: 0, words: Chosen::Tokens(words) }
}

#[test]
fn it_starts_with_unit_words_without_negative_parts() {
    let settings = random_tokens().1.settings().clone();
    let mut store = ParamStore::frozen(Streams::new(2), DType::F64, &Device::Cpu);
    let codebook = OnlineCodebook::new(&mut store.root(), &settings, 64).unwrap();
    for word in rows(&codebook.words().unwrap()) {
        let zeros = word.iter().filter(|v| **v == 0.0).count();
        assert!(word.iter().all(|v| *v >= 0.0) && (10..55).contains(&zeros), "{zeros} of 64, about half");
        assert!((dot(&word, &word) - 1.0).abs() < 1e-12);
    }
    let names: Vec<_> = store.params().iter().map(|p| p.name.as_str()).collect();
    let expected = ["_embedding", "_embedding_ptr", "_track_num_batches", "_dist_norm", "_dist_norm_prev"];
    assert_eq!(names, expected);
    assert_eq!((codebook.pointer().unwrap(), codebook.distance().unwrap()), (0, 0.5));
    assert_eq!(codebook.inverse_temperature().unwrap(), 20.0);
}

#[test]
fn assignments_are_those_of_the_formula() {
    let (_, codebook) = random_tokens();
    let got = codebook.assign(&tokens()).unwrap();
    let words = rows(&codebook.words().unwrap());
    let mut distance = 0.0;
    for (image, patch) in (0..3).flat_map(|i| (0..12).map(move |p| (i, p))) {
        let token = unit(&token(image, patch));
        let cosines: Vec<f64> = words.iter().map(|word| dot(&token, word)).collect();
        distance += cosines.iter().copied().fold(f64::NEG_INFINITY, f64::max) - cosines.iter().sum::<f64>() / 6.0;
        let total: f64 = cosines.iter().map(|c| (20.0 * c).exp()).sum();
        let target = rows(&got.targets.get(image).unwrap())[patch].clone();
        assert!(target.iter().zip(&cosines).all(|(q, c)| (q - (20.0 * c).exp() / total).abs() < 1e-12));
    }
    assert!((got.distance(0..3) - distance / 36.0).abs() < 1e-12);
    let parts = got.distance(0..1) + 2.0 * got.distance(1..3);
    assert!((parts - distance / 12.0).abs() < 1e-12);
    assert_eq!(got.entropies.len(), 36);
    assert!(!got.targets.track_op());
}

#[test]
fn the_temperature_is_one_step_late() {
    let (_, mut codebook) = random_tokens();
    codebook.observe(0.1).unwrap();
    codebook.observe(0.3).unwrap();
    let running = 0.99 * (0.99 * 0.5 + 0.001) + 0.003;
    assert!((codebook.distance().unwrap() - running).abs() < 1e-15);
    assert_eq!(codebook.inverse_temperature().unwrap(), 20.0, "within the step");
    codebook.push(&sample(1, (2, DIM)).unwrap()).unwrap();
    assert!((codebook.inverse_temperature().unwrap() - 10.0 / running).abs() < 1e-12);
}

#[test]
fn image_targets_leave_the_border_out() {
    let (_, codebook) = random_tokens();
    let targets = codebook.assign(&tokens()).unwrap().targets;
    let got = rows(&codebook.image_targets(&targets).unwrap());
    for (image, got) in got.iter().enumerate() {
        let all = rows(&targets.get(image).unwrap());
        for (word, got) in got.iter().enumerate() {
            assert!((got - (all[5][word] + all[6][word]) / 2.0).abs() < 1e-12);
        }
        assert!((got.iter().sum::<f64>() - 1.0).abs() < 1e-12);
    }
    // What does not sum to one is made to.
    let double = rows(&codebook.image_targets(&(&targets * 2.0).unwrap()).unwrap());
    assert!((double[0].iter().sum::<f64>() - 1.0).abs() < 1e-12);
}

#[test]
fn words_are_replaced_in_turn_and_copies_stay() {
    let (store, mut codebook) = random_tokens();
    let before = codebook.words().unwrap();
    let first = rows(&before);
    for step in 0..3 {
        let choice = places(&[(2, 5), (0, 6)]);
        let new = codebook.new_words(&choice, &(tokens() + f64::from(step)).unwrap()).unwrap();
        codebook.push(&new).unwrap();
        let (words, new) = (rows(&codebook.words().unwrap()), rows(&new));
        let at = 2 * usize::try_from(step).unwrap();
        assert_eq!(words[at..at + 2], new[..]);
        assert_eq!(words[at + 2..], first[at + 2..]);
        if step == 0 {
            same(
                "word",
                &Tensor::new(new[0].clone(), &Device::Cpu).unwrap(),
                &Tensor::new(unit(&token(2, 5)), &Device::Cpu).unwrap(),
                1e-12,
            )
            .unwrap();
        }
    }
    assert_eq!(rows(&before), first, "the copy of the first step");
    assert_eq!(codebook.pointer().unwrap(), 0, "round again");
    assert_eq!(store.get("_track_num_batches").unwrap().to_vec1::<f64>().unwrap(), [3.0]);
}

#[test]
fn means_are_those_inside_the_border() {
    let (_, codebook) = codebook(CodebookUpdate::AvgToken, false);
    let choice = Choice { view: 1, words: Chosen::Means(vec![1, 0]) };
    let got = rows(&codebook.new_words(&choice, &tokens()).unwrap());
    for (got, image) in got.iter().zip([1, 0]) {
        let mean: Vec<f64> = token(image, 5).iter().zip(token(image, 6)).map(|(a, b)| (a + b) / 2.0).collect();
        assert!(got.iter().zip(unit(&mean)).all(|(a, b)| (a - b).abs() < 1e-12));
    }
}

#[test]
fn farthest_points_are_those_of_an_exhaustive_search() {
    for include in [false, true] {
        let (_, codebook) = codebook(CodebookUpdate::Fps, include);
        let candidates: Vec<Vec<f64>> = (0..3).flat_map(|i| [unit(&token(i, 5)), unit(&token(i, 6))]).collect();
        let words = rows(&codebook.words().unwrap());
        for first in 0..6_u32 {
            let place = Place { image: first / 2, patch: 5 + first % 2 };
            let choice = Choice { view: 0, words: Chosen::Farthest(place) };
            let got = rows(&codebook.new_words(&choice, &tokens()).unwrap());
            let mut known = vec![candidates[first as usize].clone()];
            known.extend(if include { words.clone() } else { vec![] });
            let close = |c: &Vec<f64>| known.iter().map(|k| dot(c, k)).fold(f64::NEG_INFINITY, f64::max);
            let others = candidates.iter().filter(|c| **c != known[0]);
            let next = others.min_by(|a, b| close(a).total_cmp(&close(b))).unwrap();
            assert!(got[1].iter().zip(next).all(|(a, b)| (a - b).abs() < 1e-12), "{include} {first}");
            assert!(got[0].iter().zip(&known[0]).all(|(a, b)| (a - b).abs() < 1e-12));
        }
    }
}

#[test]
fn equal_patches_are_not_taken_twice() {
    let (_, codebook) = codebook(CodebookUpdate::Fps, false);
    let equal = Tensor::ones((3, 12, DIM), DType::F64, &Device::Cpu).unwrap();
    let rows = super::l2_normalize(&equal.narrow(1, 0, 2).unwrap().reshape((6, DIM)).unwrap(), 1e-5).unwrap();
    assert_eq!(codebook.farthest(&rows, 0).unwrap(), [0, 1]);
}

#[test]
fn a_nan_reaches_target_and_distance() {
    let (_, codebook) = random_tokens();
    let bad = (tokens() * f64::NAN).unwrap();
    let got = codebook.assign(&bad).unwrap();
    assert!(got.distance(0..3).is_nan());
    let image = rows(&codebook.image_targets(&got.targets).unwrap());
    assert!(image.concat().iter().all(|v| v.is_nan()));
}

#[test]
fn what_does_not_fit_is_refused() {
    let (store, mut codebook) = random_tokens();
    let other = sample(1, (3, 11, DIM)).unwrap();
    let refused = |result: occlude_kernels::Result<Tensor>| result.unwrap_err().to_string();
    assert!(codebook.assign(&other).unwrap_err().to_string().contains("[batch, 12, 5]"));
    let none = Tensor::zeros((0, 12, DIM), DType::F64, &Device::Cpu).unwrap();
    assert!(codebook.assign(&none).unwrap_err().to_string().contains("at least one image"));
    assert!(refused(codebook.image_targets(&other)).contains("[batch, 12, 6]"));
    assert!(refused(codebook.new_words(&places(&[(0, 5)]), &tokens())).contains("2 new words"));
    assert!(refused(codebook.new_words(&places(&[(0, 5), (3, 5)]), &tokens())).contains("image: 3"));
    assert!(refused(codebook.new_words(&places(&[(0, 5), (1, 12)]), &tokens())).contains("patch: 12"));
    let border = Choice { view: 0, words: Chosen::Farthest(Place { image: 0, patch: 0 }) };
    assert!(refused(codebook.new_words(&border, &tokens())).contains("lies on the border"));
    assert!(codebook.push(&sample(1, (3, DIM)).unwrap()).unwrap_err().to_string().contains("2 new words"));
    let mut state = store.state();
    state.insert("_embedding_ptr".into(), Tensor::new(&[-1_i64], &Device::Cpu).unwrap());
    store.load(&state).unwrap();
    assert!(codebook.pointer().unwrap_err().to_string().contains("-1"));
}

#[test]
fn any_number_of_threads_gives_equal_bits() {
    let config = CodebookConfig { words: 96, new_words_per_step: 4, border: 1, ..CodebookConfig::default() };
    let settings = config.check(Grid::new(9, 7), 8).unwrap();
    let tokens = sample(3, (8, 63, 33)).unwrap().to_dtype(DType::F32).unwrap();
    same_for_any_threads(|| {
        let mut store = ParamStore::frozen(Streams::new(2), DType::F32, &Device::Cpu);
        let mut codebook = OnlineCodebook::new(&mut store.root(), &settings, 33)?;
        let got = codebook.assign(&tokens)?;
        let image = codebook.image_targets(&got.targets)?;
        codebook.observe(got.distance(0..8))?;
        let choice = settings.draw(8, &mut Streams::new(1).stream("words", 0, 0));
        let new = codebook.new_words(&choice, &tokens)?;
        codebook.push(&new)?;
        Ok(vec![got.targets, image, codebook.words()?, codebook.distance.clone(), codebook.frozen.clone()])
    })
    .unwrap();
}
