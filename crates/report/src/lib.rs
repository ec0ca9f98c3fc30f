//! The HTML report of a run: scores, curves, masks, predictions, feature maps, neighbours, clusters, settings.
//!
//! A caller fills [`ReportData`] with plain numbers and pictures, and [`render`] makes one page of it that needs nothing
//! else: no script, no network, pictures inside. [`draw`] holds the picture helpers, for others to use too; [`orders`] and
//! [`sights`] draw how an image is taken apart, as SVG, and [`animation`] shows it happen.
//!
//! Invariants: the page refers to nothing outside itself; every string of the caller is escaped, so that a class may be
//! called `<script>`; equal data give equal bytes; a part without data is left out with a sentence that says why, and
//! one that a method does not have is not mentioned.
//! Not here: how numbers and pictures were made (`eval`, the command), and where the page is written.
//!
//! ```
//! use occlude_report::{Chart, ReportData, Score, render};
//! let data = ReportData {
//!     title: "quickstart".into(),
//!     scores: vec![Score::of("k-NN", 71.5, "20 neighbours, average pooling")].into(),
//!     charts: vec![Chart::knn(vec![(0.0, 30.0), (4096.0, 71.5)], Some(41.0), Some(30.0))].into(),
//!     ..ReportData::default()
//! };
//! assert!(render(&data)?.contains("71.5"));
//! # Ok::<(), occlude_report::ReportError>(())
//! ```

mod chart;
mod colour;
mod data;
pub mod draw;
mod error;
mod markup;
mod page;
mod picture;
mod reconstructions;
mod serial;
mod skips;

pub use chart::{Baseline, Chart, Curve};
pub use data::{
    Cluster, Fact, Highlight, MaskPicture, Neighbour, NeighbourRow, Part, PcaMap, PcaPicture, Reconstruction,
    ReportData, Score, SkipMatrix, Table,
};
pub use error::{ReportError, Result};
pub use page::render;
pub use picture::Picture;
pub use serial::{OrderPicture, SightPicture, animation, orders, sights};
