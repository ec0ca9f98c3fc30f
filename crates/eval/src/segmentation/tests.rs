//! Against the reference tensors, and against problems one can solve by hand.

use super::{Distance, LogisticRegression, PatchSet, patch_knn, patch_labels, segmentation_score};
use crate::{Error, Standard};
use candle_core::{DType, Device, Tensor};
use occlude_golden::assert_close;
use std::collections::BTreeMap;

/// In the reference file label 0 is ignored.
const IGNORED: [u8; 1] = [0];

/// The patches of the reference file as they are, and its tensors.
struct Reference {
    tensors: BTreeMap<String, Tensor>,
    train: PatchSet,
    test: PatchSet,
}

impl Reference {
    fn read() -> Option<Self> {
        let tensors = occlude_golden::set("capi").tensors("patch_eval")?;
        let set = |part: &str| {
            let (features, labels) = (&tensors[&format!("{part}_features")], &tensors[&format!("{part}_labels")]);
            let (dim, pixels) = (features.dim(1).unwrap(), labels.dim(1).unwrap());
            PatchSet::new(features.flatten_all().unwrap().to_vec1().unwrap(), dim, bytes(labels), pixels).unwrap()
        };
        let (train, test) = (set("train"), set("test"));
        Some(Self { tensors, train, test })
    }

    /// Both parts at one scale; of the training part only the patches that are not mostly ignored.
    fn standardised(&self) -> (PatchSet, PatchSet) {
        let standard = self.train.standard();
        let kept = self.train.select(&self.train.labelled_rows(&IGNORED)).unwrap();
        (kept.scaled(&standard), self.test.clone().scaled(&standard))
    }

    /// What stands between `prefix` and `suffix` in the names.
    fn settings<'a>(&'a self, prefix: &'a str, suffix: &'a str) -> impl Iterator<Item = &'a str> {
        self.tensors.keys().filter_map(move |name| name.strip_prefix(prefix)?.strip_suffix(suffix))
    }
}

fn bytes(tensor: &Tensor) -> Vec<u8> {
    tensor.to_dtype(DType::U8).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

fn like(values: &[f32], reference: &Tensor) -> Tensor {
    Tensor::from_slice(values, reference.dims(), &Device::Cpu).unwrap().to_dtype(reference.dtype()).unwrap()
}

#[test]
fn golden_capi_patch_scaling() {
    let Some(reference) = Reference::read() else { return };
    let scaled = |standard: &Standard, set: &PatchSet| set.clone().scaled(standard);
    let (standard, overall) = (reference.train.standard(), reference.train.overall());
    for (name, set) in [
        ("standardized.train", scaled(&standard, &reference.train)),
        ("standardized.test", scaled(&standard, &reference.test)),
        ("center_div.test", scaled(&overall, &reference.test)),
    ] {
        let expected = &reference.tensors[name];
        assert_close(name, &like(set.features(), expected), expected, 1e-6);
    }
}

#[test]
fn golden_capi_patch_modes() {
    let Some(reference) = Reference::read() else { return };
    assert_eq!(reference.train.modes(), bytes(&reference.tensors["train_patch_mode"]));
    let kept: Vec<i64> = reference.tensors["knn.kept_train_rows"].to_vec1().unwrap();
    let got: Vec<i64> = reference.train.labelled_rows(&IGNORED).into_iter().map(|row| row as i64).collect();
    assert_eq!(got, kept);
}

#[test]
fn golden_capi_patch_knn_and_its_scores() {
    let Some(reference) = Reference::read() else { return };
    let (train, test) = reference.standardised();
    let mut compared = 0;
    for (word, distance) in [("cosine", Distance::Cosine), ("L2", Distance::Euclidean)] {
        for k in reference.settings(&format!("knn.{word}.k"), ".pred") {
            let predicted = patch_knn(&train, test.features(), k.parse().unwrap(), distance).unwrap();
            let name = format!("knn.{word}.k{k}");
            assert!(predicted == bytes(&reference.tensors[&format!("{name}.pred")]), "{name}: other labels");
            let score = segmentation_score(test.labels(), &predicted, &IGNORED).unwrap();
            let got = Tensor::new(&[score.mean_iou / 100.0, score.accuracy / 100.0], &Device::Cpu).unwrap();
            // The reference averages overlaps in f32.
            assert_close(&name, &got, &reference.tensors[&format!("{name}.mIoU_acc")], 1e-6);
            compared += 1;
        }
    }
    assert!(compared > 0, "the reference file holds no k-NN predictions");
}

#[test]
fn golden_capi_patch_logistic_regression() {
    let Some(reference) = Reference::read() else { return };
    let (train, test) = reference.standardised();
    let strengths: Vec<f64> = reference.tensors["logreg.C_values"].to_vec1().unwrap();
    let mut compared = 0;
    for index in reference.settings("logreg.C", ".coef") {
        let of = |part: &str| &reference.tensors[&format!("logreg.C{index}.{part}")];
        let c = strengths[index.parse::<usize>().unwrap()];
        let fit = LogisticRegression::fit(train.features(), train.dim(), &train.modes(), c).unwrap();
        assert_eq!(fit.classes, bytes(&reference.tensors["logreg.classes"]));
        for (part, got) in [("coef", fit.weight()), ("intercept", fit.bias())] {
            let got = Tensor::from_slice(got, of(part).dims(), &Device::Cpu).unwrap();
            assert_close(&format!("C{index}.{part}"), &got, of(part), 1e-5);
        }
        assert_eq!(fit.predict(test.features()).unwrap(), bytes(of("pred")), "C{index}");
        compared += 1;
    }
    assert!(compared > 0, "the reference file holds no logistic regressions");
}

#[test]
fn maps_are_cut_row_by_row() {
    let map: Vec<u8> = (0..24).collect();
    let patches = patch_labels(&map, (4, 6), 2).unwrap();
    assert_eq!(patches[..8], [0, 1, 6, 7, 2, 3, 8, 9]);
    assert_eq!(patches[20..], [16, 17, 22, 23]);
    for (size, patch) in [((4, 6), 4), ((4, 5), 1), ((0, 0), 0), ((4, 6), 0)] {
        assert!(matches!(patch_labels(&map, size, patch), Err(Error::Mismatch(_))), "{size:?}, {patch}");
    }
}

#[test]
fn a_score_by_hand() {
    // Of label 1: two right, one taken for 0 (ignored, and so one more label), one for 2. Of label 2: one right.
    let (truth, predicted) = ([1, 1, 1, 1, 2, 0, 0], [1, 1, 0, 2, 2, 1, 0]);
    let score = segmentation_score(&truth, &predicted, &[0]).unwrap();
    assert!((score.mean_iou - 100.0 * (0.5 + 0.5 + 0.0) / 3.0).abs() < 1e-12, "{score:?}");
    assert_eq!(score.accuracy, 60.0);
    assert!(matches!(segmentation_score(&[0; 3], &[1; 3], &[0]), Err(Error::NoLabels { .. })));
    assert!(matches!(segmentation_score(&[0; 3], &[1; 2], &[]), Err(Error::Mismatch(_))));
}

#[test]
fn votes_are_taken_place_by_place_and_ties_go_to_the_smallest() {
    let train = PatchSet::new(vec![0.0, 0.1, 9.0], 1, vec![7, 3, 5, 4, 1, 1], 2).unwrap();
    assert_eq!(patch_knn(&train, &[0.05], 2, Distance::Euclidean).unwrap(), [5, 3]);
    assert_eq!(patch_knn(&train, &[0.2, 8.0], 1, Distance::Euclidean).unwrap(), [5, 4, 1, 1]);
}

#[test]
fn what_does_not_fit_is_refused() {
    let set =
        |features: &[f32], dim, labels: &[u8], pixels| PatchSet::new(features.to_vec(), dim, labels.to_vec(), pixels);
    for refused in [set(&[], 2, &[], 1), set(&[1.0; 3], 2, &[1], 1), set(&[1.0; 2], 0, &[1], 1), set(&[1.0], 1, &[], 0)]
    {
        assert!(matches!(refused, Err(Error::Mismatch(_))), "{refused:?}");
    }
    assert!(matches!(set(&[1.0, f32::NAN], 1, &[1, 1], 1), Err(Error::NotFinite { row: 1, .. })));
    let train = set(&[1.0, 2.0], 1, &[1, 1], 1).unwrap();
    assert!(train.select(&[2]).is_err() && train.select(&[]).is_err());
    for (features, k) in [(&[1.0][..], 3), (&[1.0], 0), (&[], 1), (&[f32::NAN], 1)] {
        assert!(patch_knn(&train, features, k, Distance::Cosine).is_err(), "{features:?}, {k}");
    }
    let fit = |labels: &[u8], c| LogisticRegression::fit(train.features(), 1, labels, c);
    for (labels, c) in [(&[1, 1][..], 1.0), (&[1], 1.0), (&[1, 2], 0.0), (&[1, 2], f64::NAN)] {
        assert!(matches!(fit(labels, c), Err(Error::Mismatch(_))), "{labels:?}, {c}");
    }
    assert!(fit(&[1, 2], 1.0).unwrap().predict(&[f32::INFINITY]).is_err());
}
