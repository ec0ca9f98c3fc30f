//! Where settings come from, and how each place is read into one table.

use crate::{Error, Result};
use figment::value::{Dict, Map, Value};
use figment::{Metadata, Profile, Provider};
use std::fmt;
use std::path::{Path, PathBuf};

/// The place a setting was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// Built in.
    Defaults,
    /// A preset that ships with Occlude.
    Preset(String),
    /// A row of a table of published experiments.
    Row(String),
    /// A file.
    File(PathBuf),
    /// The quick start, which is built in.
    Quickstart,
    /// An environment variable.
    Variable(String),
    /// A `--set` argument.
    Argument(String),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Defaults => f.write_str("defaults"),
            Self::Preset(name) => write!(f, "preset {name}"),
            Self::Row(name) => write!(f, "row {name}"),
            Self::File(path) => path.display().fmt(f),
            Self::Quickstart => f.write_str("quickstart"),
            Self::Variable(name) => f.write_str(name),
            Self::Argument(text) => write!(f, "--set {text}"),
        }
    }
}

/// What a person wrote, lowest layer first. The preset is named inside any of them (`preset = "..."`).
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// A config file.
    pub file: Option<PathBuf>,
    /// Whether the built-in quick start lies below `file`. A preset named in any layer takes its place.
    pub quickstart: bool,
    /// The whole environment; variables that do not begin with `OCCLUDE_` are ignored.
    pub environment: Vec<(String, String)>,
    /// `KEY=VALUE` texts in the order given; later ones win.
    pub set: Vec<String>,
}

/// Variables of the test suite: where its files lie, and where a test wants the program to wait.
const NOT_SETTINGS: &[&str] = &["OCCLUDE_GOLDEN", "OCCLUDE_DATA"];
const TEST_PREFIX: &str = "OCCLUDE_TEST_";
const PREFIX: &str = "OCCLUDE_";

/// One table of settings and where it was written.
#[derive(Clone, Debug)]
pub(crate) struct Layer {
    pub(crate) source: Source,
    pub(crate) values: Dict,
}

impl Provider for Layer {
    fn metadata(&self) -> Metadata {
        Metadata::named(self.source.to_string())
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        Ok(Map::from([(Profile::Default, self.values.clone())]))
    }
}

/// Reads every place above the presets, lowest first.
pub(crate) fn read(sources: &Sources) -> Result<Vec<Layer>> {
    let mut layers = Vec::new();
    if sources.quickstart {
        layers.push(text(Source::Quickstart, crate::QUICKSTART)?);
    }
    if let Some(path) = &sources.file {
        layers.push(file(path)?);
    }
    for (name, value) in &sources.environment {
        layers.extend(variable(name, value));
    }
    for assignment in &sources.set {
        layers.push(argument(assignment)?);
    }
    Ok(layers)
}

fn file(path: &Path) -> Result<Layer> {
    let content = std::fs::read_to_string(path).map_err(|source| Error::Read { path: path.to_owned(), source })?;
    text(Source::File(path.to_owned()), &content)
}

/// A layer from TOML text.
pub(crate) fn text(source: Source, content: &str) -> Result<Layer> {
    let refused = |line, message: String| Error::Syntax { place: source.clone(), line, message };
    let table: toml::Table = toml::from_str(content).map_err(|error| {
        let start = error.span().map_or(0, |span| span.start.min(content.len()));
        let line = 1 + content.as_bytes()[..start].iter().filter(|byte| **byte == b'\n').count();
        refused(line, error.message().replace('\n', ", "))
    })?;
    let values = values(&table).map_err(|message| refused(1, message))?;
    Ok(Layer { source, values })
}

/// A layer from settings that were read already.
pub(crate) fn table(source: Source, table: &toml::Table) -> Result<Layer> {
    let values = values(table).map_err(|message| Error::Unfit { place: source.to_string(), message })?;
    Ok(Layer { source, values })
}

fn values(table: &toml::Table) -> Result<Dict, String> {
    let value = Value::serialize(table).map_err(|error| error.to_string())?;
    Ok(value.into_dict().unwrap_or_default())
}

/// Whether the environment variable `name` is read as a setting.
#[must_use]
pub fn is_setting(name: &str) -> bool {
    name.starts_with(PREFIX) && !name.starts_with(TEST_PREFIX) && !NOT_SETTINGS.contains(&name)
}

/// `OCCLUDE_TRAIN__BATCH=64` is `train.batch = 64`. A name that is no setting is refused later, with the other layers.
fn variable(name: &str, value: &str) -> Option<Layer> {
    let key = name.strip_prefix(PREFIX).filter(|_| is_setting(name))?.to_lowercase().replace("__", ".");
    Some(Layer { source: Source::Variable(name.to_owned()), values: nested(&key, parse(value)) })
}

fn argument(assignment: &str) -> Result<Layer> {
    let split = assignment.split_once('=').map(|(key, value)| (key.trim(), value.trim()));
    let Some((key, value)) = split.filter(|(key, _)| !key.split('.').any(str::is_empty)) else {
        return Err(Error::NotAnAssignment { text: assignment.to_owned() });
    };
    Ok(Layer { source: Source::Argument(assignment.to_owned()), values: nested(key, parse(value)) })
}

/// A TOML value; what is none is a string, so that words need no quotes.
fn parse(text: &str) -> Value {
    let table: Option<toml::Table> = toml::from_str(&format!("value = {text}")).ok();
    let value = table.filter(|table| table.len() == 1).and_then(|mut table| table.remove("value"));
    value.filter(|value| !value.is_datetime()).and_then(|v| Value::serialize(v).ok()).unwrap_or_else(|| text.into())
}

fn nested(key: &str, value: Value) -> Dict {
    match key.split_once('.') {
        Some((table, rest)) => Dict::from([(table.to_owned(), nested(rest, value).into())]),
        None => Dict::from([(key.to_owned(), value)]),
    }
}

#[cfg(test)]
mod tests {
    use super::{Sources, argument, read, text, variable};
    use crate::Source;
    use figment::value::Value;

    fn set(assignment: &str) -> (String, Value) {
        let mut values = argument(assignment).unwrap().values;
        let mut path = Vec::new();
        loop {
            let (key, value) = values.into_iter().next().unwrap();
            path.push(key);
            match value {
                Value::Dict(_, inner) if inner.len() == 1 => values = inner,
                other => return (path.join("."), other),
            }
        }
    }

    #[test]
    fn values_are_toml_and_words_need_no_quotes() {
        assert_eq!(set("train.batch=64"), ("train.batch".into(), Value::from(64)));
        assert_eq!(set("a.b = 0.5").1, Value::from(0.5));
        assert_eq!(set("a=true").1, Value::from(true));
        assert_eq!(set("data.source.path=../my images").1, Value::from("../my images"));
        assert_eq!(set("a=\"quoted\"").1, Value::from("quoted"));
        assert_eq!(set("a=x=y").1, Value::from("x=y"));
        assert_eq!(set("a=[0.8, 1]").1, Value::from(vec![Value::from(0.8), Value::from(1)]));
        assert_eq!(set("train.steps={epochs = 3}").0, "train.steps.epochs");
    }

    #[test]
    fn an_assignment_needs_a_key() {
        for bad in ["train.batch", "=3", "train..batch=3", ""] {
            assert!(argument(bad).unwrap_err().to_string().contains("KEY=VALUE"), "{bad}");
        }
    }

    #[test]
    fn variables_name_levels_with_two_underscores() {
        let layer = variable("OCCLUDE_TRAIN__LOG_EVERY", "64").unwrap();
        assert!(format!("{:?}", layer.values).contains("log_every"));
        assert_eq!(layer.source.to_string(), "OCCLUDE_TRAIN__LOG_EVERY");
    }

    #[test]
    fn only_our_variables_count() {
        let environment = ["PATH", "OCCLUDE_GOLDEN", "OCCLUDE_DATA", "OCCLUDE_TEST_PAUSE", "OCCLUDE_SEED"];
        let environment = environment.map(|name| (name.to_owned(), "1".to_owned())).to_vec();
        let layers = read(&Sources { environment, ..Default::default() }).unwrap();
        assert_eq!(layers.len(), 1);
    }

    #[test]
    fn a_syntax_error_names_file_and_line() {
        let error = text(Source::File("a.toml".into()), "seed = 1\n\n[train\n").unwrap_err().to_string();
        assert!(error.starts_with("a.toml, line 3: "), "{error}");
        assert!(!error.contains('\n'));
    }
}
