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
    /// There is no picture to draw.
    #[error("there is no picture to draw")]
    NoPicture,
    /// A cycle of an animation that is too short to follow or too long to wait for.
    #[error("a cycle of {seconds} s: must be between 1 and 600 s")]
    Seconds {
        /// What was asked for.
        seconds: f64,
    },
    /// Skip connections without one weight for each pair of a decoder layer and an encoder block.
    #[error("skip connections {label:?}: {rows} decoder layers of {cols} encoder blocks each, {got} weights")]
    Skips {
        /// Which.
        label: String,
        /// Decoder layers.
        rows: usize,
        /// Encoder blocks.
        cols: usize,
        /// Weights given.
        got: usize,
    },
    /// A prediction does not have the sides of its image.
    #[error("a prediction of {} x {} pixels for an image of {} x {}", .predicted.0, .predicted.1, .image.0, .image.1)]
    Prediction {
        /// Width and height of the image.
        image: (usize, usize),
        /// Width and height of the prediction.
        predicted: (usize, usize),
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
