//! k-NN classification of frozen features: cosine similarity, several numbers of neighbours, plain and weighted votes.
//! The CAPI paper reports such scores; the protocol is ours.

use crate::config::KnnSettings;
use crate::features::FeatureSet;
use crate::nearest::{Neighbour, Unit};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};

/// How neighbours vote.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Vote {
    /// One vote each.
    Majority,
    /// exp(similarity / temperature) each.
    Weighted,
}

/// Accuracy of one setting.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct KnnScore {
    /// Neighbours that vote.
    pub k: usize,
    /// How they vote.
    pub vote: Vote,
    /// Test images classified rightly, in percent.
    pub accuracy: f64,
}

/// Scores of all settings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct KnnReport {
    /// The best setting, the first of equal ones. Chosen on the test images themselves, so slightly optimistic.
    pub best: KnnScore,
    /// The one setting to compare runs by: most neighbours (20 unless told otherwise), weighted.
    pub canonical: KnnScore,
    /// Every setting, by number of neighbours, majority before weighted.
    pub all: Vec<KnnScore>,
    /// Labelled bank images.
    pub bank: usize,
    /// Labelled test images.
    pub test: usize,
}

/// Classifies the labelled rows of `test` by their nearest labelled rows of `bank`. Equal votes go to the smallest
/// label.
///
/// # Errors
/// A set without labels, fewer labelled bank rows than neighbours asked for, rows of different length, or a feature
/// that is not finite.
pub fn knn(bank: &FeatureSet, test: &FeatureSet, settings: &KnnSettings) -> Result<KnnReport> {
    let (bank_rows, bank_labels) = bank.labelled("k-NN bank")?;
    let (test_rows, test_labels) = test.labelled("k-NN test set")?;
    let most = settings.voters();
    if bank_rows.len() < most {
        return Err(Error::TooFew { what: "k-NN bank", got: bank_rows.len(), needed: most });
    }
    let keys = unit(bank, &bank_rows, "k-NN bank")?;
    let found = keys.nearest(&unit(test, &test_rows, "k-NN test set")?, most)?;
    let classes = bank.class_count();
    let mut all = Vec::new();
    for &k in &settings.neighbours {
        for vote in [Vote::Majority, Vote::Weighted] {
            let right = found.iter().zip(&test_labels).filter(|(list, truth)| {
                elected(&list[..k], &bank_labels, classes, vote, settings.temperature) == **truth as usize
            });
            all.push(KnnScore { k, vote, accuracy: 100.0 * right.count() as f64 / test_labels.len() as f64 });
        }
    }
    let mut best = all[0];
    for score in &all {
        best = if score.accuracy > best.accuracy { *score } else { best };
    }
    Ok(KnnReport { best, canonical: all[all.len() - 1], all, bank: bank_rows.len(), test: test_rows.len() })
}

/// The labelled rows at unit length; no copy is made first where all are labelled.
fn unit(set: &FeatureSet, rows: &[usize], what: &'static str) -> Result<Unit> {
    if rows.len() == set.len() { Unit::new(set, what) } else { Unit::new(&set.select(rows), what) }
}

fn elected(voters: &[Neighbour], labels: &[u32], classes: usize, vote: Vote, temperature: f64) -> usize {
    let mut votes = vec![0.0_f64; classes];
    for voter in voters {
        votes[labels[voter.row] as usize] += match vote {
            Vote::Majority => 1.0,
            // Less 1, the largest similarity: no temperature makes the exponential overflow.
            Vote::Weighted => ((f64::from(voter.similarity) - 1.0) / temperature).exp(),
        };
    }
    let mut winner = 0;
    for (label, count) in votes.iter().enumerate() {
        winner = if *count > votes[winner] { label } else { winner };
    }
    winner
}

#[cfg(test)]
mod tests {
    use super::{Vote, knn};
    use crate::{Error, FeatureSet, KnnConfig};
    use occlude_random::{Stream, Streams};
    use rand::Rng;

    fn random(rows: usize, dim: usize, classes: u32, stream: &mut Stream) -> FeatureSet {
        let features = (0..rows * dim).map(|_| stream.random::<f32>() - 0.5).collect();
        let labels = (0..rows).map(|_| Some(stream.random_range(0..classes))).collect();
        FeatureSet::new(features, dim, labels).unwrap()
    }

    /// The definition, one pair at a time, in f64.
    fn brute_force(bank: &FeatureSet, test: &FeatureSet, k: usize, vote: Vote, temperature: f64) -> f64 {
        let cosine = |a: &[f32], b: &[f32]| {
            let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum::<f64>();
            dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
        };
        let mut right = 0;
        for row in 0..test.len() {
            let mut pairs: Vec<(f64, u32)> = (0..bank.len())
                .map(|other| (cosine(bank.row(other), test.row(row)), bank.labels[other].unwrap()))
                .collect();
            pairs.sort_by(|a, b| b.0.total_cmp(&a.0));
            let mut votes = [0.0; 8];
            for (similarity, label) in &pairs[..k] {
                votes[*label as usize] += if vote == Vote::Majority { 1.0 } else { (similarity / temperature).exp() };
            }
            let most = votes.iter().copied().fold(0.0, f64::max);
            right += usize::from(votes.iter().position(|v| *v == most) == test.labels[row].map(|l| l as usize));
        }
        100.0 * right as f64 / test.len() as f64
    }

    #[test]
    fn every_setting_agrees_with_the_definition() {
        let mut stream = Streams::new(5).stream("test", 0, 0);
        // More queries than one block, sizes that divide by nothing.
        let (bank, test) = (random(331, 7, 5, &mut stream), random(300, 7, 5, &mut stream));
        let settings = KnnConfig { neighbours: vec![1, 4, 13], temperature: 0.2 }.check().unwrap();
        let report = knn(&bank, &test, &settings).unwrap();
        assert_eq!(report.all.len(), 6);
        for score in &report.all {
            let expected = brute_force(&bank, &test, score.k, score.vote, 0.2);
            assert_eq!(score.accuracy, expected, "{score:?}");
        }
        assert_eq!((report.canonical.k, report.canonical.vote), (13, Vote::Weighted));
        assert!(report.all.iter().all(|score| score.accuracy <= report.best.accuracy));
    }

    #[test]
    fn separable_classes_are_all_right_and_shuffled_labels_are_chance() {
        let mut stream = Streams::new(6).stream("test", 0, 0);
        let make = |stream: &mut Stream, rows: usize| {
            let mut set = random(rows, 12, 4, stream);
            for row in 0..rows {
                set.features[row * 12 + set.labels[row].unwrap() as usize] += 4.0;
            }
            set
        };
        let (mut bank, test) = (make(&mut stream, 400), make(&mut stream, 400));
        let settings = KnnConfig::default().check().unwrap();
        assert!(knn(&bank, &test, &settings).unwrap().all.iter().all(|score| score.accuracy == 100.0));
        bank.labels = (0..400).map(|_| Some(stream.random_range(0..4))).collect();
        let shuffled = knn(&bank, &test, &settings).unwrap();
        // 4 classes, each cluster votes nearly alike: chance is 25, far below 100 in every setting.
        assert!(shuffled.all.iter().all(|score| score.accuracy < 45.0), "{shuffled:?}");
    }

    #[test]
    fn equal_votes_go_to_the_smallest_label() {
        let bank = FeatureSet::new(vec![1.0, 1.0], 1, vec![Some(2), Some(1)]).unwrap();
        let test = FeatureSet::new(vec![1.0], 1, vec![Some(1)]).unwrap();
        let settings = KnnConfig { neighbours: vec![2], ..KnnConfig::default() }.check().unwrap();
        assert_eq!(knn(&bank, &test, &settings).unwrap().best.accuracy, 100.0);
    }

    #[test]
    fn images_without_label_are_not_scored() {
        let bank = FeatureSet::new(vec![1.0, 1.1, -1.0], 1, vec![None, Some(0), Some(1)]).unwrap();
        let test = FeatureSet::new(vec![2.0, -2.0], 1, vec![Some(0), None]).unwrap();
        let settings = KnnConfig { neighbours: vec![1], ..KnnConfig::default() }.check().unwrap();
        let report = knn(&bank, &test, &settings).unwrap();
        assert_eq!((report.bank, report.test, report.best.accuracy), (2, 1, 100.0));
    }

    #[test]
    fn refusals_say_what_to_do() {
        let settings = KnnConfig::default().check().unwrap();
        let unlabelled = FeatureSet::new(vec![1.0; 30], 1, vec![None; 30]).unwrap();
        let labelled = FeatureSet::new(vec![1.0; 19], 1, vec![Some(0); 19]).unwrap();
        let none = knn(&unlabelled, &labelled, &settings).unwrap_err();
        assert!(matches!(none, Error::NoLabels { .. }) && none.to_string().contains("one folder a class"));
        let few = knn(&labelled, &labelled, &settings).unwrap_err();
        assert!(matches!(few, Error::TooFew { got: 19, needed: 20, .. }), "{few}");
    }
}
