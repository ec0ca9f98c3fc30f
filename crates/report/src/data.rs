//! What a report shows, as plain data.

use crate::{Chart, Picture};

/// One part of a report: its items, or a sentence that says why there are none.
#[derive(Clone, Debug, PartialEq)]
pub enum Part<T> {
    /// What is shown. Empty counts as absent.
    Shown(Vec<T>),
    /// Why nothing is shown, as a sentence.
    Absent(String),
}

impl<T> Default for Part<T> {
    fn default() -> Self {
        Self::Absent("Not recorded for this run.".into())
    }
}

impl<T> From<Vec<T>> for Part<T> {
    fn from(items: Vec<T>) -> Self {
        Self::Shown(items)
    }
}

impl<T> Part<T> {
    /// Nothing to show, for this reason (a sentence).
    pub fn absent(why: impl Into<String>) -> Self {
        Self::Absent(why.into())
    }

    /// The items, or the reason.
    pub(crate) fn items(&self) -> Result<&[T], &str> {
        match self {
            Self::Shown(items) if items.is_empty() => Err("There was nothing to show."),
            Self::Shown(items) => Ok(items),
            Self::Absent(why) => Err(why),
        }
    }
}

/// Everything a report shows. Strings are plain text; the page escapes them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ReportData {
    /// Name of the run.
    pub title: String,
    /// One sentence under the title: method, model, data.
    pub summary: String,
    /// The few figures a reader wants first.
    pub highlights: Vec<Highlight>,
    /// Accuracies.
    pub scores: Part<Score>,
    /// What one bar each cannot say, under the accuracies.
    pub tables: Vec<Table>,
    /// Curves over the run.
    pub charts: Part<Chart>,
    /// What the decoder reads of the encoder, in the order of training; a page shows the first, the last and some
    /// between. `None` where a method has no trainable skip connections: the page then says nothing about them.
    pub skips: Option<Part<SkipMatrix>>,
    /// What was hidden.
    pub masks: Part<MaskPicture>,
    /// Images as they are predicted; `None` where a method predicts no pixels: the page then says nothing about them.
    pub reconstructions: Option<Part<Reconstruction>>,
    /// Feature maps.
    pub pca: Part<PcaPicture>,
    /// Nearest neighbours of some images.
    pub neighbours: Part<NeighbourRow>,
    /// Patches by cluster.
    pub clusters: Part<Cluster>,
    /// Facts about the run: steps, seconds, machine, seed, versions, command.
    pub facts: Vec<Fact>,
    /// The resolved settings (TOML).
    pub settings: String,
}

/// A figure in large type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Highlight {
    /// With its unit: `71.5 %`.
    pub value: String,
    /// What it is.
    pub label: String,
    /// What it is compared with, or empty.
    pub note: String,
}

/// One line of the score table.
#[derive(Clone, Debug, PartialEq)]
pub struct Score {
    /// Which protocol.
    pub name: String,
    /// Percent, 0 to 100.
    pub percent: f64,
    /// Setting that gave it (neighbours, pooling, samples).
    pub note: String,
    /// Whether this is a comparison (raw pixels, random weights) and not the run.
    pub baseline: bool,
}

impl Score {
    /// A score of the run.
    pub fn of(name: impl Into<String>, percent: f64, note: impl Into<String>) -> Self {
        Self { name: name.into(), percent, note: note.into(), baseline: false }
    }

    /// A score to compare with.
    pub fn baseline(name: impl Into<String>, percent: f64, note: impl Into<String>) -> Self {
        Self { baseline: true, ..Self::of(name, percent, note) }
    }
}

/// A small table of texts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// What it shows.
    pub title: String,
    /// How it is to be read, or empty.
    pub note: String,
    /// Heads of the columns; the first column names the rows, the others hold numbers.
    pub columns: Vec<String>,
    /// A text for each column.
    pub rows: Vec<Vec<String>>,
}

/// A name and a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fact {
    /// What it is.
    pub name: String,
    /// Its value, with its unit.
    pub value: String,
}

impl Fact {
    /// A fact.
    pub fn new(name: impl Into<String>, value: impl Into<String>) -> Self {
        Self { name: name.into(), value: value.into() }
    }
}

/// An image and what was hidden of it.
#[derive(Clone, Debug, PartialEq)]
pub struct MaskPicture {
    /// The image under the mask.
    pub image: Picture,
    /// Patches from top to bottom.
    pub rows: usize,
    /// Patches from left to right.
    pub cols: usize,
    /// One flag a patch, row-major; `true` means hidden from the student.
    pub hidden: Vec<bool>,
    /// Patches that are predicted.
    pub predicted: Vec<usize>,
}

/// Weights of trainable skip connections at one moment of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct SkipMatrix {
    /// When: `epoch 100`.
    pub label: String,
    /// Decoder layers.
    pub rows: usize,
    /// Encoder blocks.
    pub cols: usize,
    /// What each decoder layer takes of each encoder block, layer by layer.  [rows * cols]
    pub weights: Vec<f64>,
}

/// An image beside what was predicted of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Reconstruction {
    /// The image.
    pub image: Picture,
    /// The order in which its segments are predicted, as [`draw::rank_map`](crate::draw::rank_map) paints it.
    pub ranks: Picture,
    /// The predictions, pasted patch by patch; as large as the image.
    pub predicted: Picture,
    /// What else a reader should know, or empty.
    pub note: String,
}

/// An image and its feature maps.
#[derive(Clone, Debug, PartialEq)]
pub struct PcaPicture {
    /// The image.
    pub image: Picture,
    /// Maps, one pixel a patch or finer; the same names in the same order for every image.
    pub maps: Vec<PcaMap>,
}

/// One feature map.
#[derive(Clone, Debug, PartialEq)]
pub struct PcaMap {
    /// Which features, and which components: `trained`, `random weights`.
    pub name: String,
    /// The colours.
    pub picture: Picture,
}

/// An image and the images whose features are nearest to its own.
#[derive(Clone, Debug, PartialEq)]
pub struct NeighbourRow {
    /// The image asked for.
    pub query: Picture,
    /// Its class, or empty.
    pub label: String,
    /// Nearest first.
    pub neighbours: Vec<Neighbour>,
}

/// One neighbour.
#[derive(Clone, Debug, PartialEq)]
pub struct Neighbour {
    /// The image.
    pub picture: Picture,
    /// Its class, or empty.
    pub label: String,
    /// Cosine similarity of the features, -1 to 1.
    pub similarity: f64,
}

/// Patches that one prototype took.
#[derive(Clone, Debug, PartialEq)]
pub struct Cluster {
    /// `prototype 17`.
    pub name: String,
    /// Percent of all patches looked at.
    pub share: f64,
    /// Some of its patches, each with some of its surroundings or without.
    pub patches: Vec<Picture>,
}
