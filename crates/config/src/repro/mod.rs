//! Published experiments as rows of a table: their settings, and the figures that the paper gives.
//!
//! One table a method is built in, `repro/<method>.toml` of this crate. A study is a table or figure of the paper, a row one
//! of its runs. From the table are made, and held equal to it by tests: the files in `configs/<method>` and the list of rows
//! in `docs/methods/<method>.md`.
//!
//! Invariants: names of studies and rows are unique; every row is an allowed config at the paper's size and at every scale,
//! and rows that differ there differ at every scale.
//! Not here: running anything.

mod measure;
mod text;

pub use measure::{Figure, Measure};

use crate::keys::{is_span, nearest};
use crate::layers::{self, Layer};
use crate::{Error, Result, RunConfig, Source, Sources, merge, presets};
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;
use std::collections::{BTreeMap, BTreeSet};

/// Name and table of each method.
const TABLES: &[(&str, &str)] =
    &[("moca", include_str!("../../repro/moca.toml")), ("randsac", include_str!("../../repro/randsac.toml"))];

/// The published experiments of a method.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reproduction {
    #[serde(skip)]
    method: String,
    /// What the paper is called.
    pub paper: String,
    /// What the paper's runs were made on.
    pub hardware: String,
    /// Smaller sizes, by name.
    #[serde(default)]
    pub scale: BTreeMap<String, Scale>,
    /// What is not carried.
    #[serde(default)]
    pub absent: Vec<Absent>,
    /// Tables and figures, in the order of the paper.
    #[serde(rename = "study")]
    pub studies: Vec<Study>,
}

/// A smaller size of all rows.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scale {
    /// The size in a sentence.
    pub about: String,
    /// Epochs for each of the paper's, wherever a length is in epochs.
    pub epochs: f64,
    /// Settings of every row.
    set: toml::Table,
}

/// Experiments of the paper that have no row.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Absent {
    /// Their names.
    pub rows: String,
    /// Why.
    pub why: String,
}

/// A table or figure of the paper.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Study {
    /// Name, such as `T2e`.
    pub id: String,
    /// Where it stands in the paper.
    pub source: String,
    /// What differs between its rows.
    pub about: String,
    /// What its rows begin with.
    preset: String,
    /// Its runs.
    #[serde(rename = "row")]
    pub rows: Vec<Row>,
}

/// A run of the paper.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Row {
    /// Name, such as `T2e-4`; it begins with that of the study.
    pub id: String,
    /// What is its own.
    pub about: String,
    /// What it begins with: that of its study.
    #[serde(skip)]
    preset: String,
    /// What it changes.
    #[serde(default)]
    set: toml::Table,
    /// What it changes beyond that at a smaller size.
    #[serde(default)]
    at: BTreeMap<String, toml::Table>,
    /// What came of it, as published.
    pub figures: BTreeMap<Measure, Figure>,
}

/// Rows that a name stands for.
#[derive(Clone, Debug)]
pub struct Selected<'a> {
    /// Where they stand.
    pub study: &'a Study,
    /// All rows of the study, or one.
    pub rows: Vec<&'a Row>,
}

/// A setting that two configs have differently.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// Full name.
    pub key: String,
    /// In the one; absent where it has none.
    pub paper: Option<String>,
    /// In the other.
    pub here: Option<String>,
}

impl Reproduction {
    /// Methods that have a table.
    pub fn methods() -> impl Iterator<Item = &'static str> {
        TABLES.iter().map(|(name, _)| *name)
    }

    /// The table of `method`.
    ///
    /// # Errors
    /// There is none.
    pub fn of(method: &str) -> Result<Self> {
        let Some((name, content)) = TABLES.iter().find(|(name, _)| *name == method) else {
            return Err(unknown("method", method, &Self::methods().collect::<Vec<_>>()));
        };
        Self::read(name, content)
    }

    fn read(method: &str, content: &str) -> Result<Self> {
        let place = Source::Row(method.to_owned()).to_string();
        let mut table: Self =
            toml::from_str(content).map_err(|error| Error::Unfit { place, message: error.to_string() })?;
        method.clone_into(&mut table.method);
        for study in &mut table.studies {
            study.rows.iter_mut().for_each(|row| row.preset.clone_from(&study.preset));
        }
        Ok(table)
    }

    /// Name of the method.
    #[must_use]
    pub fn method(&self) -> &str {
        &self.method
    }

    /// Every row with its study, in the order of the paper.
    pub fn rows(&self) -> impl Iterator<Item = (&Study, &Row)> {
        self.studies.iter().flat_map(|study| study.rows.iter().map(move |row| (study, row)))
    }

    /// The rows called `name`: those of a study, or one.
    ///
    /// # Errors
    /// There are none, with names like it; or they are not carried, with the reason.
    pub fn find(&self, name: &str) -> Result<Selected<'_>> {
        if let Some(study) = self.studies.iter().find(|study| study.id == name) {
            return Ok(Selected { study, rows: study.rows.iter().collect() });
        }
        if let Some((study, row)) = self.rows().find(|(_, row)| row.id == name) {
            return Ok(Selected { study, rows: vec![row] });
        }
        let named = |absent: &&Absent| absent.rows.split(", ").any(|listed| listed == name);
        if let Some(absent) = self.absent.iter().find(named) {
            return Err(Error::NotCarried { name: name.to_owned(), why: absent.why.clone() });
        }
        let studies: Vec<&str> = self.studies.iter().map(|study| study.id.as_str()).collect();
        let all: Vec<&str> = studies.iter().copied().chain(self.rows().map(|(_, row)| row.id.as_str())).collect();
        let begins = studies.iter().any(|id| id.starts_with(name));
        let names = if begins || nearest(name, all.iter().copied()).is_none() { studies } else { all };
        Err(unknown("row", name, &names))
    }

    /// The smaller size called `name`.
    ///
    /// # Errors
    /// There is none.
    pub fn scale(&self, name: &str) -> Result<&Scale> {
        let names = || self.scale.keys().map(String::as_str).chain(["paper"]).collect::<Vec<_>>();
        self.scale.get(name).ok_or_else(|| unknown("scale", name, &names()))
    }

    /// The settings of `row` as published.
    ///
    /// # Errors
    /// The table names what no config has.
    pub fn config(&self, row: &Row) -> Result<RunConfig> {
        let mut layers = presets::of(&row.preset)?;
        layers.push(self.layer(row, &row.set)?);
        Ok(RunConfig { preset: Some(row.preset.clone()), ..merge::merge(layers)? })
    }

    /// The settings of `row` at the smaller size `scale`, with what `sources` say laid over them.
    ///
    /// # Errors
    /// No such scale; as [`crate::resolve`]; a preset, which a row has already.
    pub fn config_at(&self, row: &Row, scale: &str, sources: &Sources) -> Result<RunConfig> {
        let small = self.scale(scale)?;
        let published = RunConfig { preset: None, ..shortened(&self.config(row)?, small.epochs)? };
        let place = Source::Row(self.full_name(row));
        let mut all = vec![layers::text(place, &published.to_toml()?)?, self.layer(row, &small.set)?];
        all.extend(row.at.get(scale).map(|set| self.layer(row, set)).transpose()?);
        let given = layers::read(sources)?;
        if let Some(layer) = given.iter().find(|layer| layer.values.contains_key("preset")) {
            let message = format!("preset: {} has its own", self.full_name(row));
            return Err(Error::Unfit { place: layer.source.to_string(), message });
        }
        all.extend(given);
        merge::merge(all)
    }

    fn layer(&self, row: &Row, set: &toml::Table) -> Result<Layer> {
        layers::table(Source::Row(self.full_name(row)), set)
    }

    /// `moca/T2e-4`.
    fn full_name(&self, row: &Row) -> String {
        format!("{}/{}", self.method, row.id)
    }
}

/// `config` with every length that is in epochs multiplied by `factor`.
fn shortened(config: &RunConfig, factor: f64) -> Result<RunConfig> {
    fn walk(value: &mut Json, factor: f64) {
        let span = is_span(value);
        let Json::Object(table) = value else { return };
        for (name, below) in table {
            match below.as_f64() {
                Some(epochs) if span && name == "epochs" => *below = (epochs * factor).into(),
                _ => walk(below, factor),
            }
        }
    }
    let unfit = |error: serde_json::Error| Error::Unfit { place: "settings".into(), message: error.to_string() };
    let mut value = serde_json::to_value(config).map_err(unfit)?;
    walk(&mut value, factor);
    serde_json::from_value(value).map_err(unfit)
}

/// Settings that decide what is learned and that `here` has otherwise than `paper`, by name.
#[must_use]
pub fn differences(paper: &RunConfig, here: &RunConfig) -> Vec<Difference> {
    let (paper, here) = (paper.identity(), here.identity());
    let keys: BTreeSet<&String> = paper.keys().chain(here.keys()).collect();
    let difference = |key: &String| {
        let (paper, here) = (paper.get(key).cloned(), here.get(key).cloned());
        (paper != here).then(|| Difference { key: key.clone(), paper, here })
    };
    keys.into_iter().filter_map(difference).collect()
}

/// The refusal of a name, with those it may stand for: the ones that it begins, else the one most like it.
fn unknown(what: &'static str, name: &str, names: &[&str]) -> Error {
    let begun: Vec<&str> = names.iter().copied().filter(|known| !name.is_empty() && known.starts_with(name)).collect();
    let hint = match (begun.as_slice(), nearest(name, names.iter().copied())) {
        ([], Some(near)) => format!(": did you mean `{near}`?"),
        ([], None) => format!(": there are {}", names.join(", ")),
        (begun, _) => format!(": did you mean one of {}?", begun.join(", ")),
    };
    Error::UnknownRow { what, name: name.to_owned(), hint }
}

#[cfg(test)]
mod tests;
