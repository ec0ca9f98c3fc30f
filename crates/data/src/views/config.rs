//! Views as written in a file, and their checks.

use super::{Blur, Jitter, Recipe, Solarise, Views};
use crate::RandomCrop;
use occlude_settings::{ConfigError, require};
use serde::de::value::SeqAccessDeserializer;
use serde::de::{IntoDeserializer, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use std::fmt;
use std::sync::Arc;

/// Views of an image, as written in a file: the name of a published set, or one table a view.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum ViewsConfig {
    /// `views = "moca"`.
    Named(NamedViews),
    /// `[[views]]`.
    Each(Vec<ViewConfig>),
}

/// A published set of views.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NamedViews {
    /// The two of MOCA (specification, section 3), for crops that are bilinear and of at least a fifth of the area: colours
    /// jittered with probability 0.8, grey with 0.2; the first always blurred, the second blurred with 0.1 and solarised
    /// with 0.2.
    Moca,
}

/// What happens to one view between its crop and its flip, as written in a file, in the order of the fields. Nothing
/// that is left out happens.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ViewConfig {
    /// Changes of colour.
    pub jitter: JitterConfig,
    /// Probability of becoming grey.
    pub grey: f64,
    /// Gaussian blur.
    pub blur: BlurConfig,
    /// Bright values turned into their negative.
    pub solarise: SolariseConfig,
}

/// Colour jitter as written in a file: four changes in a random order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct JitterConfig {
    /// How often.
    pub probability: f64,
    /// The factor is drawn from 1 - this to 1 + this, likewise below; 0 leaves the brightness.
    pub brightness: f64,
    /// Of contrast.
    pub contrast: f64,
    /// Of saturation.
    pub saturation: f64,
    /// Hues are turned by up to this share of the circle, either way.
    pub hue: f64,
}

impl Default for JitterConfig {
    /// Never; the strengths are those of MOCA.
    fn default() -> Self {
        Self { probability: 0.0, brightness: 0.4, contrast: 0.4, saturation: 0.2, hue: 0.1 }
    }
}

/// Gaussian blur as written in a file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BlurConfig {
    /// How often.
    pub probability: f64,
    /// Smallest and largest deviation in pixels of the view.
    pub sigma: [f64; 2],
}

impl Default for BlurConfig {
    /// Never; the deviations are those of MOCA.
    fn default() -> Self {
        Self { probability: 0.0, sigma: [0.1, 2.0] }
    }
}

/// Solarising as written in a file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SolariseConfig {
    /// How often.
    pub probability: f64,
    /// The darkest value that is turned.
    pub threshold: u8,
}

impl Default for SolariseConfig {
    /// Never; the threshold is that of MOCA.
    fn default() -> Self {
        Self { probability: 0.0, threshold: 128 }
    }
}

impl NamedViews {
    /// The set written out.
    #[must_use]
    pub fn written_out(self) -> Vec<ViewConfig> {
        let Self::Moca = self;
        let view = |blur, solarise| ViewConfig {
            jitter: JitterConfig { probability: 0.8, ..JitterConfig::default() },
            grey: 0.2,
            blur: BlurConfig { probability: blur, ..BlurConfig::default() },
            solarise: SolariseConfig { probability: solarise, ..SolariseConfig::default() },
        };
        vec![view(1.0, 0.0), view(0.1, 0.2)]
    }
}

impl ViewsConfig {
    /// The most views of one image.
    const MOST: usize = 16;

    /// The checked views, cut as `crop` says.
    ///
    /// # Errors
    /// No view or too many; the first field that is out of range, with the number of its view, from 0 on.
    pub fn check(&self, crop: Arc<RandomCrop>) -> Result<Views, ConfigError> {
        let each = match self {
            Self::Named(name) => &name.written_out(),
            Self::Each(each) => each,
        };
        let allowed = format!("must list between 1 and {} views", Self::MOST);
        require("views", each.len(), &allowed, |count| (1..=Self::MOST).contains(count))?;
        let inside = |number: usize| move |error: ConfigError| error.inside(&format!("views.{number}"));
        let recipes = each.iter().enumerate().map(|(number, view)| view.check().map_err(inside(number)));
        Ok(Views { crop, recipes: recipes.collect::<Result<_, _>>()? })
    }
}

impl ViewConfig {
    fn check(&self) -> Result<Recipe, ConfigError> {
        Ok(Recipe {
            jitter: self.jitter.check().map_err(|error| error.inside("jitter"))?,
            grey: probability("grey", self.grey)?,
            blur: self.blur.check().map_err(|error| error.inside("blur"))?,
            solarise: self.solarise.check().map_err(|error| error.inside("solarise"))?,
        })
    }
}

impl JitterConfig {
    fn check(&self) -> Result<Jitter, ConfigError> {
        let strength = |field, value| require(field, value, "must be between 0 and 1", |v| (0.0..=1.0).contains(v));
        let hue = require("hue", self.hue, "must be between 0 and 0.5", |hue| (0.0..=0.5).contains(hue))?;
        Ok(Jitter {
            probability: probability("probability", self.probability)?,
            brightness: strength("brightness", self.brightness)?,
            contrast: strength("contrast", self.contrast)?,
            saturation: strength("saturation", self.saturation)?,
            hue,
        })
    }
}

impl BlurConfig {
    fn check(&self) -> Result<Blur, ConfigError> {
        let [low, high] = self.sigma;
        require("sigma", low, "must be at least 0 and not above the second value", |l| *l >= 0.0 && *l <= high)?;
        require("sigma", high, "must be at most 32 pixels", |h| *h <= 32.0)?;
        Ok(Blur { probability: probability("probability", self.probability)?, sigma: self.sigma })
    }
}

impl SolariseConfig {
    fn check(&self) -> Result<Solarise, ConfigError> {
        Ok(Solarise { probability: probability("probability", self.probability)?, threshold: self.threshold })
    }
}

fn probability(field: &str, value: f64) -> Result<f64, ConfigError> {
    require(field, value, "must be a probability, between 0 and 1", |p| (0.0..=1.0).contains(p))
}

/// By hand: the derived one tries both forms and loses what is wrong with each.
impl<'de> Deserialize<'de> for ViewsConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Written)
    }
}

struct Written;

impl<'de> Visitor<'de> for Written {
    type Value = ViewsConfig;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the name of a set of views or a list of tables, one a view")
    }

    fn visit_str<E: serde::de::Error>(self, name: &str) -> Result<ViewsConfig, E> {
        NamedViews::deserialize(name.into_deserializer()).map(ViewsConfig::Named)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<ViewsConfig, A::Error> {
        Vec::deserialize(SeqAccessDeserializer::new(list)).map(ViewsConfig::Each)
    }
}
