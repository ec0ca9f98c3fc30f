//! Which keys exist, and which of them was probably meant.

use crate::{Error, Result, Source};
use figment::value::{Dict, Value};
use serde_json::Value as Schema;

/// How alike two names must be (1: equal) for one to be suggested for the other.
const ALIKE: f64 = 0.6;

/// Tables whose keys depend on their `kind`. (Elsewhere `kind` is a setting like any other.)
pub(crate) const ALTERNATIVES: &[&str] = &["method"];

/// Units of a span, of which one stands in its table.
const UNITS: &[&str] = &["steps", "epochs", "percent"];

/// Refuses the first key of `values` that `schema` (all defaults, `null` where there is none) does not have and
/// `accepts` does not know either: a setting without a default may be missing in the schema.
pub(crate) fn known(
    values: &Dict,
    schema: &Schema,
    source: &Source,
    accepts: &dyn Fn(&str, &Value) -> bool,
) -> Result<()> {
    let mut names = Vec::new();
    leaves(schema, "", &mut names);
    walk(values, schema, "", accepts, &|key| Error::UnknownKey { place: source.clone(), hint: hint(&key, &names), key })
}

fn walk(
    values: &Dict,
    schema: &Schema,
    path: &str,
    accepts: &dyn Fn(&str, &Value) -> bool,
    unknown: &dyn Fn(String) -> Error,
) -> Result<()> {
    let Some(table) = schema.as_object() else { return Ok(()) };
    for (name, value) in values {
        let key = join(path, name);
        let Some(below) = table.get(name) else {
            if accepts(&key, value) {
                continue;
            }
            return Err(unknown(first_leaf(key, value)));
        };
        match value {
            // Another alternative has other keys; serde names those that it does not have.
            Value::Dict(_, inner) if is_span(below) || is_other_kind(&key, inner, below) => {}
            Value::Dict(_, inner) => walk(inner, below, &key, accepts, unknown)?,
            _ => {}
        }
    }
    Ok(())
}

/// The first setting in a table that does not exist: its full name says more about what was meant.
fn first_leaf(key: String, value: &Value) -> String {
    match value.as_dict().and_then(|inner| inner.iter().next()) {
        Some((name, value)) => first_leaf(join(&key, name), value),
        None => key,
    }
}

/// Whether the schema has a length with its unit here.
pub(crate) fn is_span(schema: &Schema) -> bool {
    schema.as_object().is_some_and(|table| table.len() == 1 && table.keys().all(|key| UNITS.contains(&key.as_str())))
}

/// Whether `values` is written as a length with its unit.
pub(crate) fn is_unit(values: &Dict) -> bool {
    values.len() == 1 && values.keys().all(|key| UNITS.contains(&key.as_str()))
}

/// Whether `values`, at `path`, chooses another alternative than the schema shows.
pub(crate) fn is_other_kind(path: &str, values: &Dict, schema: &Schema) -> bool {
    let shown = schema.get("kind").and_then(Schema::as_str);
    let chosen = kind(path, values);
    shown.is_some() && chosen.is_some() && shown != chosen
}

/// The alternative that `values`, at `path`, choose.
pub(crate) fn kind<'a>(path: &str, values: &'a Dict) -> Option<&'a str> {
    if ALTERNATIVES.contains(&path) { values.get("kind")?.as_str() } else { None }
}

/// Full names of all settings below `schema`, tables included.
fn leaves(schema: &Schema, path: &str, names: &mut Vec<String>) {
    for (name, below) in schema.as_object().into_iter().flatten() {
        let key = join(path, name);
        if !is_span(below) {
            leaves(below, &key, names);
        }
        names.push(key);
    }
}

fn hint(key: &str, names: &[String]) -> String {
    nearest(key, names.iter().map(String::as_str)).map(|name| format!(": did you mean `{name}`?")).unwrap_or_default()
}

/// The name most like `key`, if any is like it at all. The last part counts as much as the whole, so that a right name
/// in the wrong table is found.
pub(crate) fn nearest<'a>(key: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let last = |name: &str| name.rsplit('.').next().unwrap_or_default().to_owned();
    let score = |name: &str| {
        let whole = strsim::normalized_damerau_levenshtein(key, name);
        f64::midpoint(whole, strsim::normalized_damerau_levenshtein(&last(key), &last(name)))
    };
    let scored = names.map(|name| (score(name), name)).filter(|(score, _)| *score >= ALIKE);
    scored.max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, name)| name)
}

/// `name` inside the table `path`.
pub(crate) fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

#[cfg(test)]
mod tests {
    use super::known;
    use crate::Source;
    use crate::layers::text;
    use serde_json::json;

    fn check(content: &str) -> Result<(), String> {
        let schema = json!({
            "seed": 0, "note": null,
            "train": {"batch": 8, "steps": {"steps": 10}},
            "method": {"kind": "capi", "mask": {"ratio": 0.65, "roll": true}},
        });
        let layer = text(Source::Argument("x".into()), content).unwrap();
        known(&layer.values, &schema, &layer.source, &|_, _| false).map_err(|error| error.to_string())
    }

    #[test]
    fn existing_keys_pass() {
        check("seed = 1\nnote = 'a'\n[train]\nsteps = { epochs = 2 }\n[method.mask]\nroll = false").unwrap();
    }

    #[test]
    fn the_nearest_key_is_suggested_with_its_full_name() {
        for (wrong, right) in [
            ("train.bacth = 1", "train.batch"),
            ("method.mask.ration = 1", "method.mask.ratio"),
            ("mask.ratio = 1", "method.mask.ratio"),
            ("trian.batch = 1", "train.batch"),
            ("sede = 1", "seed"),
        ] {
            let message = check(wrong).unwrap_err();
            assert!(message.contains(&format!("did you mean `{right}`?")), "{wrong}: {message}");
        }
    }

    #[test]
    fn nothing_is_suggested_for_nonsense() {
        let message = check("zzzzqqq = 1").unwrap_err();
        assert!(message.contains("unknown key `zzzzqqq`") && !message.contains("mean"), "{message}");
    }

    #[test]
    fn another_kind_brings_its_own_keys() {
        check("[method]\nkind = 'other'\ncolour = 1").unwrap();
        assert!(check("[method]\nkind = 'capi'\ncolour = 1").is_err());
    }
}
