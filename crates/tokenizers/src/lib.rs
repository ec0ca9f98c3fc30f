//! What turns teacher features into targets: online Sinkhorn clustering, online codebooks.
//!
//! [`SinkhornClustering`] holds prototypes, assigns the patches of a batch to them in equal shares, and learns the
//! prototypes from its own assignments. [`balanced_targets`] gives the same kind of targets for scores that come from
//! elsewhere (a teacher's head). Source: CAPI, clustering head, Sinkhorn and clustering loss.
//! [`OnlineCodebook`] holds words that are teacher tokens of earlier steps, and assigns patches softly to them. Source:
//! MOCA, online codebook and teacher assignments.
//!
//! Invariants: features and assignments carry no gradient; in the clustering position leads and the batch is the sample
//! axis; with the positionwise form the scores of one chunk of positions exist at a time.
//! Not here: the teacher network (`methods`), Sinkhorn's iteration itself (`kernels`), optimizers.

mod clustering;
mod codebook;
mod config;
mod walk;

pub use clustering::{Assigned, SinkhornClustering};
pub use codebook::{
    Assignments, Choice, Chosen, CodebookConfig, CodebookSettings, CodebookUpdate, OnlineCodebook, Place,
};
pub use config::{ClusteringConfig, ClusteringSettings, SinkhornKind};
pub use walk::balanced_targets;
