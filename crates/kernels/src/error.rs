//! Why an operator refused its input.

/// Result of the tensor rooms.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why an operator, a parameter store or an optimizer refused its input.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A tensor has another shape than the operator needs.
    #[error("{op}: expected {expected}, got shape {got:?}")]
    Shape {
        /// The operator.
        op: &'static str,
        /// What it needs, in words and sizes.
        expected: String,
        /// The shape it was given.
        got: Vec<usize>,
    },
    /// A tensor has a dtype the operator does not take, or two tensors that must agree do not.
    #[error("{op}: expected dtype {expected}, got {got:?}")]
    Dtype {
        /// The operator.
        op: &'static str,
        /// What it takes.
        expected: &'static str,
        /// What it was given.
        got: candle_core::DType,
    },
    /// A number among the arguments is outside its range.
    #[error("{op}: {message}")]
    Argument {
        /// The operator.
        op: &'static str,
        /// What is wrong and what is allowed.
        message: String,
    },
    /// A state dictionary does not fit the parameters: a name is missing, unknown, or has another shape.
    #[error("state does not fit: {0}")]
    State(String),
    /// candle refused or failed.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}

impl Error {
    /// A shape error of `op`.
    pub fn shape(op: &'static str, expected: impl Into<String>, got: &[usize]) -> Self {
        Self::Shape { op, expected: expected.into(), got: got.to_vec() }
    }

    /// An argument error of `op`.
    pub fn argument(op: &'static str, message: impl Into<String>) -> Self {
        Self::Argument { op, message: message.into() }
    }
}

impl From<Error> for candle_core::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::Candle(inner) => inner,
            other => candle_core::Error::Msg(other.to_string()),
        }
    }
}
