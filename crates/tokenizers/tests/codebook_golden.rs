//! The online codebook against the reference: one step from recorded tokens and draws.
// clippy.toml frees test functions; helpers beside them need it said.
#![allow(clippy::unwrap_used)]

use candle_core::{DType, Device, Tensor};
use occlude_golden::{Tensors, assert_close, set};
use occlude_kernels::{ParamStore, StateDict};
use occlude_masking::Grid;
use occlude_random::Streams;
use occlude_tokenizers::{Choice, Chosen, CodebookConfig, OnlineCodebook, Place};
use serde_json::Value;

const PREFIX: &str = "bow_extractor.bow_extractor.0.";
const ACTIVATIONS: f64 = 3e-5;
const STATE: f64 = 1e-5;

/// The tensors whose names begin with `prefix`, without it.
fn under(tensors: &Tensors, prefix: &str) -> StateDict {
    let strip = |(name, tensor): (&String, &Tensor)| Some((name.strip_prefix(prefix)?.to_owned(), tensor.clone()));
    tensors.iter().filter_map(strip).collect()
}

fn integers(tensor: &Tensor) -> Vec<u32> {
    tensor.flatten_all().unwrap().to_vec1::<i64>().unwrap().into_iter().map(|v| u32::try_from(v).unwrap()).collect()
}

fn size(model: &Value, name: &str) -> usize {
    usize::try_from(model[name].as_u64().unwrap()).unwrap()
}

fn codebook(model: &Value, state: &StateDict, batch: usize) -> (ParamStore, OnlineCodebook) {
    let side = size(model, "img_size") / size(model, "patch_size");
    let config = CodebookConfig {
        words: size(model, "num_words"),
        new_words_per_step: size(model, "num_new_words"),
        border: size(model, "skip_offset"),
        inverse_temperature: model["inv_delta"].as_f64().unwrap(),
        ..CodebookConfig::default()
    };
    let settings = config.check(Grid::new(side, side), batch).unwrap();
    let mut store = ParamStore::frozen(Streams::new(0), DType::F32, &Device::Cpu);
    let codebook = OnlineCodebook::new(&mut store.root(), &settings, size(model, "embed_dim")).unwrap();
    store.load(state).unwrap();
    (store, codebook)
}

/// Tokens of one view without the class token.
fn patches(tokens: &Tensor) -> Tensor {
    tokens.narrow(1, 1, tokens.dims()[1] - 1).unwrap()
}

fn choice(inputs: &StateDict) -> Choice {
    let (images, tokens) = (integers(&inputs["upd_image_idx"]), integers(&inputs["upd_token_idx"]));
    // The recorded index counts the class token.
    let place = |(image, token): (u32, u32)| Place { image, patch: token - 1 };
    let words = Chosen::Tokens(images.into_iter().zip(tokens).map(place).collect());
    Choice { view: integers(&inputs["upd_view"])[0] as usize, words }
}

/// One step of the codebook against what was recorded of it.
fn step(model: &Value, before: &StateDict, inputs: &StateDict, record: &StateDict, after: &StateDict) {
    let views = [patches(&record["teacher_tokens_x1"]), patches(&record["teacher_tokens_x2"])];
    let (store, mut codebook) = codebook(model, before, views[0].dims()[0]);
    for (view, tokens) in views.iter().enumerate() {
        let of = |name: &str| &record[&format!("{name}{}", view + 1)];
        let single = |value: f64| Tensor::new(&[value], &Device::Cpu).unwrap();
        let beta = codebook.inverse_temperature().unwrap();
        assert_close("inverse temperature", &single(beta), of("inv_temp_used_v"), STATE);
        let got = codebook.assign(tokens).unwrap();
        assert_close("assignments", &got.targets, of("codes_x"), ACTIVATIONS);
        assert_close("image targets", &codebook.image_targets(&got.targets).unwrap(), of("bow_x"), ACTIVATIONS);
        let distance = got.distance(0..tokens.dims()[0]);
        assert_close("distance", &single(distance), of("msd_v"), ACTIVATIONS);
        codebook.observe(distance).unwrap();
        assert_close("running distance", &single(codebook.distance().unwrap()), of("dist_norm_after_v"), STATE);
    }
    let choice = choice(inputs);
    let new = codebook.new_words(&choice, &views[choice.view]).unwrap();
    assert_close("new words", &new, &record["new_words"], ACTIVATIONS);
    codebook.push(&new).unwrap();
    let state = store.state();
    assert!(state.keys().eq(after.keys()));
    for (name, tensor) in &state {
        assert_eq!(tensor.dtype(), after[name].dtype(), "{name}");
        assert_close(name, tensor, &after[name], STATE);
    }
}

#[test]
fn golden_moca_codebook_step() {
    let set = set("moca");
    let files = ["state0", "step1_inputs", "step1_record", "state1"].map(|file| set.tensors(file));
    let ([Some(state0), Some(inputs), Some(record), Some(state1)], Some(config)) = (files, set.config()) else {
        return;
    };
    let all = |tensors: &Tensors| under(tensors, "");
    let after = under(&state1, PREFIX);
    assert_eq!(after.len(), 5);
    step(&config["model"], &under(&state0, PREFIX), &all(&inputs), &all(&record), &after);
}

/// Other architectures have no recorded tokens: image targets from recorded assignments, and the recorded words.
#[test]
fn golden_moca_codebook_of_other_architectures() {
    let set = set("moca");
    let Some(config) = set.config() else { return };
    for (name, changes) in config["arch_variants"].as_object().unwrap() {
        let Some(record) = set.tensors(&format!("arch_{name}")) else { return };
        let mut model = config["model"].clone();
        for (key, value) in changes.as_object().unwrap() {
            model[key] = value.clone();
        }
        let mut before = under(&record, &format!("state/{PREFIX}"));
        before.insert("_dist_norm".into(), record["dist_norm_after"].clone());
        let (store, mut codebook) = codebook(&model, &before, record["codes_x1"].dims()[0]);
        for view in ["x1", "x2"] {
            let got = codebook.image_targets(&record[&format!("codes_{view}")]).unwrap();
            assert_close(name, &got, &record[&format!("bow_{view}")], ACTIVATIONS);
        }
        codebook.push(&record["new_words"]).unwrap();
        let after = store.state();
        assert_close(name, &after["_embedding"], &record["codebook_after"], STATE);
        assert_eq!(integers(&after["_embedding_ptr"]), integers(&record["codebook_ptr_after"]), "{name}");
        assert_close(name, &after["_dist_norm_prev"], &record["dist_norm_prev_after"], STATE);
    }
}
