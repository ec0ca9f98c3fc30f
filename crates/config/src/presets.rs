//! Presets that ship with Occlude, and the quick start.

use crate::keys::nearest;
use crate::layers::{Layer, text};
use crate::{Error, Result, Source};
use figment::value::Value;

/// The config that `occlude train` uses without one.
pub const QUICKSTART: &str = include_str!("../../../configs/quickstart.toml");

const CAPI_S: &str = include_str!("../presets/capi-vit-s.toml");
const CAPI_B: &str = include_str!("../presets/capi-vit-b.toml");
const CAPI_L: &str = include_str!("../presets/capi-vit-l.toml");
const CAPI_ABLATION: &str = include_str!("../presets/capi-ablation.toml");
const MOCA: &str = include_str!("../presets/moca-paper.toml");
const MOCA_V1: &str = include_str!("../presets/moca-v1.toml");
const MOCA_ABLATION: &str = include_str!("../presets/moca-ablation.toml");
const RANDSAC_CIFAR: &str = include_str!("../presets/randsac-cifar.toml");
const RANDSAC_CIFAR_ARCH: &str = include_str!("../presets/randsac-cifar-arch.toml");
const RANDSAC_LOWDATA: &str = include_str!("../presets/randsac-lowdata.toml");
const RANDSAC_IN100: &str = include_str!("../presets/randsac-in100.toml");
const RANDSAC_IN1K: &str = include_str!("../presets/randsac-in1k.toml");
const MAE_LOWDATA: &str = include_str!("../presets/mae-lowdata.toml");

/// Name and texts, each laid over those before it, of each preset: the model sizes of the papers with their recipes.
const PRESETS: &[(&str, &[&str])] = &[
    ("capi-vit-s", &[CAPI_S]),
    ("capi-vit-b", &[CAPI_B]),
    ("capi-vit-l", &[CAPI_L]),
    ("capi-ablation", &[CAPI_ABLATION]),
    ("moca-paper", &[MOCA]),
    ("moca-v1", &[MOCA, MOCA_V1]),
    ("moca-ablation", &[MOCA, MOCA_ABLATION]),
    ("randsac-cifar", &[RANDSAC_CIFAR]),
    ("randsac-cifar-arch", &[RANDSAC_CIFAR, RANDSAC_CIFAR_ARCH]),
    ("randsac-lowdata", &[RANDSAC_CIFAR, RANDSAC_CIFAR_ARCH, RANDSAC_LOWDATA]),
    ("randsac-in100", &[RANDSAC_IN100]),
    ("randsac-in1k", &[RANDSAC_IN100, RANDSAC_IN1K]),
    ("mae-lowdata", &[MAE_LOWDATA]),
];

/// The names that `preset = "..."` takes.
pub fn preset_names() -> impl Iterator<Item = &'static str> {
    PRESETS.iter().map(|(name, _)| *name)
}

/// The layers of the preset that the highest of `layers` names, lowest first; none if none names one.
pub(crate) fn named_in(layers: &[Layer]) -> Result<Vec<Layer>> {
    let name = layers.iter().rev().find_map(|layer| layer.values.get("preset")).and_then(Value::as_str);
    name.map_or(Ok(Vec::new()), of)
}

/// The layers of the preset `name`, lowest first.
pub(crate) fn of(name: &str) -> Result<Vec<Layer>> {
    let Some((name, contents)) = PRESETS.iter().find(|(known, _)| *known == name) else {
        return Err(Error::UnknownPreset { name: name.to_owned(), hint: hint(name) });
    };
    contents.iter().map(|content| text(Source::Preset((*name).to_owned()), content)).collect()
}

fn hint(name: &str) -> String {
    match nearest(name, preset_names()) {
        Some(near) => format!(": did you mean `{near}`?"),
        None => format!(": there are {}", preset_names().collect::<Vec<_>>().join(", ")),
    }
}
