//! The official MOCA layout: out, in, and what is tolerated.
// Helpers of tests may stop at the first surprise, as tests may.
#![allow(clippy::unwrap_used, clippy::panic)]

use candle_core::{DType, Device, Tensor};
use occlude_checkpoint::layouts::moca::{export, export_all, prefix, read, read_all, write, write_all};
use occlude_checkpoint::layouts::{Imported, Model};
use occlude_checkpoint::{Error, read_tensors, write_tensors};
use occlude_golden::{assert_close, set, with_split_attention};
use occlude_kernels::{ParamStore, StateDict};
use occlude_methods::moca::{Moca, MocaConfig};
use occlude_methods::{BatchSize, Method};
use occlude_random::Streams;
use occlude_settings::Ruler;
use occlude_vit::{DropPath, PlainVit, PlainVitConfig};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

const MODELS: [Model; 2] = [Model::Average, Model::Student];
const QKV: &str = "blocks.0.attn.qkv.weight";
const WORDS: &str = "bow_extractor.bow_extractor.0";
const NORM: &str = "encoder_pred.layers_w.0.generator.b0_bn";

/// A few official names with the shapes of an encoder of width 2.
fn toy_shapes() -> BTreeMap<String, (Vec<usize>, DType)> {
    let mut shapes = BTreeMap::new();
    for model in MODELS {
        for (name, shape) in [("cls_token", vec![1, 1, 2]), (QKV, vec![6, 2]), ("blocks.0.attn.qkv.bias", vec![6])] {
            shapes.insert(format!("{}{name}", prefix(model)), (shape, DType::F32));
        }
    }
    shapes.insert(format!("{WORDS}._embedding"), (vec![3, 2], DType::F32));
    shapes.insert(format!("{WORDS}._embedding_ptr"), (vec![1], DType::I64));
    shapes.insert(format!("{NORM}.num_batches_tracked"), (vec![], DType::I64));
    shapes
}

/// Official tensors: the numbers `first`, `first + 1`, ... in the order of the names.
fn official(first: f32) -> StateDict {
    let mut next = first;
    let tensor = |(name, (shape, dtype)): (String, (Vec<usize>, DType))| {
        let count = shape.iter().product::<usize>();
        let values: Vec<f32> = (0..count).map(|i| next + i as f32).collect();
        next += count as f32;
        (name, Tensor::from_vec(values, shape, &Device::Cpu).unwrap().to_dtype(dtype).unwrap())
    };
    toy_shapes().into_iter().map(tensor).collect()
}

/// The same as a method has them.
fn training_state(first: f32) -> StateDict {
    with_split_attention(official(first))
}

fn values(tensor: &Tensor) -> Vec<f64> {
    tensor.flatten_all().unwrap().to_dtype(DType::F64).unwrap().to_vec1().unwrap()
}

/// Same names, kinds of numbers, shapes and bits.
fn assert_equal(got: &StateDict, expected: &StateDict) {
    assert_eq!(got.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
    let bits = |tensor: &Tensor| values(tensor).into_iter().map(f64::to_bits).collect::<Vec<_>>();
    for (name, tensor) in expected {
        let found = &got[name];
        assert_eq!((found.dtype(), found.dims()), (tensor.dtype(), tensor.dims()), "{name}");
        assert!(bits(found) == bits(tensor), "{name}");
    }
}

fn under(state: &StateDict, prefix: &str) -> StateDict {
    let strip = |(name, tensor): (&String, &Tensor)| Some((name.strip_prefix(prefix)?.to_owned(), tensor.clone()));
    state.iter().filter_map(strip).collect()
}

fn zeros_like(state: &StateDict) -> StateDict {
    state.iter().map(|(name, tensor)| (name.clone(), tensor.zeros_like().unwrap())).collect()
}

fn assert_whole(imported: &Imported) {
    assert!(imported.missing.is_empty() && imported.ignored.is_empty(), "{imported:?}");
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

#[test]
fn queries_keys_and_values_lie_below_each_other_in_a_file() {
    assert_equal(&export_all(&training_state(1.0)).unwrap(), &official(1.0));
    let mut torn = training_state(1.0);
    torn.remove("encoder.blocks.0.attn.k.bias");
    let error = export_all(&torn).unwrap_err().to_string();
    assert!(error.contains("encoder.blocks.0.attn.k.bias is missing"), "{error}");
    assert!(export_all(&under(&training_state(1.0), "encoder.")).is_err(), "no teacher");
}

#[test]
fn a_training_state_goes_each_tensor_to_its_place() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("all.safetensors");
    write_all(&path, &training_state(1.0)).unwrap();
    let imported = read_all(&path, &training_state(500.0)).unwrap();
    assert_whole(&imported);
    assert_equal(&imported.state, &training_state(1.0));
}

#[test]
fn either_encoder_of_a_training_state_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("all.safetensors");
    write_all(&path, &training_state(1.0)).unwrap();
    for model in MODELS {
        let imported = read(&path, &training_state(500.0), model).unwrap();
        assert!(imported.missing.is_empty());
        assert_eq!(imported.ignored.len(), official(1.0).len() - 3, "everything but one encoder");
        let mut expected = training_state(500.0);
        let own = training_state(1.0).into_iter().filter(|(name, _)| name.starts_with(prefix(model)));
        expected.extend(own);
        assert_equal(&imported.state, &expected);
    }
}

#[test]
fn an_exported_encoder_is_read_into_either_or_both() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("teacher.safetensors");
    for dtype in [DType::F32, DType::BF16] {
        write(&path, &training_state(1.0), Model::Average, dtype).unwrap();
        let file = read_tensors(&path, &Device::Cpu).unwrap();
        assert_eq!(file.keys().collect::<Vec<_>>(), ["blocks.0.attn.qkv.bias", QKV, "cls_token"]);
        assert!(file.values().all(|tensor| tensor.dtype() == dtype));
        let teacher = under(&training_state(1.0), prefix(Model::Average)); // bf16 holds these numbers exactly
        for model in MODELS {
            let imported = read(&path, &training_state(500.0), model).unwrap();
            assert_whole(&imported);
            assert_equal(&under(&imported.state, prefix(model)), &teacher);
        }
        let imported = read_all(&path, &training_state(500.0)).unwrap();
        for model in MODELS {
            assert_equal(&under(&imported.state, prefix(model)), &teacher);
        }
        let rest =
            [format!("{WORDS}._embedding"), format!("{WORDS}._embedding_ptr"), format!("{NORM}.num_batches_tracked")];
        assert_eq!(imported.missing, rest);
        assert!(imported.ignored.is_empty());
    }
}

#[test]
fn what_is_missing_and_what_is_left_is_reported() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.safetensors");
    let mut file = official(1.0);
    file.remove("encoder.cls_token");
    file.insert("another_head.weight".to_owned(), Tensor::zeros(1, DType::F32, &Device::Cpu).unwrap());
    write_tensors(&path, &file).unwrap();
    let fresh = training_state(500.0);
    let imported = read_all(&path, &fresh).unwrap();
    assert_eq!(imported.missing, ["encoder.cls_token"]);
    assert_eq!(imported.ignored, ["another_head.weight"]);
    let mut expected = training_state(1.0);
    expected.insert("encoder.cls_token".to_owned(), fresh["encoder.cls_token"].clone());
    assert_equal(&imported.state, &expected);
}

#[test]
fn another_shape_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.safetensors");
    for shape in [vec![6, 3], vec![5, 2], vec![12]] {
        let mut file = official(1.0);
        let name = format!("encoder_teacher.{QKV}");
        file.insert(name.clone(), Tensor::zeros(shape.as_slice(), DType::F32, &Device::Cpu).unwrap());
        write_tensors(&path, &file).unwrap();
        for refused in [read_all(&path, &training_state(1.0)), read(&path, &training_state(1.0), Model::Average)] {
            let Err(Error::Shape { path: named, tensor, found, needed }) = refused else { panic!("{refused:?}") };
            assert_eq!((named, tensor, found, needed), (path.clone(), name.clone(), shape.clone(), vec![6, 2]));
        }
        // The other encoder is whole.
        assert!(read(&path, &training_state(1.0), Model::Student).is_ok());
    }
}

#[test]
fn a_file_without_the_encoder_asked_for_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.safetensors");
    let mut file = official(1.0);
    file.retain(|name, _| name.starts_with("encoder."));
    write_tensors(&path, &file).unwrap();
    let refused = read(&path, &training_state(1.0), Model::Average).unwrap_err();
    assert!(matches!(&refused, Error::Mismatch { .. }) && refused.to_string().contains("MOCA"), "{refused}");
    // Whoever wants a start for both takes the one there is.
    let imported = read_all(&path, &training_state(500.0)).unwrap();
    let student = under(&training_state(1.0), "encoder.");
    for model in MODELS {
        assert_equal(&under(&imported.state, prefix(model)), &student);
    }
}

/// `moca_training.pth` is a training checkpoint in PyTorch's zip form: [`official`] from 1 at `model`, beside moments of an
/// optimizer, an epoch, a namespace of arguments and a scaler. `moca_encoder.pt` has its `encoder_teacher.*` without the
/// prefix at `state_dict`.
#[test]
fn pytorch_checkpoints_are_read() {
    let imported = read_all(&fixture("moca_training.pth"), &training_state(500.0)).unwrap();
    assert_whole(&imported);
    assert_equal(&imported.state, &training_state(1.0));
    let imported = read(&fixture("moca_encoder.pt"), &training_state(500.0), Model::Student).unwrap();
    assert_whole(&imported);
    assert_equal(&under(&imported.state, "encoder."), &under(&training_state(1.0), "encoder_teacher."));
}

#[test]
fn a_file_that_was_cut_off_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("all.safetensors");
    write_all(&path, &training_state(1.0)).unwrap();
    for (whole, name) in [(path, "cut.safetensors"), (fixture("moca_training.pth"), "cut.pth")] {
        let bytes = std::fs::read(&whole).unwrap();
        let cut = folder.path().join(name);
        for length in [0, 4, bytes.len() / 2, bytes.len() - 1] {
            std::fs::write(&cut, &bytes[..length]).unwrap();
            let refused = read_all(&cut, &training_state(1.0)).unwrap_err();
            assert!(matches!(&refused, Error::Damaged { path, .. } if *path == cut), "{name}, {length}: {refused}");
        }
    }
    let absent = folder.path().join("absent.pth");
    assert!(matches!(read_all(&absent, &training_state(1.0)), Err(Error::Io { path, .. }) if path == absent));
}

#[test]
fn a_method_takes_up_what_another_put_out() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("all.safetensors");
    let mut config = MocaConfig { intermediate: Some(1), ..MocaConfig::default() };
    (config.encoder.dim, config.encoder.depth, config.encoder.heads, config.encoder.patch) = (16, 2, 2, 4);
    (config.codebook.words, config.codebook.new_words_per_step, config.codebook.border) = (8, 2, 1);
    (config.decoder.depth, config.decoder.heads) = (1, 2);
    let (batch, ruler) = (BatchSize { micro: 4, accumulate: 1 }, Ruler { steps_per_epoch: 10.0, total_steps: 1000 });
    for (lambda, width) in [(0.5, 12), (0.5, 16), (1.0, 12)] {
        (config.lambda, config.decoder.dim) = (lambda, width);
        let settings = config.check(16, batch, ruler).unwrap();
        let new = |seed| Moca::new(&settings, Streams::new(seed), DType::F32, &Device::Cpu).unwrap();
        let (one, mut other) = (new(1), new(2));
        write_all(&path, &one.state()).unwrap();
        let file = read_tensors(&path, &Device::Cpu).unwrap();
        assert!(file.keys().all(|name| !name.contains(".attn.q.")));
        assert_eq!(file.contains_key("decoder_pred.layers_w.0.skip.weight"), lambda < 1.0 && width != 16);
        let imported = read_all(&path, &other.state()).unwrap();
        assert_whole(&imported);
        other.load(&imported.state).unwrap();
        assert_equal(&other.state(), &one.state());
    }
}

/// Names, shapes and kinds of numbers of section 15 of the specification, for the sizes of a reference set.
fn in_the_specification(config: &Value) -> BTreeMap<String, (Vec<usize>, DType)> {
    let (model, notes) = (&config["model"], &config["model_notes"]);
    let size = |name: &str| usize::try_from(model[name].as_u64().unwrap()).unwrap();
    let (dim, narrow, words, patch) =
        (size("embed_dim"), size("decoder_embed_dim"), size("num_words"), size("patch_size"));
    let tokens = 1 + (size("img_size") / patch).pow(2);
    let times = |dim: usize, ratio: &Value| (dim as f64 * ratio.as_f64().unwrap()) as usize;
    let hidden = times(dim, &model["pred_mlp_ratio"]);
    let mut all = BTreeMap::new();
    let mut has = |name: String, shape: &[usize]| all.insert(name, (shape.to_vec(), DType::F32));
    let mut stack = |prefix: &str, depth: usize, dim: usize| {
        let mlp = times(dim, &notes["mlp_ratio"]);
        for i in 0..depth {
            for (part, out, into) in
                [("attn.qkv", 3 * dim, dim), ("attn.proj", dim, dim), ("mlp.fc1", mlp, dim), ("mlp.fc2", dim, mlp)]
            {
                has(format!("{prefix}.{i}.{part}.weight"), &[out, into]);
                has(format!("{prefix}.{i}.{part}.bias"), &[out]);
            }
            for part in ["norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias"] {
                has(format!("{prefix}.{i}.{part}"), &[dim]);
            }
        }
    };
    for encoder in ["encoder", "encoder_teacher"] {
        stack(&format!("{encoder}.blocks"), size("depth"), dim);
    }
    stack("decoder_blocks_cls_pt", size("decoder_depth"), narrow);
    for encoder in ["encoder", "encoder_teacher"] {
        has(format!("{encoder}.cls_token"), &[1, 1, dim]);
        has(format!("{encoder}.pos_embed"), &[1, tokens, dim]);
        has(format!("{encoder}.patch_embed.proj.weight"), &[dim, 3, patch, patch]);
        for vector in ["patch_embed.proj.bias", "norm.weight", "norm.bias"] {
            has(format!("{encoder}.{vector}"), &[dim]);
        }
    }
    has("decoder_pos_embed".into(), &[1, tokens, narrow]);
    has("mask_token_cls_pt".into(), &[1, 1, narrow]);
    has("decoder_embed_cls_pt.weight".into(), &[narrow, dim]);
    has("decoder_embed_cls_pt.bias".into(), &[narrow]);
    for part in ["weight", "bias"] {
        has(format!("norm_cls_pt.{part}"), &[dim]);
        has(format!("decoder_norm_cls_pt.{part}"), &[narrow]);
    }
    for (generator, out) in [("encoder_pred", dim), ("decoder_pred", narrow)] {
        has(format!("{generator}.scale"), &[1]);
        let inner = format!("{generator}.layers_w.0.generator");
        has(format!("{inner}.b0_fc.weight"), &[hidden, dim]);
        for part in ["weight", "bias", "running_mean", "running_var"] {
            has(format!("{inner}.b0_bn.{part}"), &[hidden]);
        }
        has(format!("{inner}.b0_last_layer.weight"), &[out, hidden]);
        has(format!("{inner}.b0_last_layer.bias"), &[out]);
        if out != dim {
            has(format!("{generator}.layers_w.0.skip.weight"), &[out, dim]);
            has(format!("{generator}.layers_w.0.skip.bias"), &[out]);
        }
    }
    has(format!("{WORDS}._embedding"), &[words, dim]);
    for number in ["_track_num_batches", "_dist_norm", "_dist_norm_prev"] {
        has(format!("{WORDS}.{number}"), &[1]);
    }
    all.insert(format!("{WORDS}._embedding_ptr"), (vec![1], DType::I64));
    for generator in ["encoder_pred", "decoder_pred"] {
        let count = format!("{generator}.layers_w.0.generator.b0_bn.num_batches_tracked");
        all.insert(count, (vec![], DType::I64));
    }
    all
}

#[test]
fn golden_moca_state_makes_the_round_trip_bit_for_bit() {
    let set = set("moca");
    let (Some(recorded), Some(config)) = (set.tensors("state0"), set.config()) else { return };
    let ours = with_split_attention(recorded.clone());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("all.safetensors");
    write_all(&path, &ours).unwrap();
    let file = read_tensors(&path, &Device::Cpu).unwrap();
    assert_equal(&file, &recorded);
    let written: BTreeMap<_, _> =
        file.iter().map(|(name, tensor)| (name.clone(), (tensor.dims().to_vec(), tensor.dtype()))).collect();
    assert_eq!(written, in_the_specification(&config));
    let imported = read_all(&path, &zeros_like(&ours)).unwrap();
    assert_whole(&imported);
    assert_equal(&imported.state, &ours);
}

#[test]
fn golden_moca_exported_teacher_is_the_evaluated_encoder() {
    let set = set("moca");
    let (Some(recorded), Some(reference), Some(config)) = (set.tensors("state1"), set.tensors("evalvit"), set.config())
    else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("teacher.safetensors");
    let ours = with_split_attention(recorded.clone());
    write(&path, &ours, Model::default(), DType::F32).unwrap();
    let file = read_tensors(&path, &Device::Cpu).unwrap();
    assert_equal(&file, &under(&recorded, "encoder_teacher."));
    assert_equal(&export(&ours, Model::default(), DType::F32).unwrap(), &file);

    let size = |name: &str| usize::try_from(config["model"][name].as_u64().unwrap()).unwrap();
    let encoder = PlainVitConfig {
        dim: size("embed_dim"),
        depth: size("depth"),
        heads: size("num_heads"),
        patch: size("patch_size"),
        mlp_ratio: config["model_notes"]["mlp_ratio"].as_f64().unwrap(),
        recompute: false,
    };
    let mut store = ParamStore::frozen(Streams::new(0), DType::F32, &Device::Cpu);
    let settings = encoder.check(size("img_size")).unwrap();
    let vit = PlainVit::new(&mut store.root().sub("encoder_teacher"), &settings).unwrap();
    let imported = read(&path, &store.state(), Model::default()).unwrap();
    assert_whole(&imported);
    store.load(&imported.state).unwrap();
    let seen = vit.forward(&reference["x"], None, &[], &mut DropPath::off()).unwrap();
    assert_close("tokens", &seen.tokens, &reference["tokens"], 3e-5);
}
