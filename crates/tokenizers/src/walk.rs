//! Going over the tokens of a batch in chunks of positions, so that the scores of one chunk exist at a time.

use crate::{ClusteringSettings, SinkhornKind};
use candle_core::Tensor;
use occlude_kernels::{Error, Result, gather_rows, sinkhorn};

/// Scores held at a time (16 MB in f32). Larger chunks save nothing, the products are long enough, and cost page faults:
/// glibc gives blocks of more than 32 MB back to the system each time.
pub(crate) const CHUNK_SCORES: usize = 4 << 20;

/// One chunk of positions.
pub(crate) struct Chunk {
    /// What the scores are of.  [positions * batch, dim]
    pub(crate) tokens: Tensor,
    /// Scores, with whatever graph `scores` recorded.  [positions * batch, prototypes]
    pub(crate) scores: Tensor,
    /// Balanced assignments.  [positions * batch, prototypes]
    pub(crate) assignments: Tensor,
    /// Share of all tokens that is in this chunk.
    pub(crate) share: f64,
}

/// Tokens with the position leading.  [batch, patches, dim] -> [patches, batch, dim]
///
/// # Errors
/// Another rank, or no tokens.
pub(crate) fn by_position(features: &Tensor) -> Result<Tensor> {
    let (batch, patches, _) = features.dims3()?;
    if batch == 0 || patches == 0 {
        return Err(Error::shape("targets", "features of at least one image and patch", features.dims()));
    }
    Ok(features.detach().transpose(0, 1)?.contiguous()?)
}

/// Targets at the flat indices `predict`, in that order, for teacher features [batch, patches, dim] whose scores
/// [tokens, prototypes] are given by a function of the tokens [tokens, dim]. No gradient.  [predicted, prototypes]
///
/// # Errors
/// No tokens, an index out of range, or those of `scores`.
pub fn balanced_targets(
    features: &Tensor,
    predict: &[u32],
    settings: &ClusteringSettings,
    scores: impl Fn(&Tensor) -> Result<Tensor>,
) -> Result<Tensor> {
    let tokens = by_position(features)?;
    walk(&tokens, predict, settings, CHUNK_SCORES, scores, |_| Ok(()))
}

/// Visits every chunk, of about `at_a_time` scores each; returns the assignments at `predict`.
/// tokens: [patches, batch, dim] -> [predicted, prototypes]
pub(crate) fn walk(
    tokens: &Tensor,
    predict: &[u32],
    settings: &ClusteringSettings,
    at_a_time: usize,
    scores: impl Fn(&Tensor) -> Result<Tensor>,
    mut visit: impl FnMut(Chunk) -> Result<()>,
) -> Result<Tensor> {
    let (patches, batch, dim) = tokens.dims3()?;
    let flat = tokens.reshape((patches * batch, dim))?;
    let mut picked = Picked::new(predict, patches, batch)?;
    // All tokens share the prototypes: the assignments of the whole batch have to exist at once.
    let whole = match settings.sinkhorn {
        SinkhornKind::Positionwise => None,
        SinkhornKind::Standard => Some(assign(&scores(&flat)?, 1, settings)?),
    };
    let each = (at_a_time / (batch * settings.prototypes).max(1)).clamp(1, patches.max(1));
    for start in (0..patches).step_by(each) {
        let count = each.min(patches - start);
        let tokens = flat.narrow(0, start * batch, count * batch)?;
        let scores = scores(&tokens)?; // [positions * batch, prototypes]
        let assignments = match &whole {
            None => assign(&scores, count, settings)?,
            Some(whole) => whole.narrow(0, start * batch, count * batch)?,
        };
        picked.take(&assignments, start, count)?;
        visit(Chunk { tokens, scores, assignments, share: count as f64 / patches as f64 })?;
    }
    picked.finish(&flat, settings.prototypes)
}

/// Sinkhorn over `groups` groups of rows.  [rows, prototypes] -> [rows, prototypes]
fn assign(scores: &Tensor, groups: usize, settings: &ClusteringSettings) -> Result<Tensor> {
    let (rows, prototypes) = scores.dims2()?;
    let grouped = scores.detach().reshape((groups, rows / groups, prototypes))?;
    Ok(sinkhorn(&grouped, settings.target_temp, settings.iterations)?.reshape((rows, prototypes))?)
}

/// Rows of the assignments that are wanted, collected chunk by chunk.
struct Picked {
    /// (position, image) of each wanted row.
    wanted: Vec<(usize, usize)>,
    batch: usize,
    parts: Vec<Tensor>,
    /// For each collected row, which wanted row it is.
    order: Vec<usize>,
}

impl Picked {
    fn new(predict: &[u32], patches: usize, batch: usize) -> Result<Self> {
        if let Some(index) = predict.iter().find(|index| **index as usize >= patches * batch) {
            let message = format!("patch {index} is outside a batch of {batch} images of {patches} patches");
            return Err(Error::argument("targets", message));
        }
        let wanted = predict.iter().map(|index| (*index as usize % patches, *index as usize / patches)).collect();
        Ok(Self { wanted, batch, parts: Vec::new(), order: Vec::new() })
    }

    /// assignments: [count * batch, prototypes] of the positions from `start`.
    fn take(&mut self, assignments: &Tensor, start: usize, count: usize) -> Result<()> {
        let inside = |position: usize| (start..start + count).contains(&position);
        let mut rows = Vec::new();
        for (row, (position, image)) in self.wanted.iter().enumerate() {
            if inside(*position) {
                rows.push(((position - start) * self.batch + image) as u32);
                self.order.push(row);
            }
        }
        if !rows.is_empty() {
            self.parts.push(gather_rows(assignments, &rows)?);
        }
        Ok(())
    }

    /// The wanted rows in the wanted order.
    fn finish(self, like: &Tensor, prototypes: usize) -> Result<Tensor> {
        if self.parts.is_empty() {
            return Ok(Tensor::zeros((0, prototypes), like.dtype(), like.device())?);
        }
        let mut place = vec![0; self.order.len()];
        for (collected, row) in self.order.iter().enumerate() {
            place[*row] = collected as u32;
        }
        gather_rows(&Tensor::cat(&self.parts, 0)?, &place)
    }
}
