//! What a run computes, as flat settings, and what its lengths are measured by.

use crate::RunConfig;
use crate::keys::{is_span, join};
use crate::run::FREE;
use serde_json::Value;
use std::collections::BTreeMap;

/// Every setting that matters for what is learned, by full name; settings without a value are left out.
pub(crate) fn identity(config: &RunConfig) -> BTreeMap<String, String> {
    let mut settings = BTreeMap::new();
    // A config is a tree of numbers and words; JSON holds all of them.
    flatten(&serde_json::to_value(config).unwrap_or_default(), "", &mut settings);
    settings
}

fn flatten(value: &Value, path: &str, settings: &mut BTreeMap<String, String>) {
    if FREE.contains(&path) {
        return;
    }
    match value {
        Value::Object(table) if !is_span(value) => {
            for (name, below) in table {
                flatten(below, &join(path, name), settings);
            }
        }
        Value::Null => {}
        Value::String(word) => drop(settings.insert(path.to_owned(), word.clone())),
        other => drop(settings.insert(path.to_owned(), other.to_string())),
    }
}

/// Whether any length is in epochs.
pub(crate) fn counts_epochs(config: &RunConfig) -> bool {
    in_epochs(&serde_json::to_value(config).unwrap_or_default())
}

fn in_epochs(value: &Value) -> bool {
    let Value::Object(table) = value else { return false };
    if is_span(value) { table.contains_key("epochs") } else { table.values().any(in_epochs) }
}
