//! Presets that ship with Occlude, and the quick start.

use crate::keys::nearest;
use crate::layers::{Layer, text};
use crate::{Error, Result, Source};
use figment::value::Value;

/// The config that `occlude train` uses without one.
pub const QUICKSTART: &str = include_str!("../../../configs/quickstart.toml");

/// Name and text of each preset: the model sizes of the paper with their recipe.
const PRESETS: &[(&str, &str)] = &[
    ("capi-vit-s", include_str!("../presets/capi-vit-s.toml")),
    ("capi-vit-b", include_str!("../presets/capi-vit-b.toml")),
    ("capi-vit-l", include_str!("../presets/capi-vit-l.toml")),
    ("capi-ablation", include_str!("../presets/capi-ablation.toml")),
];

/// The names that `preset = "..."` takes.
pub fn preset_names() -> impl Iterator<Item = &'static str> {
    PRESETS.iter().map(|(name, _)| *name)
}

/// The layer of the preset that the highest of `layers` names, if any names one.
pub(crate) fn named_in(layers: &[Layer]) -> Result<Option<Layer>> {
    let Some(name) = layers.iter().rev().find_map(|layer| layer.values.get("preset")).and_then(Value::as_str) else {
        return Ok(None);
    };
    let Some((name, content)) = PRESETS.iter().find(|(known, _)| *known == name) else {
        return Err(Error::UnknownPreset { name: name.to_owned(), hint: hint(name) });
    };
    text(Source::Preset((*name).to_owned()), content).map(Some)
}

fn hint(name: &str) -> String {
    match nearest(name, preset_names()) {
        Some(near) => format!(": did you mean `{near}`?"),
        None => format!(": there are {}", preset_names().collect::<Vec<_>>().join(", ")),
    }
}
