//! The decoder of segments: gradients, mixtures, first values, refusals, threads.

use super::{SegmentDecoder, SegmentDecoderConfig, SegmentDecoderSettings, SkipInit};
use candle_core::{DType, Device, Tensor};
use occlude_golden::relative_difference;
use occlude_kernels::check::{check_parameters, same_for_any_threads, sample, stir};
use occlude_kernels::{ParamStore, Role, backward};
use occlude_random::Streams;
use occlude_vit::{PlainVitConfig, Sights};

/// Three blocks of width 12 over 2 x 3 patches.
const BLOCKS: usize = 3;
const RANKS: [u32; 12] = [1, 0, 2, 1, 0, 2, 0, 0, 1, 2, 3, 1];

fn settings(dim: usize, skips: Option<SkipInit>) -> SegmentDecoderSettings {
    let encoder = PlainVitConfig { dim: 12, depth: BLOCKS, heads: 2, patch: 2, ..PlainVitConfig::default() };
    // Six patches of a square image: no such grid, so the settings of one are changed.
    let settings = SegmentDecoderConfig { dim, depth: 2, heads: 2 }.check(&encoder.check(4).unwrap(), skips).unwrap();
    SegmentDecoderSettings { grid: occlude_masking::Grid::new(2, 3), ..settings }
}

fn decoder(dim: usize, skips: Option<SkipInit>, dtype: DType) -> (ParamStore, SegmentDecoder) {
    let mut store = ParamStore::trainable(Streams::new(4), dtype, &Device::Cpu);
    let decoder = SegmentDecoder::new(&mut store.root(), &settings(dim, skips)).unwrap();
    (store, decoder)
}

/// Outputs of the encoder's blocks.
fn seen(blocks: usize) -> Vec<Tensor> {
    (0..blocks as u64).map(|block| sample(20 + block, (2, 6, 12)).unwrap()).collect()
}

#[test]
fn gradients_are_those_of_differences() {
    for (dim, skips) in [(8, None), (12, None), (8, Some(SkipInit::Last)), (12, Some(SkipInit::Uniform))] {
        let (store, decoder) = decoder(dim, skips, DType::F64);
        stir(&store, 0.3).unwrap();
        let (seen, sights) = (seen(if skips.is_some() { BLOCKS } else { 1 }), Sights::of(&RANKS, 6));
        let loss = || Ok((decoder.forward(&seen, &sights)? * sample(5, (2, 6, 12))?)?.sum_all()?);
        check_parameters(&store, |name| name.ends_with("k.bias"), loss).unwrap();
    }
}

#[test]
fn a_layer_reads_its_own_mixture_of_the_blocks() {
    let (store, decoder) = decoder(12, Some(SkipInit::Last), DType::F64);
    stir(&store, 0.3).unwrap();
    let (seen, weights) = (seen(BLOCKS), decoder.skips().unwrap().to_vec2::<f64>().unwrap());
    for (memory, weights) in decoder.memory(&seen).unwrap().iter().zip(weights) {
        let terms = seen.iter().zip(weights).map(|(block, weight)| (block * weight).unwrap());
        let expected = terms.reduce(|a, b| (a + b).unwrap()).unwrap();
        assert!(relative_difference(memory, &expected) < 1e-12);
    }
}

#[test]
fn skips_begin_with_the_last_block_or_with_all() {
    let first = |init| decoder(8, Some(init), DType::F64).1.skips().unwrap().to_vec2::<f64>().unwrap();
    assert_eq!(first(SkipInit::Last), [[0.0, 0.0, 1.0], [0.0, 0.0, 1.0]]);
    assert_eq!(first(SkipInit::Uniform), [[1.0 / 3.0; 3], [1.0 / 3.0; 3]]);
    // So training begins without skips.
    let (with, without) = (decoder(8, Some(SkipInit::Last), DType::F64), decoder(8, None, DType::F64));
    let (seen, sights) = (seen(BLOCKS), Sights::of(&RANKS, 6));
    let last = &seen[BLOCKS - 1..];
    let (a, b) = (with.1.forward(&seen, &sights).unwrap(), without.1.forward(last, &sights).unwrap());
    assert!(relative_difference(&a, &b) < 1e-12);
}

#[test]
fn names_and_first_values() {
    let (store, _) = decoder(8, Some(SkipInit::Last), DType::F32);
    for name in ["decoder_pos_embed", "skip.weight", "decoder_embed.bias", "decoder_norm.bias", "decoder_pred.weight"] {
        assert!(store.get(name).is_some(), "{name}");
    }
    let layer =
        ["norm1", "self_attn.q", "self_attn.proj", "norm2", "cross_attn.k", "cross_attn.proj", "norm3", "mlp.fc2"];
    for name in layer {
        assert!(store.get(&format!("decoder_blocks.1.{name}.weight")).is_some(), "{name}");
    }
    for param in store.params() {
        let Role::Trained(factors) = param.role else {
            assert_eq!(param.name, "decoder_pos_embed");
            continue;
        };
        let decayed = param.tensor.rank() > 1 && param.name != "skip.weight";
        assert_eq!(factors.wd > 0.0, decayed, "{}", param.name);
        // Fused matrices are drawn whole: three, two or one of 8 x 8.
        let together = match param.name.as_str() {
            name if name.contains("self_attn.") && !name.contains("proj") => 3,
            name if name.contains("cross_attn.k.") || name.contains("cross_attn.v.") => 2,
            name if name.contains("cross_attn.q.") => 1,
            _ => continue,
        };
        let largest = param.tensor.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
        let bound = if param.tensor.rank() > 1 { (6.0 / (8 * together + 8) as f32).sqrt() } else { 0.0 };
        assert!(largest <= bound && largest >= 0.8 * bound, "{}: {largest} of {bound}", param.name);
    }
    let (same_width, _) = decoder(12, None, DType::F32);
    assert!(same_width.get("decoder_embed.weight").is_none() && same_width.get("skip.weight").is_none());
}

#[test]
fn what_does_not_fit_is_refused() {
    let sights = Sights::of(&RANKS, 6);
    let refused =
        |skips, blocks| decoder(8, skips, DType::F64).1.forward(&seen(blocks), &sights).unwrap_err().to_string();
    assert!(refused(None, 2).contains("reads one block, got 2"));
    assert!(refused(Some(SkipInit::Last), 2).contains("reads 3 blocks, got 2"));
    let (_, decoder) = decoder(8, None, DType::F64);
    assert!(decoder.forward(&seen(1), &Sights::of(&RANKS[..10], 5)).is_err(), "ranks of other patches");
    assert!(decoder.forward(&[sample(1, (2, 5, 12)).unwrap()], &sights).is_err(), "other patches");
    assert!(decoder.forward(&[sample(1, (2, 6, 8)).unwrap()], &sights).is_err(), "another width");
}

#[test]
fn any_number_of_threads_gives_equal_bits() {
    let single = |tensor: Tensor| tensor.to_dtype(DType::F32).unwrap();
    same_for_any_threads(|| {
        let (store, decoder) = decoder(8, Some(SkipInit::Uniform), DType::F32);
        let seen: Vec<Tensor> = seen(BLOCKS).into_iter().map(single).collect();
        let said = decoder.forward(&seen, &Sights::of(&RANKS, 6))?;
        let gradients = backward(&said.sqr()?.mean_all()?)?;
        let each = store.trained().map(|param| gradients.get(&param.tensor).cloned());
        Ok(each.chain([Some(said)]).collect::<Option<Vec<_>>>().unwrap())
    })
    .unwrap();
}
