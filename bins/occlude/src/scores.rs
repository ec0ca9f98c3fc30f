//! Scores of a frozen model: a table to print, a file of the run, lines of its report.

use anyhow::{Context, Result};
use occlude_checkpoint::RunDir;
use occlude_eval::{KnnReport, KnnScore, LinearProtocol, LinearReport, LowShotReport, Pooling, WeightsChoice};
use occlude_report::Table;
use occlude_trainer::Summary;
use serde::{Deserialize, Serialize};
use std::io::ErrorKind;

/// The file of a run that holds its scores with every setting tried.
pub(crate) const FILE: &str = "scores.json";

/// Scores of one model. What was not measured is absent.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Scores {
    /// Steps the weights have seen.
    pub(crate) step: u64,
    /// Which of two networks; none of a method that has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) weights: Option<WeightsChoice>,
    /// In the order of the settings: the first is the run's `knn`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) knn: Vec<Of<KnnReport>>,
    /// In the order of the settings: the first is the run's `linear`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) linear: Vec<Of<LinearReport>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) lowshot: Option<LowShotReport>,
    /// k-NN of the same model with random weights.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) random: Option<KnnReport>,
    /// k-NN of raw pixels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) pixels: Option<KnnReport>,
}

/// A report and the features it is of.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Of<R> {
    pub(crate) pooling: Pooling,
    #[serde(flatten)]
    pub(crate) report: R,
}

/// A line of the table: what, percent, how.
pub(crate) struct Row {
    pub(crate) name: String,
    pub(crate) percent: f64,
    pub(crate) note: String,
    /// Whether it is there to be compared with.
    pub(crate) baseline: bool,
}

impl Scores {
    pub(crate) fn empty(step: u64, weights: Option<WeightsChoice>) -> Self {
        Self { step, weights, knn: Vec::new(), linear: Vec::new(), lowshot: None, random: None, pixels: None }
    }

    /// Those a run holds of these steps, if it does.
    pub(crate) fn read(dir: &RunDir, step: u64) -> Result<Option<Self>> {
        let path = dir.file(FILE);
        let bytes = match std::fs::read(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            read => read.with_context(|| path.display().to_string())?,
        };
        let scores: Self = serde_json::from_slice(&bytes).with_context(|| path.display().to_string())?;
        Ok((scores.step == step).then_some(scores))
    }

    /// Writes the file, whole.
    pub(crate) fn write(&self, dir: &RunDir) -> Result<()> {
        let text = format!("{}\n", serde_json::to_string_pretty(self)?);
        Ok(dir.write(FILE, text.as_bytes())?)
    }

    /// With what `older` measured of the same weights and these did not.
    pub(crate) fn over(mut self, older: Self) -> Self {
        if (older.step, older.weights) == (self.step, self.weights) {
            if self.knn.is_empty() {
                (self.knn, self.random, self.pixels) = (older.knn, older.random, older.pixels);
            }
            if self.linear.is_empty() {
                self.linear = older.linear;
            }
            self.lowshot = self.lowshot.or(older.lowshot);
        }
        self
    }

    /// The table, the run's own scores first.
    pub(crate) fn rows(&self) -> Vec<Row> {
        let which = match self.weights {
            Some(WeightsChoice::Teacher) => "teacher, ",
            Some(WeightsChoice::Student) => "student, ",
            None => "",
        };
        let own = self.knn.iter().map(|Of { pooling, report }| Row {
            name: format!("k-NN, {} pooling", pooling_name(*pooling)),
            percent: report.canonical.accuracy,
            note: format!("{which}{}", voted(report)),
            baseline: false,
        });
        let linear = self.linear.iter().map(|Of { pooling, report }| Row {
            name: format!("linear probe, {} pooling", pooling_name(*pooling)),
            percent: report.accuracy,
            note: format!("{which}{}", learned(report)),
            baseline: false,
        });
        let level = |name: &str, report: &KnnReport| Row {
            name: format!("k-NN, {name}"),
            percent: report.canonical.accuracy,
            note: voted(report),
            baseline: true,
        };
        let random = self.random.iter().map(|report| level("random weights", report));
        let pixels = self.pixels.iter().map(|report| level("raw pixels", report));
        own.chain(linear).chain(self.low_shot_rows(which)).chain(random).chain(pixels).collect()
    }

    /// A row a split, with the first penalty.
    fn low_shot_rows(&self, which: &str) -> Vec<Row> {
        let Some(report) = &self.lowshot else { return Vec::new() };
        let row = |score: &occlude_eval::LowShotScore| Row {
            name: format!("low-shot, {}", score.split),
            percent: score.mean,
            note: format!(
                "{which}\u{b1} {:.2} over {} subsets of {} images, lambda {}, {} test images{}",
                score.deviation,
                score.accuracies.len(),
                ranged(&score.images),
                score.lambda,
                report.test,
                if score.converged { "" } else { "; stopped before the minimum" },
            ),
            baseline: false,
        };
        quoted(report).map(row).collect()
    }

    /// What the report shows beside the rows: every subset and penalty of low-shot classification.
    pub(crate) fn tables(&self) -> Vec<Table> {
        let Some(report) = &self.lowshot else { return Vec::new() };
        let most = report.scores.iter().map(|score| score.accuracies.len()).max().unwrap_or(0);
        let mut columns = vec!["Training images".to_owned(), "lambda".to_owned(), "Accuracy".to_owned()];
        columns.extend((1..=most).map(|subset| format!("Subset {subset}")));
        let rows = report.scores.iter().map(|score| {
            let mean = format!("{:.2} \u{b1} {:.2}", score.mean, score.deviation);
            let mut row = vec![score.split.clone(), score.lambda.to_string(), mean];
            row.extend(score.accuracies.iter().map(|accuracy| format!("{accuracy:.2}")));
            row.resize(columns.len(), String::new());
            row
        });
        vec![Table {
            title: "Low-shot classification".into(),
            note:
                "Accuracy in percent of logistic regression on a few labelled images of each class: mean and standard \
                   deviation over the subsets, then each subset."
                    .into(),
            rows: rows.collect(),
            columns,
        }]
    }

    /// Enters the scores into a summary; the first pooling of the settings is the run's `knn` and `linear`.
    pub(crate) fn enter(&self, summary: &mut Summary) {
        for (index, Of { pooling, report }) in self.knn.iter().enumerate() {
            let accuracy = report.canonical.accuracy;
            if index == 0 {
                summary.set_score("knn", accuracy);
            }
            summary.set_score(&format!("knn_{}", pooling.name()), accuracy);
        }
        for (index, Of { pooling, report }) in self.linear.iter().enumerate() {
            if index == 0 {
                summary.set_score("linear", report.accuracy);
            }
            summary.set_score(&format!("linear_{}", pooling.name()), report.accuracy);
        }
        for score in self.lowshot.iter().flat_map(quoted) {
            summary.set_score(&format!("lowshot_{}", score.split), score.mean);
        }
        let levels = [("knn_random_weights", &self.random), ("knn_pixels", &self.pixels)];
        for (name, report) in levels {
            report.iter().for_each(|report| summary.set_score(name, report.canonical.accuracy));
        }
    }
}

/// What people call it.
pub(crate) fn pooling_name(pooling: Pooling) -> &'static str {
    match pooling {
        Pooling::Average => "average",
        Pooling::Global => "global",
        Pooling::Both => "global and average",
        Pooling::Class => "class token",
        Pooling::ClassAverage => "class token and average",
        Pooling::BeforeNorm => "unnormed average",
    }
}

/// The scores with the first penalty.
fn quoted(report: &LowShotReport) -> impl Iterator<Item = &occlude_eval::LowShotScore> {
    let lambda = report.scores.first().map(|score| score.lambda);
    report.scores.iter().filter(move |score| Some(score.lambda) == lambda)
}

/// `30`, or `29 to 30`.
fn ranged(counts: &[usize]) -> String {
    match (counts.iter().min(), counts.iter().max()) {
        (Some(least), Some(most)) if least < most => format!("{least} to {most}"),
        (_, most) => most.copied().unwrap_or_default().to_string(),
    }
}

/// How neighbours voted, and what voting would have been best.
fn voted(report: &KnnReport) -> String {
    let KnnReport { canonical, best, bank, test, .. } = report;
    let top5 = canonical.top5.map(|top5| format!("top-5 {top5:.1}, ")).unwrap_or_default();
    let best = format!("{:.1} with {}", best.accuracy, setting(best));
    format!("{}, {top5}{test} against {bank} images; best {best}", setting(canonical))
}

fn setting(score: &KnnScore) -> String {
    let vote = score.temperature.map_or_else(|| "majority".to_owned(), |temperature| format!("T = {temperature}"));
    format!("k = {}, {vote}", score.k)
}

fn learned(report: &LinearReport) -> String {
    let LinearReport { protocol, best, trials, train, test, .. } = report;
    let setting = format!("lr {}, weight decay {}", best.lr, best.weight_decay);
    match protocol {
        LinearProtocol::Capi => format!("{setting}, {train} training images, {test} test images"),
        LinearProtocol::Moca => {
            let epoch = best.epoch.unwrap_or_default();
            format!(
                "best of all heads and epochs on the {test} test images: {setting}, epoch {epoch}; {train} training images"
            )
        }
        LinearProtocol::Mae => {
            // Of several rates the best was chosen on the test images.
            let chosen =
                if trials.len() > 1 { format!("best of {} on the test images: ", trials.len()) } else { String::new() };
            format!("{chosen}{setting}, {train} training images, {test} test images")
        }
    }
}

/// Prints the table.
pub(crate) fn print(rows: &[Row]) {
    let width = rows.iter().map(|row| row.name.len()).max().unwrap_or(0);
    for row in rows {
        println!("  {:width$}  {:5.1} %   {}", row.name, row.percent, row.note);
    }
}
