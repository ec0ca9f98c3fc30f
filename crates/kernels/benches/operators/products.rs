//! Operators whose work is matrix products.

use crate::table::{Table, Work};
use crate::{angles, plain, var};
use occlude_kernels::{
    Activation, Affine, BlockOptions, BlockWeights, LinearOptions, NormWeights, Precision, Visibility, attention,
    backward, block, gelu, linear, linear_with, packed_attention, position_encode, rms_norm,
};

/// Tokens of a step: [rows, in] to out. Eight images of ViT-S with 197 tokens each, and 64 of ViT-Tiny with 64.
const LINEAR: [(usize, usize, usize); 5] =
    [(1576, 384, 1536), (1576, 1536, 384), (1576, 384, 1152), (1576, 384, 384), (4096, 192, 768)];

/// [batch, tokens, dim] and heads of a block: the quick start's, and ViT-S.
const BLOCK: [([usize; 3], usize); 2] = [([256, 20, 128], 4), ([8, 197, 384], 6)];

/// In every precision that is one of its own on this processor. Attention is f32 in all of them.
pub(crate) fn all(table: &mut Table<'_>) {
    BLOCK.iter().for_each(|(shape, heads)| attentions(table, *shape, *heads));
    for precision in Precision::ALL {
        if precision != Precision::F32 && precision.tiles().is_none() {
            table.note(format!("{precision} is not measured. Here it means {}.", precision.explain()));
            continue;
        }
        let _scope = precision.scope();
        LINEAR.iter().for_each(|size| linears(table, precision, *size));
        LINEAR[..2].iter().for_each(|size| finished(table, precision, *size));
        BLOCK.iter().for_each(|(shape, heads)| blocks(table, precision, *shape, *heads));
    }
}

/// The precision behind a name, unless it is the usual one.
fn named(name: String, precision: Precision) -> String {
    if precision == Precision::F32 { name } else { format!("{name}, {precision}") }
}

fn linears(table: &mut Table<'_>, precision: Precision, (rows, inner, out): (usize, usize, usize)) {
    let name = named(format!("linear [{rows}, {inner}] to {out}"), precision);
    let work = Work::Flops(2 * rows * inner * out);
    let (x, w) = ([rows, inner], [out, inner]);
    table.call(&name, "forward", work, || {
        let (x, w) = (plain(1, &x, 1.0), plain(2, &w, 0.1));
        move || linear(&x, &w, None)
    });
    table.backward_of(&name, "dX", work, || {
        let (x, w) = (var(1, &x, 1.0), plain(2, &w, 0.1));
        move || linear(&x, &w, None)
    });
    table.backward_of(&name, "dW", work, || {
        let (x, w) = (plain(1, &x, 1.0), var(2, &w, 0.1));
        move || linear(&x, &w, None)
    });
}

/// The two maps of an MLP with what follows them, in one operator and in several: the wider one its GELU, the other a
/// residual.
fn finished(table: &mut Table<'_>, precision: Precision, (rows, inner, out): (usize, usize, usize)) {
    let (wider, work) = (out > inner, Work::Flops(2 * rows * inner * out));
    let follows = if wider { "gelu" } else { "residual" };
    let size = named(format!("{follows} [{rows}, {inner}] to {out}"), precision);
    let tensors = move || {
        [var(1, &[rows, inner], 1.0), var(2, &[out, inner], 0.1), var(3, &[out], 1.0), var(4, &[rows, out], 1.0)]
    };
    let one = move || {
        let [x, w, b, residual] = tensors();
        move || {
            let activation = wider.then_some(Activation::Gelu);
            let residual = (!wider).then_some(&residual);
            linear_with(&x, &w, Some(&b), &LinearOptions { activation, residual, ..LinearOptions::default() })
        }
    };
    let several = move || {
        let [x, w, b, residual] = tensors();
        move || {
            let y = linear(&x, &w, Some(&b))?;
            if wider { gelu(&y) } else { Ok((&residual + y)?) }
        }
    };
    let (name, parts) = (format!("linear_with {size}"), format!("linear, then {size}"));
    let both = Work::Flops(6 * rows * inner * out);
    table.call(&name, "forward", work, one);
    table.call(&parts, "forward", work, several);
    table.call(&name, "both", both, || {
        let op = one();
        move || backward(&op()?.sum_all()?)
    });
    table.call(&parts, "both", both, || {
        let op = several();
        move || backward(&op()?.sum_all()?)
    });
}

/// Forward two products (scores, mixtures), backward five: the scores are made again.
fn attentions(table: &mut Table<'_>, shape: [usize; 3], heads: usize) {
    let [batch, tokens, dim] = shape;
    let name = format!("attention [{batch}, {tokens}, {dim}], {heads} heads");
    let one = 2 * batch * tokens * tokens * dim;
    table.call(&name, "forward", Work::Flops(2 * one), || {
        let [q, k, v] = [1, 2, 3].map(|seed| plain(seed, &shape, 1.0));
        move || attention(&q, &k, &v, heads, &Visibility::All)
    });
    table.backward(&name, Work::Flops(5 * one), || {
        let [q, k, v] = [1, 2, 3].map(|seed| var(seed, &shape, 1.0));
        move || attention(&q, &k, &v, heads, &Visibility::All)
    });
    let (name, shape) = (format!("packed {name}"), [batch, tokens, 3 * dim]);
    table.call(&name, "forward", Work::Flops(2 * one), || {
        let qkv = plain(1, &shape, 1.0);
        move || packed_attention(&qkv, heads, &Visibility::All)
    });
    table.backward(&name, Work::Flops(5 * one), || {
        let qkv = var(1, &shape, 1.0);
        move || packed_attention(&qkv, heads, &Visibility::All)
    });
}

/// A pre-norm block in one operator, and out of the others: what a model costs per layer. What it packs of its weights
/// for bf16 stays packed from call to call, where a training step packs anew.
fn blocks(table: &mut Table<'_>, precision: Precision, shape: [usize; 3], heads: usize) {
    let [batch, tokens, dim] = shape;
    let size = named(format!("[{batch}, {tokens}, {dim}], {heads} heads"), precision);
    let linears = 2 * batch * tokens * 12 * dim * dim;
    let scores = 2 * batch * tokens * tokens * dim;
    let (forward, both) = (Work::Flops(linears + 2 * scores), Work::Flops(3 * linears + 7 * scores));
    let fused = || {
        let (x, weights) = (var(1, &shape, 1.0), weights(dim));
        let angles = angles(batch, tokens, dim / heads);
        let options = BlockOptions { angles: Some((angles.clone(), angles)), ..BlockOptions::new(heads) };
        move || block(&x, None, &weights, options.clone())
    };
    let single = || {
        let (x, weights, angles) = (var(1, &shape, 1.0), weights(dim), angles(batch, tokens, dim / heads));
        move || {
            let y = rms_norm(&x, Some(&weights.norm1.weight), weights.norm1.eps)?;
            let q = position_encode(&linear(&y, &weights.queries.weight, None)?, &angles, heads)?;
            let k = position_encode(&linear(&y, &weights.keys.weight, None)?, &angles, heads)?;
            let v = linear(&y, &weights.values.weight, None)?;
            let attended = attention(&q, &k, &v, heads, &Visibility::All)?;
            let x = (&x + linear(&attended, &weights.projection.weight, None)?)?;
            let y = rms_norm(&x, Some(&weights.norm2.weight), weights.norm2.eps)?;
            let hidden = gelu(&linear(&y, &weights.expand.weight, None)?)?;
            Ok((&x + linear(&hidden, &weights.contract.weight, None)?)?)
        }
    };
    let (name, parts) = (format!("block {size}"), format!("block of single operators {size}"));
    table.call(&name, "forward", forward, fused);
    table.call(&name, "both", both, || {
        let op = fused();
        move || backward(&op()?.sum_all()?)
    });
    table.call(&parts, "forward", forward, single);
    table.call(&parts, "both", both, || {
        let op = single();
        move || backward(&op()?.sum_all()?)
    });
}

fn weights(dim: usize) -> BlockWeights {
    let norm = |seed| NormWeights { weight: var(seed, &[dim], 1.0), bias: None, centred: false, eps: 1e-5 };
    let map = |seed, out, inner| Affine { weight: var(seed, &[out, inner], 0.1), bias: None };
    BlockWeights {
        norm1: norm(22),
        queries: map(10, dim, dim),
        keys: map(11, dim, dim),
        values: map(12, dim, dim),
        projection: map(13, dim, dim),
        norm2: norm(23),
        expand: map(20, 4 * dim, dim),
        contract: map(21, dim, 4 * dim),
    }
}
