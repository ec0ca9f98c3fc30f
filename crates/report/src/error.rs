//! Why a report was not made.

/// Result of this crate.
pub type Result<T, E = ReportError> = std::result::Result<T, E>;

/// Why a picture or a page was not made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReportError {
    /// A picture has no pixels, or not as many bytes as its sides say.
    #[error("a picture of {width} x {height} pixels needs {expected} bytes of RGB, got {got}")]
    Picture {
        /// Pixels from left to right.
        width: usize,
        /// Pixels from top to bottom.
        height: usize,
        /// Bytes needed; 0 where a side is 0.
        expected: usize,
        /// Bytes given.
        got: usize,
    },
    /// A mask does not have one flag for each cell of its grid, or a marked cell lies outside.
    #[error("a mask of {rows} x {cols} cells: {message}")]
    Mask {
        /// Cells from top to bottom.
        rows: usize,
        /// Cells from left to right.
        cols: usize,
        /// What does not fit.
        message: String,
    },
    /// A picture could not be encoded.
    #[error("a picture could not be encoded")]
    Png(#[from] image::ImageError),
    /// A chart could not be drawn.
    #[error("chart {chart}: {message}")]
    Chart {
        /// Its title.
        chart: String,
        /// What the drawing library said.
        message: String,
    },
}
