//! Which patches are hidden. Plain index arithmetic: no tensors, no images, no files.
//!
//! A [`Masker`] (random cells, a block, or all but a block) draws one [`Mask`] an image; a [`BatchMask`] gathers the
//! masks of a batch as index lists: what the student sees, and which hidden patches it predicts. [`Rounds`] mask a
//! batch several times, each a permutation of the patches. A [`Segmenter`] shares the patches of an image out among segments
//! and puts those in an order. Sources: CAPI, masking; MOCA, masking rounds and partial decoding; RandSAC, segments and
//! serialisation; conventions are those of the public codes.
//!
//! Invariants: visible and hidden indices are sorted, disjoint and cover the grid; every mask of one masker on one grid
//! hides the same number of patches; equal streams give equal masks on every machine.
//! Not here: turning indices into tensors (`kernels`), choosing a ratio (`config`), naming the random streams (the
//! caller hands in a generator an image).
//!
//! ```
//! use occlude_masking::{BatchMask, Grid, MaskerConfig};
//! use occlude_random::Streams;
//! let masker = MaskerConfig::default().check()?; // all but a rolled block, 65 % hidden
//! let grid = Grid::new(14, 14);
//! let stream = |image: usize| Streams::new(0).stream("mask", 0, image as u64);
//! let batch = BatchMask::draw(&masker, grid, 4, 6, stream)?;
//! assert_eq!((batch.visible_per_image, batch.predict_per_image), (69, 6));
//! assert_eq!(batch.visible.len(), 4 * 69);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod batch;
mod block;
mod grid;
mod mask;
mod rounds;
mod sampler;
mod segments;

pub use batch::{BatchMask, MaskError, predict_count};
pub use block::{BlockDraws, BlockShape, Roll, log_aspect_range};
pub use grid::Grid;
pub use mask::Mask;
pub use rounds::{Round, RoundConfig, RoundCounts, RoundError, Rounds, RoundsConfig, kept_count};
pub use sampler::{Masker, MaskerConfig, MaskerKind, hidden_count};
pub use segments::{
    Gaussian, Point, Segmenter, SegmenterConfig, Segments, SegmentsKind, cell_points, centroids, likeliest, ranks,
    sees_content, sees_memory, shared_out, traversal,
};
