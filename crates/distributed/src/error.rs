//! Why an exchange failed.

use candle_core::DType;

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why an exchange failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Two ranks met in different calls. Every rank of the exchange gets this error; the group can be used further.
    #[error("ranks disagree: rank {} calls {}, rank {} calls {}", first.0, first.1, other.0, other.1)]
    Mismatch {
        /// A rank and its call, with shape and dtype.
        first: (usize, String),
        /// The first rank whose call differs from that, and its call.
        other: (usize, String),
    },
    /// A rank is gone. No exchange of the group can be finished any more.
    #[error("{call}: rank {rank} of {size} has left the group")]
    Lost {
        /// What was called here.
        call: String,
        /// Which rank left.
        rank: usize,
        /// Ranks in the group.
        size: usize,
    },
    /// A tensor was asked of a rank that does not exist.
    #[error("broadcast from rank {root}: the group has ranks 0 to {}", size - 1)]
    Root {
        /// The rank that was named.
        root: usize,
        /// Ranks in the group.
        size: usize,
    },
    /// Integers have no mean.
    #[error("all_reduce_mean: expected floats, got {0:?}")]
    Mean(DType),
    /// candle refused or failed.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}

/// Methods exchange numbers within a step, whose errors are those of the tensor rooms.
impl From<Error> for occlude_kernels::Error {
    fn from(error: Error) -> Self {
        Self::Candle(match error {
            Error::Candle(inner) => inner,
            other => candle_core::Error::wrap(other),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::Error;

    #[test]
    fn a_step_that_fails_here_still_says_why() {
        let lost = || Error::Lost { call: "barrier".into(), rank: 1, size: 3 };
        let said = occlude_kernels::Error::from(lost()).to_string();
        assert!(said.starts_with(&lost().to_string()), "{said}");
    }
}
