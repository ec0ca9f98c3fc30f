//! Multi-head attention with CAPI's position encoding on queries and keys.

use crate::{Positions, linear_weight};
use candle_core::Tensor;
use occlude_kernels::{Init, Result, Scope, Visibility, attention, frequency_table, linear, position_encode};

/// Four bias-free linears around softmax attention; q from one sequence, k and v from another or the same.
#[derive(Clone, Debug)]
pub struct Attention {
    q_proj: Tensor,        // [dim, dim]
    k_proj: Tensor,        // [dim, context]
    v_proj: Tensor,        // [dim, context]
    proj: Tensor,          // [dim, dim]
    table: Option<Tensor>, // [2, head_dim]; none where positions are learned
    heads: usize,
}

/// The tokens an attention reads from, and where they are. `rows` picks images where a subset of the batch is computed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place<'a> {
    pub(crate) positions: &'a Positions,
    pub(crate) rows: Option<&'a [u32]>,
}

impl Attention {
    /// Attention of width `dim` over tokens of width `context`; `encoded` says whether it has a frequency table.
    ///
    /// # Errors
    /// A name exists already.
    pub fn new(scope: &mut Scope<'_>, dim: usize, context: usize, heads: usize, encoded: bool) -> Result<Self> {
        let head_dim = dim / heads;
        Ok(Self {
            q_proj: linear_weight(scope, "q_proj", dim, dim)?,
            k_proj: linear_weight(scope, "k_proj", dim, context)?,
            v_proj: linear_weight(scope, "v_proj", dim, context)?,
            proj: linear_weight(scope, "proj", dim, dim)?,
            table: match encoded {
                true => {
                    let init = Init::Values(frequency_table(head_dim)?);
                    Some(scope.sub("rope").constant("freqs", &[2, head_dim], &init)?)
                }
                false => None,
            },
            heads,
        })
    }

    /// The encoded queries of `x`.  [batch, tokens, dim] -> [batch, tokens, dim]
    ///
    /// # Errors
    /// Another width, or positions of other tokens.
    pub fn queries(&self, x: &Tensor, positions: &Positions, rows: Option<&[u32]>) -> Result<Tensor> {
        self.encode(&linear(x, &self.q_proj, None)?, Place { positions, rows })
    }

    /// The encoded keys of `context`.  [batch, tokens, context] -> [batch, tokens, dim]
    ///
    /// # Errors
    /// Another width, or positions of other tokens.
    pub fn keys(&self, context: &Tensor, positions: &Positions, rows: Option<&[u32]>) -> Result<Tensor> {
        self.encode(&linear(context, &self.k_proj, None)?, Place { positions, rows })
    }

    /// `x` attends to `context`; both normed already. `rows` are the images they hold, where not the whole batch.
    /// x: [batch, tokens, dim], context: [batch, others, context] -> [batch, tokens, dim]
    ///
    /// # Errors
    /// Another width, or positions of other tokens.
    pub fn forward(
        &self,
        x: &Tensor,
        positions: &Positions,
        context: &Tensor,
        context_positions: &Positions,
        rows: Option<&[u32]>,
    ) -> Result<Tensor> {
        let q = self.queries(x, positions, rows)?; // [batch, tokens, dim]
        let k = self.keys(context, context_positions, rows)?; // [batch, others, dim]
        let v = linear(context, &self.v_proj, None)?; // [batch, others, dim]
        linear(&attention(&q, &k, &v, self.heads, &Visibility::All)?, &self.proj, None)
    }

    fn encode(&self, x: &Tensor, place: Place<'_>) -> Result<Tensor> {
        match &self.table {
            None => Ok(x.clone()),
            Some(table) => position_encode(x, &place.positions.angles(table, place.rows)?, self.heads),
        }
    }

    pub(crate) fn detach(&self) -> Self {
        Self {
            q_proj: self.q_proj.detach(),
            k_proj: self.k_proj.detach(),
            v_proj: self.v_proj.detach(),
            proj: self.proj.detach(),
            table: self.table.clone(),
            heads: self.heads,
        }
    }
}
