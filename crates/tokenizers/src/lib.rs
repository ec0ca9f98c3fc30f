//! What turns teacher features into targets: online Sinkhorn clustering.
//!
//! [`SinkhornClustering`] holds prototypes, assigns the patches of a batch to them in equal shares, and learns the
//! prototypes from its own assignments. [`balanced_targets`] gives the same kind of targets for scores that come from
//! elsewhere (a teacher's head). Source: CAPI, clustering head, Sinkhorn and clustering loss.
//!
//! Invariants: features and assignments carry no gradient; position leads and the batch is the sample axis; with the
//! positionwise form the scores of one chunk of positions exist at a time.
//! Not here: the teacher network (`methods`), Sinkhorn's iteration itself (`kernels`), optimizers.

mod clustering;
mod config;
mod walk;

pub use clustering::{Assigned, SinkhornClustering};
pub use config::{ClusteringConfig, ClusteringSettings, SinkhornKind};
pub use walk::balanced_targets;
