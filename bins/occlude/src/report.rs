//! The report of a run: curves from its files, scores from its summary, pictures from its weights.

use crate::pictures::Pictures;
use crate::scores::{Row, Scores, pooling_name};
use anyhow::{Context, Result};
use occlude_checkpoint::{Checkpoint, RunDir};
use occlude_config::RunConfig;
use occlude_eval::Pooling;
use occlude_methods::{MethodConfig, capi::LossKind, randsac::Architecture};
use occlude_report::{Chart, Curve, Fact, Highlight, Part, ReportData, Score, SkipMatrix};
use occlude_trainer::{MatrixRow, ProbeRow, StepRow, Summary};
use std::collections::BTreeMap;
use std::io::ErrorKind;

/// Losses by the place of a segment in the order, and what they are called.
const PLACES: [(&str, &str); 5] = [
    ("loss_first", "first segment"),
    ("loss_quarter_1", "first quarter"),
    ("loss_quarter_2", "second quarter"),
    ("loss_quarter_3", "third quarter"),
    ("loss_quarter_4", "last quarter"),
];

/// The numbers of a run as of `checkpoint`: its summary, or, where a kill came before that was written, what the
/// checkpoint itself knows.
pub(crate) fn summary(dir: &RunDir, checkpoint: &Checkpoint) -> Result<Summary> {
    let path = dir.summary_file();
    match Summary::read(&path) {
        Ok(summary) if summary.steps == checkpoint.step() => Ok(summary),
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error).with_context(|| path.display().to_string()),
        _ => Ok(Summary::of_checkpoint(checkpoint)?),
    }
}

/// Makes the page and writes it into the run.
pub(crate) fn write(dir: &RunDir, config: &RunConfig, summary: &Summary, pictures: &Pictures<'_>) -> Result<()> {
    let stored = Scores::read(dir, summary.steps)?;
    let whole = dir.path().canonicalize().unwrap_or_else(|_| dir.path().to_owned());
    let history = History::read(dir)?;
    let mut data = ReportData {
        title: whole.file_name().map_or_else(|| "run".into(), |name| name.to_string_lossy().into_owned()),
        summary: sentence(config),
        highlights: highlights(summary),
        scores: stored.as_ref().map_or_else(|| scores(config, summary), shown).into(),
        tables: stored.as_ref().map(Scores::tables).unwrap_or_default(),
        charts: charts(&history, config, summary).into(),
        skips: skips(&history, config),
        facts: facts(dir, summary),
        settings: config.to_toml()?,
        ..ReportData::default()
    };
    pictures.fill(&mut data);
    dir.write("report.html", occlude_report::render(&data)?.as_bytes())?;
    Ok(())
}

fn sentence(config: &RunConfig) -> String {
    let (method, path, side) = (config.method.describe(), &config.data.source.path, config.data.crop.size);
    format!("{method}; on {path} at {side} x {side} pixels.")
}

fn highlights(summary: &Summary) -> Vec<Highlight> {
    let percent = |value: f64| format!("{value:.1} %");
    let mut shown = Vec::new();
    if let Some(knn) = summary.knn {
        let levels = [("random weights", summary.knn_random_weights), ("raw pixels", summary.knn_pixels)];
        let note = levels.iter().filter_map(|(name, value)| value.map(|value| format!("{name} {value:.1}")));
        let note = note.collect::<Vec<_>>().join(", ");
        shown.push(Highlight { value: percent(knn), label: "k-NN accuracy".into(), note });
    }
    if let Some(linear) = summary.linear {
        shown.push(Highlight { value: percent(linear), label: "linear probe".into(), note: String::new() });
    }
    let minutes = format!("{:.1} min", summary.seconds / 60.0);
    shown.push(Highlight { value: minutes, label: "of training".into(), note: format!("{} steps", summary.steps) });
    let rate = format!("{:.0}", summary.images_per_second);
    let note = format!("{:.0} % of the time waiting for images", 100.0 * summary.wait_share);
    shown.push(Highlight { value: rate, label: "images a second".into(), note });
    shown
}

/// The rows of a table that is printed.
fn shown(scores: &Scores) -> Vec<Score> {
    let score = |row: Row| Score { name: row.name, percent: row.percent, note: row.note, baseline: row.baseline };
    scores.rows().into_iter().map(score).collect()
}

/// Scores of a summary alone, by the poolings of the settings; of a run that has none yet, the last one of its probe.
fn scores(config: &RunConfig, summary: &Summary) -> Vec<Score> {
    let note = |pooling: Pooling| format!("{} pooling", pooling_name(pooling));
    let poolings = &config.eval.poolings;
    let knn = |pooling: &Pooling| Some((*pooling, *summary.scores.get(&format!("knn_{}", pooling.name()))?));
    let mut own: Vec<Score> =
        poolings.iter().filter_map(knn).map(|(pooling, percent)| Score::of("k-NN", percent, note(pooling))).collect();
    if own.is_empty() {
        own.extend(summary.knn.map(|percent| Score::of("k-NN while training", percent, note(config.probe.pooling))));
    }
    let linear = summary.linear.zip(poolings.first());
    own.extend(linear.map(|(percent, pooling)| Score::of("linear probe", percent, note(*pooling))));
    let levels = [("k-NN, raw pixels", summary.knn_pixels), ("k-NN, random weights", summary.knn_random_weights)];
    own.extend(levels.into_iter().filter_map(|(name, percent)| Some(Score::baseline(name, percent?, ""))));
    own
}

/// Rows of `metrics.jsonl`.
#[derive(Default)]
struct History {
    steps: Vec<StepRow>,
    probes: Vec<ProbeRow>,
    matrices: Vec<MatrixRow>,
}

impl History {
    fn read(dir: &RunDir) -> Result<Self> {
        let file = dir.metrics_file();
        let text = std::fs::read_to_string(&file).with_context(|| file.display().to_string())?;
        let mut history = Self::default();
        for line in text.lines() {
            // A line cut short by a kill is taken back when the run resumes; a report made before that leaves it out.
            let Ok(row) = serde_json::from_str::<serde_json::Value>(line) else { continue };
            if row.get("scores").is_some() {
                history.probes.extend(serde_json::from_value::<ProbeRow>(row));
            } else if row.get("matrix").is_some() {
                history.matrices.extend(serde_json::from_value::<MatrixRow>(row));
            } else {
                history.steps.extend(serde_json::from_value::<StepRow>(row));
            }
        }
        Ok(history)
    }
}

/// The skips as they were during the run; `None` where the method has none.
fn skips(history: &History, config: &RunConfig) -> Option<Part<SkipMatrix>> {
    let MethodConfig::Randsac(randsac) = &config.method else { return None };
    let label = |row: &MatrixRow| match row.step {
        0 => "at the start".to_owned(),
        _ => format!("epoch {}", (100.0 * row.epoch).round() / 100.0),
    };
    let matrix =
        |row: &MatrixRow| SkipMatrix { label: label(row), rows: row.rows, cols: row.cols, weights: row.values.clone() };
    let shown: Vec<SkipMatrix> = history.matrices.iter().filter(|row| row.matrix == "skips").map(matrix).collect();
    (randsac.architecture == Architecture::Skip).then(|| shown.into())
}

fn charts(History { steps, probes, .. }: &History, config: &RunConfig, summary: &Summary) -> Vec<Chart> {
    let batch = (config.train.batch * config.train.accumulate) as f64;
    let knn: Vec<(f64, f64)> =
        probes.iter().filter_map(|row| Some((row.step as f64 * batch, row.scores.get("knn")?))).collect();
    let losses = series(steps, |row| &row.losses.0);
    let metrics = series(steps, |row| &row.metrics.0);
    let mut charts = Vec::new();
    if !knn.is_empty() {
        let mut chart = Chart::knn(knn, summary.knn_pixels, summary.knn_random_weights);
        chart.caption = format!("{} {}", chart.caption, banks(config));
        charts.push(chart);
    }
    if let Some(points) = losses.get("prediction") {
        let features = matches!(&config.method, MethodConfig::Capi(capi) if capi.loss == LossKind::Ijepa);
        let chart = if features { Chart::feature_losses } else { Chart::losses };
        charts.push(chart(vec![Curve::new("prediction", points.clone())]));
    }
    let of_words = ["image", "local"].into_iter().filter_map(|name| Some(Curve::new(name, losses.get(name)?.clone())));
    let of_words: Vec<Curve> = of_words.collect();
    if !of_words.is_empty() {
        charts.push(Chart::assignment_losses(of_words));
    }
    if let Some(points) = losses.get("clustering") {
        charts.push(Chart::clustering_loss(points.clone()));
    }
    charts.extend(losses.get("pixels").map(|points| Chart::pixel_loss(points.clone())));
    let of_places = PLACES.iter().filter_map(|(key, name)| Some(Curve::new(*name, metrics.get(*key)?.clone())));
    let of_places: Vec<Curve> = of_places.collect();
    if !of_places.is_empty() {
        charts.push(Chart::losses_by_place(of_places));
    }
    charts.extend(metrics.get("skip_entropy").map(|points| Chart::skip_entropy(points.clone(), blocks(config))));
    if let Some(points) = metrics.get("target_entropy") {
        charts.push(Chart::target_entropy(points.clone(), config.method.classes().map(|count| (count as f64).ln())));
    }
    let rates = series(steps, |row| &row.lr.0).into_iter().map(|(name, points)| Curve::new(name, points));
    charts.push(Chart::learning_rates(rates.collect()));
    charts
}

/// Blocks of the encoder that skips read.
fn blocks(config: &RunConfig) -> Option<usize> {
    match &config.method {
        MethodConfig::Randsac(randsac) => Some(randsac.encoder.depth),
        _ => None,
    }
}

/// Among how many images neighbours are looked for: fewer make a lower score, so the curve may end below the table.
fn banks(config: &RunConfig) -> String {
    let eval = config.eval.bank.map_or_else(|| "all".to_owned(), |bank| format!("at most {bank}"));
    format!(
        "The curve looks for neighbours among at most {} training images, the scores of the table among {eval}.",
        config.probe.bank
    )
}

/// Points over steps by name.
fn series(rows: &[StepRow], of: impl Fn(&StepRow) -> &[(String, f64)]) -> BTreeMap<String, Vec<(f64, f64)>> {
    let mut all: BTreeMap<String, Vec<(f64, f64)>> = BTreeMap::new();
    for row in rows {
        for (name, value) in of(row) {
            all.entry(name.clone()).or_default().push((row.step as f64, *value));
        }
    }
    all
}

fn facts(dir: &RunDir, summary: &Summary) -> Vec<Fact> {
    let mut facts = vec![
        Fact::new("steps", summary.steps.to_string()),
        Fact::new("seconds", format!("{:.1}", summary.seconds)),
        Fact::new("images per second", format!("{:.1}", summary.images_per_second)),
        Fact::new("seed", summary.seed.to_string()),
    ];
    facts.extend(summary.peak_memory_mb.map(|peak| Fact::new("peak memory", format!("{peak:.0} MiB"))));
    facts.extend(summary.final_loss.map(|loss| Fact::new("final loss", format!("{loss:.4}"))));
    let run: Option<BTreeMap<String, serde_json::Value>> =
        std::fs::read(dir.run_file()).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
    for (name, value) in run.unwrap_or_default() {
        if name != "seed" {
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            facts.push(Fact::new(name, value));
        }
    }
    facts
}
