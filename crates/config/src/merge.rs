//! Laying one layer over another, and reading the whole into the schema.

use crate::keys::{ALTERNATIVES, is_other_kind, is_span, is_unit, join, kind, known};
use crate::layers::Layer;
use crate::{Error, Result, Source};
use figment::error::Kind;
use figment::value::{Dict, Num, Value};
use figment::{Figment, providers::Serialized};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value as Schema;

/// The config that `layers` (lowest first) make over the defaults of `C`.
pub(crate) fn merge<C: Default + Serialize + DeserializeOwned>(mut layers: Vec<Layer>) -> Result<C> {
    let mut schema = serde_json::to_value(C::default()).map_err(broken_defaults)?;
    let mut defaults = Layer { source: Source::Defaults, values: defaults::<C>()? };
    for index in 0..layers.len() {
        let (below, rest) = layers.split_at_mut(index);
        let Some(layer) = rest.first() else { break };
        choose::<C>(&mut schema, &layer.values);
        known(&layer.values, &schema, &layer.source, &|key, value| accepts::<C>(&schema, key, value))?;
        hide(std::iter::once(&mut defaults).chain(below).map(|l| &mut l.values).collect(), &layer.values, &schema, "");
    }
    let figment = layers.iter().fold(Figment::from(defaults), |figment, layer| figment.merge(layer));
    figment.extract().map_err(|error| explain(error, &layers, &schema))
}

/// Brings `schema` to the alternatives that `values` choose: a layer above need not repeat the choice to be held against it.
/// One that does not exist is refused when the whole is read.
fn choose<C: Serialize + DeserializeOwned>(schema: &mut Schema, values: &Dict) {
    for path in ALTERNATIVES {
        let Some(chosen) = values.get(*path).and_then(|value| kind(path, value.as_dict()?)) else { continue };
        let shown = schema.get(path).and_then(|below| below.get("kind"));
        if shown.and_then(Schema::as_str) == Some(chosen) {
            continue;
        }
        let whole = serde_json::from_value::<C>(serde_json::json!({ *path: { "kind": chosen } }));
        let whole = whole.ok().and_then(|config| serde_json::to_value(config).ok());
        if let (Some(below), Some(place)) =
            (whole.and_then(|mut w| w.get_mut(*path).map(Schema::take)), schema.get_mut(path))
        {
            *place = below;
        }
    }
}

/// Whether `C` has a setting `key`, asked of its own reader: the defaults with that key added must not be refused for
/// a field that is unknown.
fn accepts<C: DeserializeOwned>(schema: &Schema, key: &str, value: &Value) -> bool {
    let mut whole = schema.clone();
    let added = serde_json::to_value(value).ok().zip(whole.pointer_mut(&pointer(key)));
    let Some((value, Schema::Object(table))) = added else { return false };
    table.insert(key.rsplit('.').next().unwrap_or(key).to_owned(), value);
    serde_json::from_value::<C>(whole).map_or_else(|error| !error.to_string().contains("unknown field"), |_| true)
}

/// The JSON pointer to the table that holds `key`.
fn pointer(key: &str) -> String {
    key.rsplit_once('.').map(|(table, _)| format!("/{}", table.replace('.', "/"))).unwrap_or_default()
}

fn defaults<C: Default + Serialize>() -> Result<Dict> {
    let mut data = figment::Provider::data(&Serialized::defaults(C::default())).map_err(broken_defaults)?;
    Ok(data.remove(&figment::Profile::Default).unwrap_or_default())
}

/// A default that cannot be written down is a mistake of a room, which its tests would have met first.
fn broken_defaults(error: impl std::fmt::Display) -> Error {
    Error::Unfit { place: Source::Defaults.to_string(), message: error.to_string() }
}

/// Removes from the layers `below` what `above` replaces as a whole: a span (another unit would join the old one) and
/// an alternative of another kind (its keys are not those of the old one). All are tables at `path`.
fn hide(mut below: Vec<&mut Dict>, above: &Dict, schema: &Schema, path: &str) {
    for (name, value) in above {
        let Some(values) = value.as_dict() else { continue };
        // A setting without a default may be missing in the schema.
        let schema = schema.get(name).unwrap_or(&Schema::Null);
        let key = join(path, name);
        if is_span(schema) || (schema.is_null() && is_unit(values)) || changes_kind(&below, name, &key, values) {
            below.iter_mut().for_each(|layer| drop(layer.remove(name)));
        } else {
            let inner = below.iter_mut().filter_map(|layer| match layer.get_mut(name) {
                Some(Value::Dict(_, inner)) => Some(inner),
                _ => None,
            });
            hide(inner.collect(), values, schema, &key);
        }
    }
}

/// Whether `values` choose another alternative than the layers below, of which the highest that chooses counts.
fn changes_kind(below: &[&mut Dict], name: &str, key: &str, values: &Dict) -> bool {
    let chosen = below.iter().rev().find_map(|layer| kind(key, layer.get(name)?.as_dict()?));
    kind(key, values).is_some_and(|new| chosen.is_some_and(|old| old != new))
}

/// The error of serde in the words of a person: key, value, what is expected, and where it was written.
fn explain(error: figment::Error, layers: &[Layer], schema: &Schema) -> Error {
    // A value of another type than the default says more than serde's message, which loses the path inside alternatives.
    let wrong = layers.iter().rev().find_map(|layer| wrong_type(&layer.values, schema, "", &layer.source));
    if let Some(wrong) = wrong {
        return wrong;
    }
    let path = error.path.join(".");
    if let Kind::UnknownVariant(value, allowed) = &error.kind
        && let Some((key, source)) =
            layers.iter().rev().find_map(|l| holder(&l.values, value, "").map(|k| (k, &l.source)))
    {
        let expected = format!("one of {}", allowed.join(", "));
        return Error::WrongType { place: source.clone(), key, value: value.clone(), expected };
    }
    let place = error.metadata.as_ref().map_or_else(|| "settings".to_owned(), |metadata| metadata.name.to_string());
    let key = if path.is_empty() { String::new() } else { format!("{path}: ") };
    Error::Unfit { place, message: format!("{key}{}", error.kind) }
}

/// The first value of another type than the schema's.
fn wrong_type(values: &Dict, schema: &Schema, path: &str, source: &Source) -> Option<Error> {
    values.iter().find_map(|(name, value)| {
        let (key, below) = (join(path, name), schema.get(name)?);
        if let (Value::Dict(_, inner), Schema::Object(_)) = (value, below) {
            return if is_span(below) || is_other_kind(&key, inner, below) {
                None
            } else {
                wrong_type(inner, below, &key, source)
            };
        }
        // A word may stand for an alternative whose other forms are tables: serde knows which.
        if let (Value::Dict(..), Schema::String(_)) = (value, below) {
            return None;
        }
        let expected = expected(below).filter(|_| !fits(value, below))?;
        Some(Error::WrongType { place: source.clone(), key, value: shown(value), expected: expected.into() })
    })
}

fn expected(schema: &Schema) -> Option<&'static str> {
    match schema {
        Schema::Null => None,
        Schema::Bool(_) => Some("true or false"),
        Schema::Number(number) if number.is_f64() => Some("a number"),
        Schema::Number(_) => Some("a whole number"),
        Schema::String(_) => Some("a word"),
        Schema::Array(_) => Some("a list"),
        Schema::Object(_) if is_span(schema) => Some("a length with its unit, such as { steps = 100 }"),
        Schema::Object(_) => Some("a table of settings"),
    }
}

fn fits(value: &Value, schema: &Schema) -> bool {
    match (value, schema) {
        (Value::Bool(..), Schema::Bool(_))
        | (Value::String(..) | Value::Char(..), Schema::String(_))
        | (Value::Array(..), Schema::Array(_))
        | (Value::Dict(..), Schema::Object(_)) => true,
        (Value::Num(_, given), Schema::Number(number)) => {
            number.is_f64() || !matches!(given, Num::F32(_) | Num::F64(_))
        }
        _ => false,
    }
}

/// A value as a person would write it.
fn shown(value: &Value) -> String {
    match serde_json::to_value(value) {
        Ok(value) => value.to_string(),
        Err(_) => format!("{value:?}"),
    }
}

/// Where the word `value` stands in `values`.
fn holder(values: &Dict, value: &str, path: &str) -> Option<String> {
    values.iter().find_map(|(name, held)| match held {
        Value::String(_, text) if text == value => Some(join(path, name)),
        Value::Dict(_, inner) => holder(inner, value, &join(path, name)),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::merge;
    use crate::Source;
    use crate::layers::{Layer, text};
    use serde::{Deserialize, Serialize};

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    #[serde(deny_unknown_fields, default)]
    struct Raw {
        seed: u64,
        rate: f64,
        steps: occlude_settings::Span,
        limit: Option<occlude_settings::Span>,
        #[serde(skip_serializing_if = "Option::is_none")]
        every: Option<occlude_settings::Span>,
        method: Part,
        mode: Mode,
    }

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    #[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
    enum Part {
        Round(Round),
        Square {
            #[serde(default)]
            side: u64,
        },
    }

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    #[serde(deny_unknown_fields, default)]
    struct Round {
        radius: f64,
        colour: String,
        #[serde(skip_serializing_if = "Option::is_none")]
        centre: Option<f64>,
        #[serde(skip_serializing_if = "Option::is_none")]
        growth: Option<occlude_settings::Span>,
    }

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    #[serde(rename_all = "snake_case")]
    enum Mode {
        Fast,
        Slow,
        Paced { pause: u64 },
    }

    impl Default for Round {
        fn default() -> Self {
            Self { radius: 1.0, colour: "red".into(), centre: None, growth: None }
        }
    }

    impl Default for Raw {
        fn default() -> Self {
            let steps = occlude_settings::Span::Steps(10);
            let method = Part::Round(Round::default());
            Self { seed: 1, rate: 0.5, steps, limit: None, every: None, method, mode: Mode::Fast }
        }
    }

    fn layer(name: &str, content: &str) -> Layer {
        text(Source::File(name.into()), content).unwrap()
    }

    fn read(contents: &[&str]) -> Result<Raw, String> {
        let layers = contents.iter().enumerate().map(|(i, content)| layer(&format!("{i}.toml"), content));
        merge(layers.collect()).map_err(|error| error.to_string())
    }

    #[test]
    fn later_layers_win_and_leave_the_rest() {
        let read = read(&["seed = 2\n[method]\nkind = 'round'\nradius = 3", "[method]\nradius = 4"]).unwrap();
        let method = Part::Round(Round { radius: 4.0, ..Round::default() });
        assert_eq!(read, Raw { seed: 2, method, ..Raw::default() });
    }

    #[test]
    fn another_unit_replaces_a_span() {
        let read = read(&["steps = { epochs = 2.0 }\nlimit = { steps = 3 }", "steps.percent = 5\nlimit.epochs = 1.0"])
            .unwrap();
        assert_eq!(read.steps, occlude_settings::Span::Percent(5.0));
        assert_eq!(read.limit, Some(occlude_settings::Span::Epochs(1.0)));
    }

    #[test]
    fn another_unit_replaces_a_span_that_the_defaults_do_not_show() {
        let read =
            |content| super::tests::read(&["every.steps = 2\n[method]\ngrowth = { steps = 3 }", content]).unwrap();
        assert_eq!(read("every.epochs = 1.0").every, Some(occlude_settings::Span::Epochs(1.0)));
        let growth = Some(occlude_settings::Span::Percent(5.0));
        assert_eq!(read("method.growth.percent = 5").method, Part::Round(Round { growth, ..Round::default() }));
    }

    #[test]
    fn a_table_for_a_word_is_left_to_its_reader() {
        assert_eq!(read(&["mode = { paced = { pause = 3 } }"]).unwrap().mode, Mode::Paced { pause: 3 });
        let message = read(&["mode = { paced = { pause = 'long' } }"]).unwrap_err();
        assert!(message.contains("mode") && !message.contains("must be a word"), "{message}");
        let other = read(&["seed = -1\nmode = { paced = { pause = 3 } }"]).unwrap_err();
        assert!(other.contains("seed") && !other.contains("mode"), "the right table is not blamed: {other}");
    }

    #[test]
    fn another_kind_replaces_an_alternative_and_back() {
        let square = "[method]\nkind = 'square'\nside = 3";
        assert_eq!(read(&[square]).unwrap().method, Part::Square { side: 3 });
        assert_eq!(
            read(&["method.radius = 9", square, "method.kind = 'round'"]).unwrap().method,
            Part::Round(Round::default())
        );
    }

    #[test]
    fn a_layer_need_not_repeat_the_kind() {
        let square = "[method]\nkind = 'square'";
        assert_eq!(read(&[square, "method.side = 3"]).unwrap().method, Part::Square { side: 3 });
        assert_eq!(
            read(&[square, "method.sied = 3"]).unwrap_err(),
            "1.toml: unknown key `method.sied`: did you mean `method.side`?"
        );
        assert_eq!(
            read(&[square, "method.side = 'long'"]).unwrap_err(),
            "1.toml: method.side = \"long\": must be a whole number"
        );
        assert!(read(&[square, "method.radius = 3"]).unwrap_err().contains("unknown key `method.radius`"));
        assert!(read(&["method.kind = 'star'", "method.radius = 3"]).unwrap_err().contains("star"));
    }

    #[test]
    fn a_wrong_type_names_key_value_and_place() {
        let message = |content| read(&["seed = 3", content]).unwrap_err();
        assert_eq!(message("rate = 'fast'"), "1.toml: rate = \"fast\": must be a number");
        assert_eq!(message("seed = 1.5"), "1.toml: seed = 1.5: must be a whole number");
        assert_eq!(message("method.radius = true"), "1.toml: method.radius = true: must be a number");
        assert_eq!(message("steps = 5"), "1.toml: steps = 5: must be a length with its unit, such as { steps = 100 }");
        assert_eq!(message("method = 5"), "1.toml: method = 5: must be a table of settings");
    }

    #[test]
    fn an_unknown_word_names_the_allowed_ones() {
        let message = read(&["mode = 'quick'"]).unwrap_err();
        assert_eq!(message, "0.toml: mode = quick: must be one of fast, slow, paced");
    }

    #[test]
    fn a_negative_count_is_refused() {
        let message = read(&["seed = -1"]).unwrap_err();
        assert!(message.contains("seed") && message.contains("0.toml") && !message.contains('\n'), "{message}");
    }

    #[test]
    fn a_setting_without_a_default_is_known() {
        let read = read(&["method.centre = 2.0"]).unwrap();
        assert_eq!(read.method, Part::Round(Round { centre: Some(2.0), ..Round::default() }));
    }

    #[test]
    fn a_whole_number_is_a_number() {
        assert_eq!(read(&["rate = 1"]).unwrap().rate, 1.0);
    }
}
