//! `occlude repro`: runs a table of a paper at a size that fits, and prints its figures beside ours.

use crate::child;
use crate::comparison::{Comparison, Line};
use crate::files::ImagesOfRun;
use crate::settings::environment;
use anyhow::{Context, Result, bail};
use clap::Args;
use occlude_checkpoint::{RunDir, write_whole};
use occlude_config::{Measure, Reproduction, Row, RunConfig, Selected, Sources, Study, differences};
use occlude_trainer::{Stop, Summary};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// The size at which nothing is run here.
const PUBLISHED: &str = "paper";

/// Run a table of a paper and compare. The same command again goes on where it stopped; what is finished stays.
#[derive(Args)]
#[command(after_help = "Examples:
  occlude repro                                      methods and their tables
  occlude repro moca                                 tables of MOCA, with their rows
  occlude repro moca/T2e                             all rows of Table 2e, at the size that fits two cores
  occlude repro moca/T2e-4 --seeds 3 --data cifar10  one row, three runs, these images
  occlude repro moca/T2e --data synthetic --set data.crop.flip=0   the built-in drawn pictures
  occlude repro moca/T2e --json t2e.json             every number, for scripts
  occlude repro moca/T2e --scale paper               the commands of the published size; nothing is run")]
pub(crate) struct Repro {
    /// What to run: `METHOD/TABLE` or `METHOD/ROW`; a method alone lists its tables.
    #[arg(value_name = "ROW")]
    row: Option<String>,
    /// The size: one that the method's table names (`tiny`), or `paper` for the commands of the published size.
    #[arg(long, default_value = "tiny")]
    scale: String,
    /// Runs of each row, of seeds 0, 1, ...
    #[arg(long, default_value_t = 1, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..=1000))]
    seeds: u64,
    /// Images: a folder, tar shards, a CIFAR or IDX set, `synthetic`; without it, those that the scale names.
    #[arg(long, value_name = "PATH")]
    data: Option<String>,
    /// Write every number to this file as JSON, too.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Folder of the runs: `METHOD/SCALE/ROW/seed-N` inside it.
    #[arg(long, default_value = "runs/repro", value_name = "FOLDER")]
    out: PathBuf,
    /// Change one setting of every run; may be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
}

impl Repro {
    pub(crate) fn run(self) -> Result<()> {
        let Some(name) = &self.row else {
            for method in Reproduction::methods() {
                list(&Reproduction::of(method)?);
            }
            return Ok(());
        };
        let (method, row) = name.split_once('/').map_or((name.as_str(), None), |(method, row)| (method, Some(row)));
        let table = Reproduction::of(method)?;
        let Some(row) = row else {
            list(&table);
            return Ok(());
        };
        let chosen = table.find(row)?;
        if self.scale == PUBLISHED {
            commands(&table, &chosen, self.seeds);
            return Ok(());
        }
        self.compare(name, &table, &chosen)
    }

    fn compare(&self, name: &str, table: &Reproduction, chosen: &Selected<'_>) -> Result<()> {
        let plan = self.plan(table, chosen)?;
        let stop = Stop::on_signals()?;
        let mut compared = self.begun(name, table, chosen, &plan)?;
        let total = plan.len() as u64 * self.seeds;
        let mut done = 0;
        'all: for (line, planned) in plan.iter().enumerate() {
            for seed in 0..self.seeds {
                eprintln!("{name}: run {} of {total}: {}, seed {seed}", done + 1, planned.row.id);
                let Some(run) = self.one(planned, seed, &stop)? else { break 'all };
                run.enter(&mut compared, line);
                done += 1;
            }
        }
        stop.release();
        println!("{compared}");
        if let Some(file) = &self.json {
            let text = format!("{}\n", serde_json::to_string_pretty(&compared)?);
            write_whole(file, text.as_bytes())?;
        }
        if done < total {
            println!("stopped: {done} of {total} runs are finished; go on with: {}", crate::files::command());
        }
        Ok(())
    }

    /// What a person laid over the scale: environment, `--data`, `--set`.
    fn sources(&self) -> Sources {
        // Quoted, so that no path is taken for a number.
        let data = self.data.as_ref().map(|path| format!("data.source.path={}", toml::Value::from(path.as_str())));
        let set = data.into_iter().chain(self.set.iter().cloned()).collect();
        Sources { environment: environment(), set, ..Sources::default() }
    }

    /// The settings of each row, and where its runs lie: rows of equal settings share theirs, under the name of the first.
    fn plan<'a>(&self, table: &Reproduction, chosen: &Selected<'a>) -> Result<Vec<Planned<'a>>> {
        let sources = self.sources();
        let configs = table.rows().map(|(_, row)| Ok((row, table.config_at(row, &self.scale, &sources)?)));
        let configs: Vec<(&Row, RunConfig)> = configs.collect::<Result<_>>()?;
        let planned = chosen.rows.iter().map(|row| {
            let config = table.config_at(row, &self.scale, &sources)?;
            if !config.counts_epochs() {
                config.check(None)?;
            }
            let home = configs.iter().find(|(_, other)| *other == config).map_or(*row, |(first, _)| *first);
            let folder = self.out.join(table.method()).join(&self.scale).join(&home.id);
            Ok(Planned { row, config, folder })
        });
        planned.collect()
    }

    /// The comparison before any run.
    fn begun(
        &self,
        name: &str,
        table: &Reproduction,
        chosen: &Selected<'_>,
        plan: &[Planned<'_>],
    ) -> Result<Comparison> {
        let Study { source, about, .. } = chosen.study;
        let first = plan.first().context("a study without rows")?;
        let line = |row: &&Row| Line {
            id: row.id.clone(),
            about: row.about.clone(),
            paper: row.figures.clone(),
            here: BTreeMap::new(),
        };
        Ok(Comparison {
            name: name.to_owned(),
            title: format!("{about} ({}, {source})", table.paper),
            paper: table.hardware.clone(),
            here: format!("{}: {}", self.scale, table.scale(&self.scale)?.about),
            images: first.config.data.source.path.clone(),
            seeds: self.seeds,
            lines: chosen.rows.iter().map(line).collect(),
            random: Vec::new(),
            pixels: Vec::new(),
            // The images stand above; no file of a row names any.
            differences: differences(&table.config(first.row)?, &first.config)
                .into_iter()
                .filter(|difference| difference.key != "data.source.path")
                .collect(),
        })
    }

    /// The run of `planned` with `seed`, trained if it is not finished; `None` if it was stopped.
    fn one(&self, planned: &Planned<'_>, seed: u64, stop: &Stop) -> Result<Option<Finished>> {
        let folder = planned.folder.join(format!("seed-{seed}"));
        let config = RunConfig { seed: planned.config.seed.saturating_add(seed), ..planned.config.clone() };
        if let Some(finished) = Finished::read(&folder, &config) {
            eprintln!("  finished earlier: {}", folder.display());
            return Ok(Some(finished));
        }
        std::fs::create_dir_all(&planned.folder).with_context(|| planned.folder.display().to_string())?;
        let file = planned.folder.join(format!("seed-{seed}.toml"));
        write_whole(&file, config.to_toml()?.as_bytes())?;
        let ended = child::train(&file, &folder, stop)?;
        if stop.requested() {
            return Ok(None);
        }
        if !ended.success() {
            bail!("{}: {ended}; what was finished before it stays", folder.display());
        }
        // Without a finished summary the run was stopped, by a signal that it alone received.
        Ok(Finished::read(&folder, &config))
    }
}

/// A row to run.
struct Planned<'a> {
    row: &'a Row,
    config: RunConfig,
    /// Of its runs, one a seed.
    folder: PathBuf,
}

/// A run that has its scores.
struct Finished {
    summary: Summary,
    images: ImagesOfRun,
}

impl Finished {
    /// The run in `folder`, if it ended, was scored, and is one of `config`.
    fn read(folder: &Path, config: &RunConfig) -> Option<Self> {
        let dir = RunDir::open(folder).ok()?;
        let stored = Sources { file: Some(dir.config_file()), ..Sources::default() };
        let same = occlude_config::resolve(&stored).ok()?.identity() == config.identity();
        let summary = Summary::read(&dir.summary_file()).ok()?;
        let whole = same && summary.finished && dir.report_file().exists();
        Some(Self { summary, images: ImagesOfRun::read(&dir).ok()? }).filter(|_| whole)
    }

    /// Enters its numbers into a line of `compared`.
    fn enter(&self, compared: &mut Comparison, line: usize) {
        let Self { summary, images } = self;
        compared.images.clone_from(&images.image_sets);
        compared.random.extend(summary.knn_random_weights);
        compared.pixels.extend(summary.knn_pixels);
        let Some(line) = compared.lines.get_mut(line) else { return };
        // Both main scores, whatever the paper gives.
        let wanted: BTreeSet<Measure> = line.paper.keys().copied().chain([Measure::Knn, Measure::Linear]).collect();
        for measure in wanted {
            if let Some(value) = self.measured(measure) {
                line.here.entry(measure).or_default().push(value);
            }
        }
    }

    fn measured(&self, measure: Measure) -> Option<f64> {
        let summary = &self.summary;
        match measure {
            Measure::Minutes if summary.images_per_second > 0.0 => {
                Some(self.images.images as f64 / summary.images_per_second / 60.0)
            }
            Measure::Hours => Some(summary.seconds / 3600.0),
            Measure::Memory => summary.peak_memory_mb.map(|mib| mib * 1024.0 * 1024.0 / 1e9),
            _ => summary.score(measure.score()?),
        }
    }
}

/// The tables of a method, with their rows.
fn list(table: &Reproduction) {
    for study in &table.studies {
        let name = format!("{}/{}", table.method(), study.id);
        println!("{name:<10}  {} ({}, {})", study.about, table.paper, study.source);
        for row in &study.rows {
            println!("  {:<8}  {}", row.id, row.about);
        }
    }
    for absent in &table.absent {
        println!("not carried: {}: {}", absent.rows, absent.why);
    }
}

/// What one would type to run `chosen` at the published size.
fn commands(table: &Reproduction, chosen: &Selected<'_>, seeds: u64) {
    println!("# {} ({}, {})", chosen.study.about, table.paper, chosen.study.source);
    println!("# paper: {}", table.hardware);
    for row in &chosen.rows {
        let figures = row.figures.iter().map(|(measure, figure)| format!("{measure} {}", figure.written(*measure)));
        println!("# {}: {}; published: {}", row.id, row.about, figures.collect::<Vec<_>>().join(", "));
        for seed in 0..seeds {
            let (method, id) = (table.method(), &row.id);
            let out = format!("runs/{method}/{id}/seed-{seed}");
            println!(
                "cargo xtask train configs/{method}/{id}.toml --set data.source.path=FOLDER --set seed={seed} --out {out}"
            );
        }
    }
}
