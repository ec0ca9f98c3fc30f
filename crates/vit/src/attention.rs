//! Self-attention as a residual branch of its own: the first part of a decoder's layer.

use crate::parts::biased;
use crate::{layer_norm_weights, linear_map};
use candle_core::Tensor;
use occlude_kernels::{Affine, Init, LinearOptions, NormWeights, Result, Scope, Visibility, attention, linear_with};

/// `x + attention(norm(x))` with a layer norm and biases. What follows in a decoder's layer is a [`Block`](crate::Block) of
/// the kind [`Cross`](crate::BlockKind::Cross). Queries, keys and values are drawn as if they were one matrix:
/// Xavier uniform over [3 * dim, dim].
#[derive(Clone, Debug)]
pub struct SelfAttention {
    norm: NormWeights,
    queries: Affine,
    keys: Affine,
    values: Affine,
    projection: Affine,
    heads: usize,
}

impl SelfAttention {
    /// A branch whose parameters lie in `scope`: `norm1`, `self_attn.{q, k, v, proj}`.
    ///
    /// # Errors
    /// A name exists already.
    pub fn new(scope: &mut Scope<'_>, dim: usize, heads: usize) -> Result<Self> {
        let norm = layer_norm_weights(scope, "norm1", dim)?;
        let mut scope = scope.sub("self_attn");
        let mut third = |name| biased(&mut scope, name, [dim, dim], &Init::xavier_uniform(dim, 3 * dim));
        let [queries, keys, values] = [third("q")?, third("k")?, third("v")?];
        let projection = linear_map(&mut scope, "proj", dim, dim)?;
        Ok(Self { norm, queries, keys, values, projection, heads })
    }

    /// [batch, tokens, dim] -> [batch, tokens, dim]
    ///
    /// # Errors
    /// Another width, or a visibility of other tokens.
    pub fn forward(&self, x: &Tensor, visibility: &Visibility) -> Result<Tensor> {
        let normed = self.norm.forward(x)?;
        let [q, k, v] = [&self.queries, &self.keys, &self.values].map(|map| map.forward(&normed));
        let mixed = attention(&q?, &k?, &v?, self.heads, visibility)?; // [batch, tokens, dim]
        let Affine { weight, bias } = &self.projection;
        linear_with(&mixed, weight, bias.as_ref(), &LinearOptions { residual: Some(x), ..LinearOptions::default() })
    }
}

#[cfg(test)]
mod tests {
    use super::SelfAttention;
    use crate::{Block, BlockKind, BlockShape, DropPath};
    use candle_core::{DType, Device};
    use occlude_golden::relative_difference;
    use occlude_kernels::check::{check_parameters, sample, stir};
    use occlude_kernels::{ParamStore, RankRule, Visibility};
    use occlude_random::Streams;

    fn sight() -> Visibility {
        let ranks = vec![1, 0, 2, 1, 0, 0, 0, 1, 2, 2];
        Visibility::Ranks { queries: ranks.clone(), keys: ranks, rule: RankRule::AtMost }
    }

    #[test]
    fn gradients_are_those_of_differences() {
        let mut store = ParamStore::trainable(Streams::new(2), DType::F64, &Device::Cpu);
        let own = SelfAttention::new(&mut store.root(), 8, 2).unwrap();
        stir(&store, 0.3).unwrap();
        let x = sample(1, (2, 5, 8)).unwrap();
        let loss = || Ok((own.forward(&x, &sight())? * sample(2, (2, 5, 8))?)?.sum_all()?);
        check_parameters(&store, |name| name.ends_with("k.bias"), loss).unwrap();
    }

    /// A block with the same weights and an MLP that adds nothing is the judge.
    #[test]
    fn it_is_the_first_half_of_a_block() {
        let mut store = ParamStore::trainable(Streams::new(2), DType::F64, &Device::Cpu);
        let own = SelfAttention::new(&mut store.root(), 8, 2).unwrap();
        stir(&store, 0.3).unwrap();
        let shape = BlockShape { dim: 8, context: 8, heads: 2, hidden: 4, encoded: false, recompute: false };
        let mut others = ParamStore::frozen(Streams::new(3), DType::F64, &Device::Cpu);
        let block = Block::new(&mut others.root(), shape, BlockKind::Layer).unwrap();
        let same = |(name, tensor): (String, candle_core::Tensor)| {
            let ours = store.get(&name.replace("attn.", "self_attn.")).cloned();
            let none = if name.starts_with("mlp.fc2") { tensor.zeros_like().unwrap() } else { tensor };
            (name, ours.unwrap_or(none))
        };
        others.load(&others.state().into_iter().map(same).collect()).unwrap();
        let x = sample(1, (2, 5, 8)).unwrap();
        let expected = block.mix_seeing(&x, sight(), &mut DropPath::off()).unwrap();
        assert!(relative_difference(&own.forward(&x, &sight()).unwrap(), &expected) < 1e-12);
    }
}
