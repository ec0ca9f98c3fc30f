//! Generator and decoder against the reference: recorded inputs through recorded weights.
// clippy.toml frees test functions; helpers beside them need it said.
#![allow(clippy::unwrap_used)]

use candle_core::{DType, Device, Tensor};
use occlude_golden::{Tensors, assert_close, set, with_split_attention};
use occlude_heads::{Decoder, DecoderConfig, Generator, GeneratorConfig};
use occlude_kernels::{ParamStore, StateDict};
use occlude_masking::{Grid, Round, RoundConfig, RoundsConfig};
use occlude_random::Streams;
use occlude_vit::DropPath;
use serde_json::Value;

const ACTIVATIONS: f64 = 3e-5;
const STATE: f64 = 1e-5;
const DECODER: [&str; 6] = [
    "decoder_pos_embed",
    "mask_token_cls_pt",
    "norm_cls_pt.",
    "decoder_embed_cls_pt.",
    "decoder_blocks_cls_pt.",
    "decoder_norm_cls_pt.",
];

fn size(of: &Value, name: &str) -> usize {
    usize::try_from(of[name].as_u64().unwrap()).unwrap()
}

/// The model of the configuration with some values replaced.
fn changed(model: &Value, changes: &Value) -> Value {
    let mut model = model.clone();
    for (key, value) in changes.as_object().unwrap() {
        if model.get(key).is_some() {
            model[key] = value.clone();
        }
    }
    model
}

fn grid(model: &Value) -> Grid {
    let side = size(model, "img_size") / size(model, "patch_size");
    Grid::new(side, side)
}

/// Everything under `prefix`, without it, whose name then begins with one of `names`.
fn part(tensors: &Tensors, prefix: &str, names: &[&str]) -> StateDict {
    let strip = |(name, tensor): (&String, &Tensor)| Some((name.strip_prefix(prefix)?.to_owned(), tensor.clone()));
    let named = tensors.iter().filter_map(strip).filter(|(name, _)| names.iter().any(|start| name.starts_with(start)));
    with_split_attention(named.collect())
}

fn store() -> ParamStore {
    ParamStore::trainable(Streams::new(0), DType::F32, &Device::Cpu)
}

/// A generator with the weights under `prefix`, which must be all of its names.
fn generator(model: &Value, tensors: &Tensors, prefix: &str, out: usize) -> (ParamStore, Generator) {
    let config = GeneratorConfig {
        hidden_ratio: model["pred_mlp_ratio"].as_f64().unwrap(),
        kappa: model["kappa"].as_f64().unwrap(),
    };
    let mut store = store();
    let generator = Generator::new(&mut store.root(), &config.check(size(model, "embed_dim")).unwrap(), out).unwrap();
    store.load(&part(tensors, prefix, &[""])).unwrap();
    (store, generator)
}

fn decoder(model: &Value, tensors: &Tensors, prefix: &str) -> Decoder {
    let config = DecoderConfig {
        dim: size(model, "decoder_embed_dim"),
        depth: size(model, "decoder_depth"),
        heads: size(model, "decoder_num_heads"),
        ..DecoderConfig::default()
    };
    let mut store = store();
    let decoder = Decoder::new(
        &mut store.root(),
        &config.check(size(model, "embed_dim"), grid(model), false).unwrap(),
        "_cls_pt",
    )
    .unwrap();
    let state = part(tensors, prefix, &DECODER);
    assert_close("positions", store.get(DECODER[0]).unwrap(), &state[DECODER[0]], STATE);
    store.load(&state).unwrap();
    decoder
}

/// The recorded rounds.
fn rounds(model: &Value, masking: &Value, inputs: &Tensors) -> Vec<Round> {
    let list = |name: &str| masking[name].as_array().unwrap().iter().map(|ratio| ratio.as_f64().unwrap());
    let ratios = list("mask_ratio").zip(list("dec_mask_ratio"));
    let rounds = ratios.map(|(mask, decode_mask)| RoundConfig { mask, decode_mask }).collect();
    let rounds = RoundsConfig { rounds, complementary: true }.check(grid(model)).unwrap();
    let recorded = |round: usize| {
        let ids = inputs[&format!("r{round}.ids_shuffle")].flatten_all().unwrap().to_vec1::<i64>().unwrap();
        ids.into_iter().map(|id| u32::try_from(id).unwrap()).collect()
    };
    let count = rounds.counts().len();
    rounds.from_permutations((1..=count).map(recorded).collect()).unwrap()
}

#[test]
fn golden_moca_prototypes_and_running_statistics() {
    let set = set("moca");
    let files = ["state0", "step1_record", "state1"].map(|file| set.tensors(file));
    let ([Some(before), Some(record), Some(after)], Some(config)) = (files, set.config()) else { return };
    let model = &config["model"];
    let both = [("encoder_pred.", "img", "embed_dim"), ("decoder_pred.", "loc", "decoder_embed_dim")];
    for (prefix, loss, out) in both {
        let (store, mut generator) = generator(model, &before, prefix, size(model, out));
        let generated = generator.generate(&record["codebook_before"]).unwrap();
        let expected = &record[&format!("prototypes_{loss}")];
        assert_close(prefix, &generated.prototypes, expected, ACTIVATIONS);
        let features = if loss == "img" { "global_embedding" } else { "decoder_features" };
        for round in (1..).map_while(|round| Some((round, record.get(&format!("r{round}.{features}"))?))) {
            let got = generator.logits(round.1, expected).unwrap();
            assert_close("logits", &got, &record[&format!("r{}.logits_{loss}", round.0)], ACTIVATIONS);
        }
        generator.observe(&generated.statistics).unwrap();
        let state = store.state();
        let moved: Vec<_> = state.keys().filter(|name| name.contains("running") || name.contains("tracked")).collect();
        assert_eq!(moved.len(), 3);
        for name in moved {
            let expected = &after[&format!("{prefix}{name}")];
            assert_eq!(state[name].dtype(), expected.dtype());
            assert_close(name, &state[name], expected, STATE);
        }
    }
}

#[test]
fn golden_moca_prototypes_of_other_architectures() {
    let set = set("moca");
    let Some(config) = set.config() else { return };
    for (name, changes) in config["arch_variants"].as_object().unwrap() {
        let Some(record) = set.tensors(&format!("arch_{name}")) else { return };
        let model = changed(&config["model"], changes);
        for (prefix, loss, out) in
            [("state/encoder_pred.", "img", "embed_dim"), ("state/decoder_pred.", "loc", "decoder_embed_dim")]
        {
            let (_, generator) = generator(&model, &record, prefix, size(&model, out));
            let got = generator.generate(&record["codebook_before"]).unwrap().prototypes;
            assert_close(&format!("{name} {loss}"), &got, &record[&format!("prototypes_{loss}")], ACTIVATIONS);
        }
        // Their decoders have no recorded inputs: names, shapes and positions.
        decoder(&model, &record, "state/");
    }
}

#[test]
fn golden_moca_decoder() {
    let set = set("moca");
    let files = ["state0", "step1_inputs", "step1_record"].map(|file| set.tensors(file));
    let ([Some(state), Some(inputs), Some(record)], Some(config)) = (files, set.config()) else { return };
    let model = &config["model"];
    let decoder = decoder(model, &state, "");
    for (i, round) in rounds(model, &config["masking"], &inputs).iter().enumerate() {
        let of = |name: &str| &record[&format!("r{}.{name}", i + 1)];
        let tapped = of("student_intermediate_tokens");
        let visible = tapped.narrow(1, 1, tapped.dims()[1] - 1).unwrap();
        let leading = of("global_embedding");
        let tokens = decoder.tokens(leading, &visible, round).unwrap();
        assert_close("decoder input", &tokens, of("decoder_input"), ACTIVATIONS);
        let mut x = tokens;
        for (at, block) in decoder.blocks().iter().enumerate() {
            x = block.mix(&x, &mut DropPath::off()).unwrap();
            assert_close("decoder block", &x, of(&format!("decoder_block{at}_out")), ACTIVATIONS);
        }
        let features = decoder.forward(leading, &visible, round).unwrap();
        assert_close("decoder features", &features, of("decoder_features"), ACTIVATIONS);
        let ids: Vec<u32> = round.decoded().iter().map(|index| index % round.patches() as u32).collect();
        let expected = of("ids_decoded").flatten_all().unwrap().to_vec1::<i64>().unwrap();
        assert!(ids.iter().map(|id| i64::from(*id)).eq(expected));
    }
}
