//! Views of an image, each with its own recipe (MOCA specification, section 3).
//!
//! A view is cut, jittered, made grey, blurred, solarised, mirrored and normalised, in this order; everything before
//! normalisation acts on 8-bit images. View `i` draws from the stream `augment/i` of its sample, in the order in which
//! things happen:
//!
//! 1. the box, as [`RandomCrop`] draws it;
//! 2. jitter: whether, the order of the four changes, the strengths of brightness, contrast, saturation and hue;
//! 3. grey: whether;
//! 4. blur: whether, the deviation;
//! 5. solarising: whether;
//! 6. the flip: whether.
//!
//! What cannot happen (a probability or a strength of 0) draws nothing, so a view without a recipe is that of
//! [`RandomCrop`] alone.

mod config;

pub use config::{BlurConfig, JitterConfig, NamedViews, SolariseConfig, ViewConfig, ViewsConfig};

use crate::augment::{Augment, Draws};
use crate::draw::{between, unit};
use crate::{Image, RandomCrop, ops};
use occlude_random::{Stream, choose};
use std::sync::Arc;

/// Views of an image under one crop, each with a recipe of its own.
#[derive(Clone, Debug)]
pub struct Views {
    crop: Arc<RandomCrop>,
    recipes: Vec<Recipe>,
}

impl Views {
    /// One view, cut and mirrored only.
    #[must_use]
    pub fn plain(crop: Arc<RandomCrop>) -> Self {
        Self { crop, recipes: vec![Recipe::default()] }
    }
}

impl Augment for Views {
    fn count(&self) -> usize {
        self.recipes.len()
    }

    fn shape(&self) -> [usize; 3] {
        self.crop.shape()
    }

    fn views(&self, image: &Image, draws: &Draws, views: &mut [&mut [f32]]) {
        for (index, (recipe, out)) in self.recipes.iter().zip(views).enumerate() {
            self.crop.view(image, &mut draws.view(index), out, |picture, stream| recipe.apply(picture, stream));
        }
    }
}

/// What happens to a view between its crop and its flip; by default nothing.
#[derive(Clone, Debug, Default, PartialEq)]
struct Recipe {
    jitter: Jitter,
    grey: f64,
    blur: Blur,
    solarise: Solarise,
}

#[derive(Clone, Debug, Default, PartialEq)]
struct Jitter {
    probability: f64,
    brightness: f64,
    contrast: f64,
    saturation: f64,
    hue: f64,
}

#[derive(Clone, Debug, Default, PartialEq)]
struct Blur {
    probability: f64,
    sigma: [f64; 2],
}

#[derive(Clone, Debug, Default, PartialEq)]
struct Solarise {
    probability: f64,
    threshold: u8,
}

/// Whether something of this probability happens. The impossible draws nothing.
fn happens(probability: f64, stream: &mut Stream) -> bool {
    probability > 0.0 && unit(stream) < probability
}

impl Recipe {
    fn apply(&self, picture: &mut Image, stream: &mut Stream) {
        if happens(self.jitter.probability, stream) {
            self.jitter.apply(picture, stream);
        }
        if happens(self.grey, stream) {
            ops::grey(picture);
        }
        if happens(self.blur.probability, stream) {
            let [low, high] = self.blur.sigma;
            ops::blur(picture, between(stream, low, high) as f32);
        }
        if happens(self.solarise.probability, stream) {
            ops::solarise(picture, self.solarise.threshold);
        }
    }
}

impl Jitter {
    fn apply(&self, picture: &mut Image, stream: &mut Stream) {
        let mut order = [0, 1, 2, 3];
        choose(stream, &mut order, 4);
        let mut around =
            |centre, strength| (strength > 0.0).then(|| between(stream, centre - strength, centre + strength));
        let [brightness, contrast, saturation] =
            [self.brightness, self.contrast, self.saturation].map(|strength| around(1.0, strength).map(|f| f as f32));
        let hue = around(0.0, self.hue);
        for change in order {
            match change {
                0 => brightness.map(|factor| ops::brightness(picture, factor)),
                1 => contrast.map(|factor| ops::contrast(picture, factor)),
                2 => saturation.map(|factor| ops::saturation(picture, factor)),
                _ => hue.map(|turn| ops::hue(picture, turn)),
            };
        }
    }
}

#[cfg(test)]
mod tests;
