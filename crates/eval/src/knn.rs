//! k-NN classification of frozen features: cosine similarity, several numbers of neighbours, plain votes and votes
//! weighted with several temperatures, all from one search (CAPI, k-NN scores; MOCA, evaluation by nearest neighbours).
//!
//! Where fewer than five classes get a vote, the reference fills the five best up with classes that have none, in no
//! order; here a class without a vote is never right.

use crate::config::KnnSettings;
use crate::features::FeatureSet;
use crate::nearest::{Neighbour, Unit};
use crate::{Error, Result};
use rayon::prelude::*;
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
    /// Of a weighted vote.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f64>,
    /// Test images classified rightly, in percent.
    pub accuracy: f64,
    /// Test images whose class is among the five with most votes, in percent; absent where it was not measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top5: Option<f64>,
}

/// Scores of all settings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct KnnReport {
    /// The best setting, the first of equal ones. Chosen on the test images themselves, so slightly optimistic.
    pub best: KnnScore,
    /// The one setting to compare runs by: most neighbours (20 unless told otherwise), weighted.
    pub canonical: KnnScore,
    /// Every setting, by number of neighbours, majority before weighted, temperatures ascending.
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
    let ballots = Ballot::all(settings);
    let none = || vec![Hits::default(); ballots.len() * settings.neighbours.len()];
    let hits = found
        .par_iter()
        .zip(&test_labels)
        .fold(none, |mut hits, (list, truth)| {
            for (which, ballot) in ballots.iter().enumerate() {
                let places = ballot.places(list, &bank_labels, *truth, &settings.neighbours);
                hits.iter_mut()
                    .skip(which)
                    .step_by(ballots.len())
                    .zip(places)
                    .for_each(|(hits, place)| hits.add(place));
            }
            hits
        })
        .reduce(none, |mut all, some| {
            all.iter_mut().zip(some).for_each(|(all, some)| all.join(some));
            all
        });
    let percent = |count: usize| 100.0 * count as f64 / test_labels.len() as f64;
    let asked = settings.neighbours.iter().flat_map(|k| ballots.iter().map(move |ballot| (*k, *ballot)));
    let score = |((k, ballot), hits): ((usize, Ballot), Hits)| KnnScore {
        k,
        vote: if ballot.temperature.is_some() { Vote::Weighted } else { Vote::Majority },
        temperature: ballot.temperature,
        accuracy: percent(hits.first),
        top5: Some(percent(hits.five)),
    };
    let all: Vec<KnnScore> = asked.zip(hits).map(score).collect();
    let (mut best, mut canonical) = (all[0], all[all.len() - 1]);
    for score in &all {
        best = if score.accuracy > best.accuracy { *score } else { best };
        canonical = if score.k == most && score.temperature == Some(settings.temperature) { *score } else { canonical };
    }
    Ok(KnnReport { best, canonical, all, bank: bank_rows.len(), test: test_rows.len() })
}

/// The labelled rows at unit length; no copy is made first where all are labelled.
fn unit(set: &FeatureSet, rows: &[usize], what: &'static str) -> Result<Unit> {
    if rows.len() == set.len() { Unit::new(set, what) } else { Unit::new(&set.select(rows), what) }
}

/// One way to vote: weighted with a temperature, or plain.
#[derive(Clone, Copy, Debug)]
struct Ballot {
    temperature: Option<f64>,
}

impl Ballot {
    /// Every one asked for, the plain one first.
    fn all(settings: &KnnSettings) -> Vec<Self> {
        let weighted = settings.temperatures.iter().map(|temperature| Self { temperature: Some(*temperature) });
        std::iter::once(Self { temperature: None }).chain(weighted).collect()
    }

    fn weight(self, similarity: f32) -> f64 {
        // Less 1, the largest similarity: no temperature makes the exponential overflow.
        self.temperature.map_or(1.0, |temperature| ((f64::from(similarity) - 1.0) / temperature).exp())
    }

    /// Where the true class stands when so many neighbours have voted, for each of `counts` (ascending).
    fn places(
        self,
        list: &[Neighbour],
        labels: &[u32],
        truth: u32,
        counts: &[usize],
    ) -> impl Iterator<Item = Option<usize>> {
        let mut votes = Votes::default();
        let mut voted = 0;
        counts.iter().map(move |&count| {
            list[voted..count].iter().for_each(|voter| votes.add(labels[voter.row], self.weight(voter.similarity)));
            voted = count;
            votes.place(truth)
        })
    }
}

/// Classes that got a vote, with the sum of their votes.
#[derive(Clone, Debug, Default)]
struct Votes(Vec<(u32, f64)>);

impl Votes {
    fn add(&mut self, label: u32, weight: f64) {
        match self.0.iter_mut().find(|(held, _)| *held == label) {
            Some((_, sum)) => *sum += weight,
            None => self.0.push((label, weight)),
        }
    }

    /// How many classes stand before `label`: those with more votes, and smaller ones with as many. `None` without a vote.
    fn place(&self, label: u32) -> Option<usize> {
        let (_, own) = *self.0.iter().find(|(held, _)| *held == label)?;
        Some(self.0.iter().filter(|(other, sum)| *sum > own || (*sum == own && *other < label)).count())
    }
}

/// Test images whose class came first, and whose class was among the first five.
#[derive(Clone, Copy, Debug, Default)]
struct Hits {
    first: usize,
    five: usize,
}

impl Hits {
    fn add(&mut self, place: Option<usize>) {
        self.first += usize::from(place == Some(0));
        self.five += usize::from(place.is_some_and(|place| place < 5));
    }

    fn join(&mut self, other: Self) {
        self.first += other.first;
        self.five += other.five;
    }
}

#[cfg(test)]
mod tests {
    use super::{Ballot, Vote, Votes, knn};
    use crate::nearest::Unit;
    use crate::{Error, FeatureSet, KnnConfig, KnnScore};
    use candle_core::Tensor;
    use occlude_random::{Stream, Streams};
    use rand::Rng;

    fn random(rows: usize, dim: usize, classes: u32, stream: &mut Stream) -> FeatureSet {
        let features = (0..rows * dim).map(|_| stream.random::<f32>() - 0.5).collect();
        let labels = (0..rows).map(|_| Some(stream.random_range(0..classes))).collect();
        FeatureSet::new(features, dim, labels).unwrap()
    }

    /// The definition, one pair at a time, in f64: accuracy, and that of the five best.
    fn brute_force(bank: &FeatureSet, test: &FeatureSet, k: usize, temperature: Option<f64>) -> (f64, f64) {
        let cosine = |a: &[f32], b: &[f32]| {
            let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum::<f64>();
            dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
        };
        let (mut first, mut five) = (0, 0);
        for row in 0..test.len() {
            let mut pairs: Vec<(f64, u32)> = (0..bank.len())
                .map(|other| (cosine(bank.row(other), test.row(row)), bank.labels[other].unwrap()))
                .collect();
            pairs.sort_by(|a, b| b.0.total_cmp(&a.0));
            let mut votes = [0.0; 8];
            for (similarity, label) in &pairs[..k] {
                votes[*label as usize] += temperature.map_or(1.0, |t| (similarity / t).exp());
            }
            let truth = test.labels[row].unwrap() as usize;
            let before = |label: usize| votes[label] > votes[truth] || (votes[label] == votes[truth] && label < truth);
            let place = (0..8).filter(|label| before(*label)).count();
            first += usize::from(votes[truth] > 0.0 && place == 0);
            five += usize::from(votes[truth] > 0.0 && place < 5);
        }
        (100.0 * f64::from(first as u32) / test.len() as f64, 100.0 * f64::from(five as u32) / test.len() as f64)
    }

    #[test]
    fn every_setting_agrees_with_the_definition() {
        let mut stream = Streams::new(5).stream("test", 0, 0);
        // More queries than one block, sizes that divide by nothing.
        let (bank, test) = (random(331, 7, 8, &mut stream), random(300, 7, 8, &mut stream));
        let config = KnnConfig { neighbours: vec![1, 4, 13], temperature: 0.2, temperatures: vec![0.05, 1.0] };
        let report = knn(&bank, &test, &config.check().unwrap()).unwrap();
        assert_eq!(report.all.len(), 12);
        for score in &report.all {
            let expected = brute_force(&bank, &test, score.k, score.temperature);
            assert_eq!((score.accuracy, score.top5.unwrap()), expected, "{score:?}");
            assert_eq!(score.vote == Vote::Weighted, score.temperature.is_some());
        }
        let order: Vec<_> = report.all.iter().take(5).map(|score| (score.k, score.temperature)).collect();
        assert_eq!(order, [(1, None), (1, Some(0.05)), (1, Some(0.2)), (1, Some(1.0)), (4, None)]);
        assert_eq!((report.canonical.k, report.canonical.temperature), (13, Some(0.2)));
        assert!(report.all.iter().all(|score| score.accuracy <= report.best.accuracy));
        // What is scored beside it changes nothing.
        let alone = knn(&bank, &test, &config.check().unwrap().canonical()).unwrap();
        assert_eq!((alone.canonical, alone.all.len()), (report.canonical, 2));
    }

    #[test]
    fn the_five_best_are_counted() {
        let votes = Votes(vec![(9, 1.0), (2, 3.0), (5, 1.0), (7, 0.5)]);
        assert_eq!([2, 5, 9, 7, 1].map(|label| votes.place(label)), [Some(0), Some(1), Some(2), Some(3), None]);
    }

    #[test]
    fn a_score_of_an_earlier_version_is_read() {
        let old = r#"{"k": 20, "vote": "weighted", "accuracy": 61.5}"#;
        let score: KnnScore = serde_json::from_str(old).unwrap();
        assert_eq!((score.k, score.vote, score.accuracy, score.top5), (20, Vote::Weighted, 61.5, None));
    }

    fn rows(tensor: &Tensor, labels: &Tensor) -> FeatureSet {
        let dim = tensor.dim(1).unwrap();
        let labels: Vec<i64> = labels.to_vec1().unwrap();
        let labels = labels.into_iter().map(|label| Some(label as u32)).collect();
        FeatureSet::new(tensor.flatten_all().unwrap().to_vec1().unwrap(), dim, labels).unwrap()
    }

    /// Every (k, temperature) of the reference file, by the names of its tensors.
    fn settings_of<'a>(names: impl Iterator<Item = &'a String>) -> Vec<(String, usize, f64)> {
        let setting = |name: &String| {
            let prefix = name.strip_suffix(".class_scores")?;
            let (k, temperature) = prefix.strip_prefix('k')?.split_once("_T")?;
            Some((prefix.to_owned(), k.parse().ok()?, temperature.parse().ok()?))
        };
        names.filter_map(setting).collect()
    }

    #[test]
    fn golden_moca_knn() {
        let Some(tensors) = occlude_golden::set("moca").tensors("knn") else { return };
        let (bank, test) = (
            rows(&tensors["train_raw"], &tensors["train_labels"]),
            rows(&tensors["test_raw"], &tensors["test_labels"]),
        );
        let settings = settings_of(tensors.keys());
        assert!(!settings.is_empty(), "the reference file holds no scores");
        let labels: Vec<u32> = bank.labels.iter().flatten().copied().collect();
        for (name, k, temperature) in settings {
            let of = |part: &str| &tensors[&format!("{name}.{part}")];
            let scores: Vec<Vec<f32>> = of("class_scores").to_vec2().unwrap();
            let predictions: Vec<i64> = of("predictions").to_vec1().unwrap();
            let top5: Vec<Vec<i64>> = of("top5").to_vec2().unwrap();
            let found = Unit::new(&bank, "bank").unwrap().nearest(&Unit::new(&test, "test").unwrap(), k).unwrap();
            let ballot = Ballot { temperature: Some(temperature) };
            let largest = scores.iter().flatten().copied().fold(0.0, f32::max);
            let mut hits_in_five = 0;
            for (row, list) in found.iter().enumerate() {
                let mut votes = Votes::default();
                list.iter().for_each(|voter| votes.add(labels[voter.row], ballot.weight(voter.similarity)));
                for (class, &score) in scores[row].iter().enumerate() {
                    let own = votes.0.iter().find(|(label, _)| *label as usize == class).map_or(0.0, |(_, sum)| *sum);
                    let own = own * (1.0 / temperature).exp();
                    assert!(
                        (own - f64::from(score)).abs() <= 1e-5 * f64::from(largest),
                        "{name}, row {row}: {own}, {score}"
                    );
                    assert_eq!(own > 0.0, score > 0.0, "{name}, row {row}, class {class}: who votes");
                }
                assert_eq!(votes.place(predictions[row] as u32), Some(0), "{name}, row {row}");
                let voted = top5[row].iter().filter(|label| scores[row][**label as usize] > 0.0);
                for (place, &label) in voted.enumerate() {
                    assert_eq!(votes.place(label as u32), Some(place), "{name}, row {row}: {label}");
                    hits_in_five += usize::from(Some(label as u32) == test.labels[row]);
                }
            }
            let config = KnnConfig { neighbours: vec![k], temperature, temperatures: vec![] };
            let score = knn(&bank, &test, &config.check().unwrap()).unwrap().canonical;
            let percent: Vec<f64> = of("top1_top5_percent").to_vec1().unwrap();
            assert!((score.accuracy - percent[0]).abs() < 1e-9, "{name}: {score:?}, {percent:?}");
            // The reference counts classes without a vote as well.
            assert!((score.top5.unwrap() - 100.0 * hits_in_five as f64 / test.len() as f64).abs() < 1e-9, "{name}");
            assert!(score.top5.unwrap() <= percent[1] + 1e-9, "{name}: {score:?}, {percent:?}");
        }
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
