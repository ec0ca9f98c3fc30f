//! The linear probe against known problems and the reference tensors.

use super::linear_probe;
use crate::{Error, FeatureSet, LinearConfig, LinearProtocol, MaeLinearConfig, MocaLinearConfig};
use occlude_random::Streams;
use rand::Rng;

/// Rows around one corner for each of four classes.
fn corners(rows: usize, index: u64) -> FeatureSet {
    let mut stream = Streams::new(11).stream("test", 0, index);
    let mut features = Vec::new();
    let mut labels = Vec::new();
    for _ in 0..rows {
        let label = stream.random_range(0..4_u32);
        features.extend((0..6).map(|axis| stream.random::<f32>() + if axis == label { 3.0 } else { 0.0 }));
        labels.push(Some(label));
    }
    FeatureSet::new(features, 6, labels).unwrap()
}

fn quick() -> LinearConfig {
    LinearConfig { iterations: 300, lrs: vec![1e-4, 2e-2], weight_decays: vec![1e-3, 5e-2], ..LinearConfig::default() }
}

fn probe(train: &FeatureSet, test: &FeatureSet, config: &LinearConfig) -> Result<super::LinearReport, Error> {
    linear_probe(train, test, &config.check().unwrap(), &Streams::new(3), &mut |_, _| ())
}

#[test]
fn separable_classes_are_learned_and_the_better_rate_is_chosen() {
    let report = probe(&corners(600, 0), &corners(200, 1), &quick()).unwrap();
    assert_eq!(report.accuracy, 100.0);
    assert_eq!((report.train, report.validation, report.test), (540, 60, 200));
    assert_eq!(report.best.lr, 2e-2, "{:?}", report.trials);
    assert_eq!(report.trials.len(), 4);
    assert!(report.trials[0].validation < 90.0, "a rate that is far too low has not arrived: {:?}", report.trials);
}

fn moca(epochs: usize) -> LinearConfig {
    let moca = MocaLinearConfig { epochs, batch: 64, lrs: Some(vec![1e-6, 0.5]), weight_decays: vec![0.0] };
    LinearConfig { protocol: LinearProtocol::Moca, moca, ..LinearConfig::default() }
}

#[test]
fn the_other_recipe_quotes_the_best_head_at_its_best_epoch() {
    let (train, test) = (corners(600, 0), corners(200, 1));
    let report = probe(&train, &test, &moca(20)).unwrap();
    assert_eq!((report.train, report.validation, report.test), (600, 200, 200));
    assert_eq!((report.accuracy, report.best.lr), (100.0, 0.5), "{:?}", report.trials);
    assert!(report.trials[0].validation < 90.0, "a rate that is far too low has not arrived: {:?}", report.trials);
    let first = report.best.epoch.unwrap();
    assert!((1..20).contains(&first), "the first epoch of equal ones, not the last: {first}");
    // A run that ends there has decayed its rate sooner, but has seen as many images.
    assert!(probe(&train, &test, &moca(first)).unwrap().accuracy > 90.0);
    let text = serde_json::to_string(&report).unwrap();
    assert_eq!(serde_json::from_str::<super::LinearReport>(&text).unwrap(), report);
}

#[test]
fn a_batch_larger_than_the_set_is_one_step() {
    let whole = MocaLinearConfig { batch: 1024, ..moca(30).moca };
    let report = probe(&corners(100, 0), &corners(50, 1), &LinearConfig { moca: whole, ..moca(30) }).unwrap();
    assert!(report.accuracy > 80.0, "{report:?}");
}

/// Rates so high that 270 steps of small batches are enough: LARS moves a weight by its own size.
fn mae(lrs: &[f64]) -> LinearConfig {
    let mae = MaeLinearConfig { epochs: 30, warmup_epochs: 3, batch: 64, lrs: lrs.to_vec(), ..Default::default() };
    LinearConfig { protocol: LinearProtocol::Mae, mae, ..LinearConfig::default() }
}

#[test]
fn the_recipe_with_lars_quotes_its_last_epoch() {
    let (train, test) = (corners(600, 0), corners(200, 1));
    let mut told = Vec::new();
    let mut progress = |done, of| told.push((done, of));
    let report = linear_probe(&train, &test, &mae(&[20.0]).check().unwrap(), &Streams::new(3), &mut progress).unwrap();
    assert_eq!((report.accuracy, report.best.lr, report.best.epoch), (100.0, 20.0, Some(30)), "{report:?}");
    assert_eq!((report.train, report.validation, report.test), (600, 0, 200), "nothing was chosen");
    assert_eq!((told.len(), told[0], told[29]), (30, (1, 30), (30, 30)));
    let text = serde_json::to_string(&report).unwrap();
    assert_eq!(serde_json::from_str::<super::LinearReport>(&text).unwrap(), report);
    assert!(text.contains(r#""protocol":"mae""#), "{text}");
}

#[test]
fn the_best_of_several_rates_of_lars_is_chosen_on_the_test_images() {
    let report = probe(&corners(600, 0), &corners(200, 1), &mae(&[1e-6, 20.0])).unwrap();
    assert_eq!((report.accuracy, report.best.lr, report.validation), (100.0, 20.0, 200), "{:?}", report.trials);
    assert!(report.trials[0].validation < 90.0, "a rate that is far too low has not arrived: {:?}", report.trials);
}

#[test]
fn lars_takes_a_set_smaller_than_the_batch_whole() {
    let whole = MaeLinearConfig { epochs: 90, warmup_epochs: 10, batch: 16_384, ..mae(&[20.0]).mae };
    let report = probe(&corners(100, 0), &corners(50, 1), &LinearConfig { mae: whole, ..mae(&[]) }).unwrap();
    assert!(report.accuracy > 90.0 && report.train == 100, "{report:?}");
}

#[test]
fn batch_normalisation_and_standardising_make_up_for_unequal_scale() {
    let squeezed = |mut set: FeatureSet| {
        set.features.iter_mut().for_each(|value| *value = *value * 1e-2 + 5.0);
        set
    };
    let (train, test) = (squeezed(corners(600, 0)), squeezed(corners(200, 1)));
    let with = |batch_norm, standardise| {
        let recipe = MaeLinearConfig { batch_norm, ..mae(&[20.0]).mae };
        probe(&train, &test, &LinearConfig { mae: recipe, standardise, ..mae(&[]) }).unwrap().accuracy
    };
    assert_eq!((with(true, false), with(false, true), with(true, true)), (100.0, 100.0, 100.0));
    let plain = with(false, false);
    assert!(plain < 95.0, "{plain} without either");
}

#[test]
fn shuffled_labels_are_chance() {
    let mut stream = Streams::new(4).stream("test", 0, 0);
    let mut train = corners(600, 0);
    train.labels.iter_mut().for_each(|label| *label = Some(stream.random_range(0..4)));
    let report = probe(&train, &corners(200, 1), &quick()).unwrap();
    assert!(report.accuracy < 60.0, "{report:?}");
}

#[test]
fn the_same_inputs_give_the_same_report() {
    for config in [quick(), moca(3), mae(&[20.0, 2.0])] {
        let run = || probe(&corners(300, 0), &corners(100, 1), &config).unwrap();
        assert_eq!(run(), run());
    }
}

#[test]
fn standardising_helps_features_of_unequal_scale() {
    let squeezed = |mut set: FeatureSet| {
        set.features.iter_mut().for_each(|value| *value = *value * 1e-4 + 5.0);
        set
    };
    let (train, test) = (squeezed(corners(600, 0)), squeezed(corners(200, 1)));
    let plain = probe(&train, &test, &quick()).unwrap().accuracy;
    let scaled = probe(&train, &test, &LinearConfig { standardise: true, ..quick() }).unwrap().accuracy;
    assert!(scaled == 100.0 && plain < 95.0, "{plain} plain, {scaled} standardised");
}

#[test]
fn rows_without_label_are_left_out_and_none_at_all_is_refused() {
    let (mut train, test) = (corners(100, 0), corners(50, 1));
    train.labels[..30].fill(None);
    assert_eq!(probe(&train, &test, &quick()).unwrap().train, 63);
    train.labels[..95].fill(None);
    assert!(matches!(probe(&train, &test, &quick()), Err(Error::TooFew { got: 5, .. })));
    train.labels.fill(None);
    assert!(matches!(probe(&train, &test, &quick()), Err(Error::NoLabels { .. })));
}
