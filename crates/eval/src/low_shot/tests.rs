//! Low-shot classification against the reference tensors, and its subsets against small data sets.

use super::{LowShotSplit, low_shot, low_shot_splits, mean_and_deviation, prepared};
use crate::logistic::{Problem, Stop};
use crate::{Error, FeatureSet, LowShotConfig, LowShotList};
use candle_core::{DType, Device, Tensor};
use occlude_data::{Dataset, Image};
use occlude_golden::assert_close;
use std::collections::BTreeMap;
use std::path::PathBuf;

fn set(tensors: &BTreeMap<String, Tensor>, part: &str) -> FeatureSet {
    let (features, labels) = (&tensors[&format!("{part}_raw")], &tensors[&format!("{part}_labels")]);
    let labels: Vec<i64> = labels.to_vec1().unwrap();
    let labels = labels.into_iter().map(|label| Some(label as u32)).collect();
    FeatureSet::new(features.flatten_all().unwrap().to_vec1().unwrap(), features.dim(1).unwrap(), labels).unwrap()
}

#[test]
fn golden_moca_logreg() {
    let Some(tensors) = occlude_golden::set("moca").tensors("logreg") else { return };
    let (train, test) = (set(&tensors, "train"), set(&tensors, "test"));
    let like = |values: &[f32], name: &str| Tensor::from_slice(values, tensors[name].dims(), &Device::Cpu).unwrap();
    for (set, name) in [(&train, "train_preprocessed"), (&test, "test_preprocessed")] {
        assert_close(name, &like(&prepared(set), name), &tensors[name], 1e-6);
    }
    let targets: Vec<usize> = train.labels.iter().flatten().map(|label| *label as usize).collect();
    let (classes, dim) = tensors["optimum.coef"].dims2().unwrap();
    let (features, settings) = (prepared(&train), LowShotConfig::default().check().unwrap());
    let published = Stop { iterations: settings.iterations, tolerance: settings.tolerance };
    let predictions: Vec<i64> = tensors["optimum.predictions"].to_vec1().unwrap();
    for (stop, tolerance) in [(Stop::EXACT, 1e-4), (published, 1e-3)] {
        let c = 1.0 / settings.lambdas[0];
        let problem = Problem { features: &features, dim, targets: &targets, classes, c, bias: false, stop };
        let fit = problem.fit().unwrap();
        assert!(fit.converged, "{stop:?}");
        let weight = Tensor::from_slice(&fit.weight, (classes, dim), &Device::Cpu).unwrap();
        assert_close(&format!("{stop:?}"), &weight, &tensors["optimum.coef"], tolerance);
        let predicted = fit.predict(&prepared(&test)).unwrap();
        assert_eq!(predicted.iter().map(|class| *class as i64).collect::<Vec<_>>(), predictions, "{stop:?}");
        let logits = Tensor::from_slice(&prepared(&test), (test.len(), dim), &Device::Cpu).unwrap();
        let logits = logits.to_dtype(DType::F64).unwrap().matmul(&weight.t().unwrap()).unwrap();
        let probabilities = occlude_kernels::softmax(&logits).unwrap();
        assert_close("probabilities", &probabilities, &tensors["optimum.test_probabilities"], tolerance);
    }
    // Through the protocol: one subset that is the whole set.
    let split = LowShotSplit { name: "all".into(), subsets: vec![(0..train.len()).collect()] };
    let report = low_shot(&train, &test, &[split], &settings, &mut |_, _| ()).unwrap();
    let official: Vec<f64> = tensors["official.accuracy"].to_vec1().unwrap();
    let optimum = predictions.iter().zip(&test.labels).filter(|(got, label)| Some(**got as u32) == **label).count();
    assert_eq!(report.scores[0].accuracies, [100.0 * optimum as f64 / test.len() as f64]);
    // The reference's own solver stops early: it may differ by an image or two.
    assert!((report.scores[0].mean - 100.0 * official[0]).abs() <= 200.0 / test.len() as f64, "{report:?}");
}

#[test]
fn the_minimum_has_the_reference_value() {
    let Some(tensors) = occlude_golden::set("moca").tensors("logreg") else { return };
    let train = set(&tensors, "train");
    let (classes, dim) = tensors["optimum.coef"].dims2().unwrap();
    let targets: Vec<usize> = train.labels.iter().flatten().map(|label| *label as usize).collect();
    let features = prepared(&train);
    let problem =
        Problem { features: &features, dim, targets: &targets, classes, c: 10.0, bias: false, stop: Stop::EXACT };
    let fit = problem.fit().unwrap();
    let objective: Vec<f64> = tensors["optimum.objective"].to_vec1().unwrap();
    let value = problem.value(&fit.weight).unwrap();
    assert!((value - objective[0]).abs() <= 1e-7 * objective[0], "{value} against {}", objective[0]);
}

#[test]
fn a_mean_has_the_deviation_of_a_population() {
    assert_eq!(mean_and_deviation(&[1.0, 3.0]), (2.0, 1.0));
    assert_eq!(mean_and_deviation(&[72.4]), (72.4, 0.0));
}

/// Names with a label each; there is nothing to read.
struct Names {
    names: Vec<(String, Option<u32>)>,
    classes: Vec<String>,
}

impl Names {
    /// `per_class` images of each class: `folder/class_0.png`, ...
    fn new(classes: &[&str], per_class: usize) -> Self {
        let classes: Vec<String> = classes.iter().map(|class| (*class).to_owned()).collect();
        let names = (0..classes.len() * per_class).map(|index| {
            let label = index % classes.len();
            (format!("photos/{0}/{0}_{1}.png", classes[label], index / classes.len()), Some(label as u32))
        });
        Self { names: names.collect(), classes }
    }
}

impl Dataset for Names {
    fn len(&self) -> usize {
        self.names.len()
    }
    fn read(&self, index: usize) -> occlude_data::Result<Image> {
        Err(occlude_data::Error::Missing { path: self.name(index).into() })
    }
    fn label(&self, index: usize) -> Option<u32> {
        self.names[index].1
    }
    fn classes(&self) -> &[String] {
        &self.classes
    }
    fn name(&self, index: usize) -> String {
        self.names[index].0.clone()
    }
}

#[test]
fn drawn_subsets_are_nested_balanced_and_repeatable() {
    let dataset = Names::new(&["a", "b", "c"], 9);
    let draw = |seed| {
        let config = LowShotConfig { seed, ..LowShotConfig::default() };
        low_shot_splits(&dataset, &config.check().unwrap()).unwrap()
    };
    let splits = draw(0);
    assert_eq!(splits.iter().map(|split| split.name.as_str()).collect::<Vec<_>>(), ["1-shot", "2-shot", "5-shot"]);
    for subset in 0..3 {
        let [one, two, five] = [0, 1, 2].map(|split: usize| &splits[split].subsets[subset]);
        assert!(one.iter().all(|index| two.contains(index)) && two.iter().all(|index| five.contains(index)));
        for (images, shots) in [(one, 1), (two, 2), (five, 5)] {
            assert!(images.windows(2).all(|pair| pair[0] < pair[1]));
            for class in 0..3 {
                assert_eq!(images.iter().filter(|index| dataset.label(**index) == Some(class)).count(), shots);
            }
        }
    }
    assert_ne!(splits[2].subsets[0], splits[2].subsets[1], "subsets differ");
    assert_eq!(splits, draw(0));
    assert_ne!(splits, draw(1));
    let few = LowShotConfig { shots: vec![10], ..LowShotConfig::default() };
    let refused = low_shot_splits(&dataset, &few.check().unwrap()).unwrap_err();
    assert!(matches!(&refused, Error::FewOfClass { class, got: 9, needed: 10 } if class == "a"), "{refused}");
}

#[test]
fn drawn_subsets_are_frozen() {
    // Which images earlier versions learned from: a change here makes their scores incomparable.
    let config = LowShotConfig { shots: vec![2], subsets: 2, ..LowShotConfig::default() };
    let splits = low_shot_splits(&Names::new(&["a", "b"], 50), &config.check().unwrap()).unwrap();
    assert_eq!(splits[0].subsets, FROZEN);
}

const FROZEN: [[usize; 4]; 2] = [[7, 26, 27, 92], [12, 35, 66, 93]];

/// What the lines of a file name, or why it is refused.
fn listed(dataset: &Names, lines: &str) -> Result<Vec<usize>, String> {
    let folder = tempfile::tempdir().unwrap();
    let file: PathBuf = folder.path().join("list.txt");
    std::fs::write(&file, lines).unwrap();
    let lists = vec![LowShotList { name: "1 %".into(), files: vec![file] }];
    let settings = LowShotConfig { lists, ..LowShotConfig::default() }.check().unwrap();
    let splits = low_shot_splits(dataset, &settings).map_err(|error| error.to_string())?;
    assert_eq!((splits.len(), splits[0].name.as_str()), (1, "1 %"));
    Ok(splits[0].subsets[0].clone())
}

#[test]
fn lists_find_images_by_file_name_stem_or_folder() {
    let dataset = Names::new(&["n01", "n02"], 3);
    assert_eq!(listed(&dataset, "n02_0.png\n\n  n01_2.png \r\n").unwrap(), [1, 4]);
    assert_eq!(listed(&dataset, "n02_1.JPEG\nn01_0").unwrap(), [0, 3], "the ending may be another");
    assert_eq!(listed(&dataset, "n02/n02_1.png").unwrap(), [3]);
    let mut packed = Names::new(&["n01", "n02"], 2);
    packed.names[3].0 = "shards/0.tar: n02_1.jpg".into();
    packed.names[2].0 = "shards/0.tar: n01/n01_1.jpg".into();
    assert_eq!(listed(&packed, "n02_1.JPEG\nn01/n01_1.jpg").unwrap(), [2, 3], "inside archives");
    // The same file names in every folder.
    let mut alike = Names::new(&["cat", "dog"], 2);
    for (index, (name, label)) in alike.names.iter_mut().enumerate() {
        *name = format!("{}/{}.png", ["cat", "dog"][label.unwrap() as usize], index / 2);
    }
    assert_eq!(listed(&alike, "dog/1.png\ncat/1.png").unwrap(), [2, 3]);
    assert!(listed(&alike, "1.png").unwrap_err().contains("line 1: `1.png`: several images have this name"));
}

#[test]
fn lists_that_do_not_fit_are_refused() {
    let mut dataset = Names::new(&["n01", "n02"], 3);
    dataset.names.push(("n01/n02_7.png".into(), Some(0)));
    dataset.names.push(("lost.png".into(), None));
    for (lines, why) in [
        ("n01_0.png\nn03_0.png", "line 2: `n03_0.png`: no such image"),
        ("n01_0.png\nn01_0.JPEG", "line 2: `n01_0.JPEG`: named twice"),
        ("n02_7.png", "is of class n01 in the data set, not n02"),
        ("lost.png", "has no class"),
        ("\n", "names no image"),
        ("n03/n01_0.png", "no such image"),
    ] {
        let message = listed(&dataset, lines).unwrap_err();
        assert!(message.contains(why) && message.contains("list.txt"), "{lines:?}: {message}");
    }
    let lists = vec![LowShotList { name: "x".into(), files: vec!["nowhere.txt".into()] }];
    let settings = LowShotConfig { lists, ..LowShotConfig::default() }.check().unwrap();
    assert!(low_shot_splits(&dataset, &settings).unwrap_err().to_string().starts_with("nowhere.txt"));
}

/// Rows around one axis for each class; row `i` is image `first + i` of the data set.
fn axes(rows: usize, classes: u32, first: usize) -> FeatureSet {
    let mut features = Vec::new();
    let mut labels = Vec::new();
    for row in 0..rows as u32 {
        let label = row % classes;
        features.extend((0..8).map(|axis| if axis == label { 2.0 } else { ((row * 7 + axis * 5) % 11) as f32 / 20.0 }));
        labels.push(Some(label));
    }
    let set = FeatureSet::new(features, 8, labels).unwrap();
    FeatureSet { indices: (first..first + rows).collect(), ..set }
}

#[test]
fn subsets_and_penalties_are_scored_each_by_itself() {
    let (train, test) = (axes(20, 4, 100), axes(40, 4, 0));
    let splits = [
        LowShotSplit { name: "1-shot".into(), subsets: vec![vec![100, 101, 102, 103], vec![104, 105, 106, 107]] },
        // Two classes of four; image 999 could not be read.
        LowShotSplit { name: "half".into(), subsets: vec![vec![100, 101, 999]] },
    ];
    let config = LowShotConfig { lambdas: vec![0.1, 100.0], ..LowShotConfig::default() };
    let mut told = Vec::new();
    let mut tell = |done, of| told.push((done, of));
    let report = low_shot(&train, &test, &splits, &config.check().unwrap(), &mut tell).unwrap();
    assert_eq!(told.last(), Some(&(6, 6)));
    let scores: Vec<_> = report.scores.iter().map(|score| (score.split.as_str(), score.lambda)).collect();
    assert_eq!(scores, [("1-shot", 0.1), ("1-shot", 100.0), ("half", 0.1), ("half", 100.0)]);
    assert_eq!((report.scores[0].mean, report.scores[0].deviation, report.test), (100.0, 0.0, 40));
    assert_eq!((report.scores[0].images.as_slice(), report.scores[2].images.as_slice()), (&[4, 4][..], &[2][..]));
    assert_eq!(report.scores[2].mean, 50.0, "a class that was never seen is never right");
    assert!(report.scores.iter().all(|score| score.converged));
    let one_class = LowShotSplit { name: "one".into(), subsets: vec![vec![100, 104]] };
    let refused = low_shot(&train, &test, &[one_class], &config.check().unwrap(), &mut |_, _| ()).unwrap_err();
    assert!(refused.to_string().contains("at least two"), "{refused}");
}
