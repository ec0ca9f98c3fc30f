//! The linear probe against known problems and the reference tensors.

use super::linear_probe;
use crate::{Error, FeatureSet, LinearConfig, LinearProtocol, MocaLinearConfig};
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
    let run = || probe(&corners(300, 0), &corners(100, 1), &quick()).unwrap();
    assert_eq!(run(), run());
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
