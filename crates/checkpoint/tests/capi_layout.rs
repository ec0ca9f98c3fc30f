//! The official CAPI layout: out, in, and what is tolerated.
// Helpers of tests may stop at the first surprise, as tests may.
#![allow(clippy::unwrap_used, clippy::panic)]

use candle_core::{DType, Device, Tensor};
use occlude_checkpoint::layouts::Model;
use occlude_checkpoint::layouts::capi::{Scope, export, prefix, read, write};
use occlude_checkpoint::{Error, read_tensors, write_tensors};
use occlude_kernels::StateDict;
use std::path::PathBuf;

const NAMES: [&str; 4] = [
    "backbone.mask_token",
    "backbone.encoder.blocks.0.residual1.fn.q_proj.weight",
    "backbone.encoder.blocks.0.residual1.fn.rope.freqs",
    "head.last_layer.weight_g",
];

/// A training state: student, average, and the clustering head that no export contains.
fn training_state(offset: f32) -> StateDict {
    let tensor = |index: usize, sign: f32| {
        // Values that bf16 holds exactly.
        let values: Vec<f32> = (0..6).map(|i| sign * (offset + index as f32 + i as f32 * 0.25)).collect();
        Tensor::from_vec(values, (2, 3), &Device::Cpu).unwrap()
    };
    let mut state = StateDict::new();
    for (index, name) in NAMES.iter().enumerate() {
        state.insert(format!("student.{name}"), tensor(index, 1.0));
        state.insert(format!("student_ema.{name}"), tensor(index, -1.0));
    }
    state.insert("teacher.head.layer.weight".to_owned(), tensor(9, 1.0));
    state
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn an_export_read_back_gives_the_same_model() {
    let folder = tempfile::tempdir().unwrap();
    for (model, dtype) in [(Model::Average, DType::F32), (Model::Student, DType::F32), (Model::Average, DType::BF16)] {
        let path = folder.path().join("official.safetensors");
        let trained = training_state(1.0);
        write(&path, &trained, model, dtype).unwrap();
        let file = read_tensors(&path, &Device::Cpu).unwrap();
        let mut expected = NAMES.map(str::to_owned);
        expected.sort();
        assert_eq!(file.keys().cloned().collect::<Vec<_>>(), expected);
        assert!(file.values().all(|tensor| tensor.dtype() == dtype));

        let fresh = training_state(5.0);
        let imported = read(&path, &fresh, model, Scope::All).unwrap();
        assert!(imported.missing.is_empty() && imported.ignored.is_empty());
        for (name, tensor) in &imported.state {
            let source = if name.starts_with(prefix(model)) { &trained[name] } else { &fresh[name] };
            assert_eq!(values(tensor), values(source), "{name}");
            assert_eq!(tensor.dtype(), DType::F32, "{name} keeps the dtype of the method");
        }
    }
}

#[test]
fn evaluation_reads_the_backbone_and_reports_the_rest() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("official.safetensors");
    let mut file = export(&training_state(1.0), Model::Average, DType::F32).unwrap();
    file.remove("backbone.mask_token");
    file.insert("backbone.extra".to_owned(), Tensor::zeros(1, DType::F32, &Device::Cpu).unwrap());
    write_tensors(&path, &file).unwrap();
    let fresh = training_state(5.0);
    let imported = read(&path, &fresh, Model::Average, Scope::Backbone).unwrap();
    assert_eq!(imported.missing, ["backbone.mask_token"]);
    assert_eq!(imported.ignored, ["backbone.extra", "head.last_layer.weight_g"]);
    let kept = "student_ema.backbone.mask_token";
    assert_eq!(values(&imported.state[kept]), values(&fresh[kept]));
    // Frequency tables come from the file, never recomputed.
    let table = "student_ema.backbone.encoder.blocks.0.residual1.fn.rope.freqs";
    assert_eq!(values(&imported.state[table]), values(&training_state(1.0)[table]));
}

#[test]
fn another_shape_and_another_layout_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.safetensors");
    let mut file = export(&training_state(1.0), Model::Average, DType::F32).unwrap();
    file.insert(NAMES[0].to_owned(), Tensor::zeros((3, 2), DType::F32, &Device::Cpu).unwrap());
    write_tensors(&path, &file).unwrap();
    let refused = read(&path, &training_state(1.0), Model::Average, Scope::Backbone).unwrap_err().to_string();
    assert!(refused.contains("backbone.mask_token has shape [3, 2], the config needs [2, 3]"), "{refused}");

    let other: StateDict = [("blocks.0.weight".to_owned(), Tensor::zeros(1, DType::F32, &Device::Cpu).unwrap())].into();
    write_tensors(&path, &other).unwrap();
    assert!(matches!(read(&path, &training_state(1.0), Model::Average, Scope::Backbone), Err(Error::Mismatch { .. })));
    assert!(export(&other, Model::Student, DType::F32).is_err());
}

/// Names of section 14 of the specification, block numbers aside.
fn in_the_specification(name: &str) -> bool {
    let number = |part: &str| if part.bytes().all(|byte| byte.is_ascii_digit()) { "N".into() } else { part.to_owned() };
    let general = name.split('.').map(number).collect::<Vec<String>>().join(".");
    let block = general
        .strip_prefix("backbone.encoder.blocks.N.")
        .or_else(|| general.strip_prefix("backbone.decoder.blocks.N."));
    match block {
        Some(rest) => matches!(
            rest,
            "residual1.norm.weight"
                | "residual1.fn.q_proj.weight"
                | "residual1.fn.k_proj.weight"
                | "residual1.fn.v_proj.weight"
                | "residual1.fn.proj.weight"
                | "residual1.fn.rope.freqs"
                | "residual2.norm.weight"
                | "residual2.fn.fc1.weight"
                | "residual2.fn.fc2.weight"
        ),
        None => matches!(
            general.as_str(),
            "backbone.mask_token"
                | "backbone.registers"
                | "backbone.patch_embed.weight"
                | "backbone.patch_embed.bias"
                | "head.last_layer.weight_g"
                | "head.last_layer.weight_v"
        ),
    }
}

#[test]
fn golden_capi_weights_go_out_and_come_back_under_official_names() {
    let Some(path) = occlude_golden::set("capi").path("weights.safetensors") else { return };
    let mut trained = read_tensors(&path, &Device::Cpu).unwrap();
    // The set holds the student; its average starts as a copy.
    let copies: Vec<_> = trained
        .iter()
        .filter_map(|(name, tensor)| Some((name.strip_prefix("student.")?.to_owned(), tensor.clone())))
        .collect();
    trained.extend(copies.into_iter().map(|(name, tensor)| (format!("student_ema.{name}"), tensor)));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("official.safetensors");
    for model in [Model::Average, Model::Student] {
        write(&path, &trained, model, DType::F32).unwrap();
        let file = read_tensors(&path, &Device::Cpu).unwrap();
        let count = trained.keys().filter(|name| name.starts_with(prefix(model))).count();
        assert_eq!(file.len(), count, "nothing is left out");
        for name in file.keys() {
            assert!(in_the_specification(name), "{name}");
        }
        let empty: StateDict =
            trained.iter().map(|(name, tensor)| (name.clone(), tensor.zeros_like().unwrap())).collect();
        let imported = read(&path, &empty, model, Scope::All).unwrap();
        assert!(imported.missing.is_empty() && imported.ignored.is_empty());
        for (name, tensor) in imported.state.iter().filter(|(name, _)| name.starts_with(prefix(model))) {
            assert_eq!(values(tensor), values(&trained[name]), "{name}");
        }
    }
}

/// `fixtures/capi.pth` is in PyTorch's zip form: `backbone.mask_token` in bf16, `head.last_layer.weight_g` in f32,
/// each [2, 3] with the values 0.25, 0.5, ... times 1 and -1.
#[test]
fn a_pytorch_file_is_read() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/capi.pth");
    let imported = read(&path, &training_state(5.0), Model::Average, Scope::All).unwrap();
    let expected: Vec<f32> = (1..=6).map(|i| i as f32 * 0.25).collect();
    assert_eq!(values(&imported.state["student_ema.backbone.mask_token"]), expected);
    let negative: Vec<f32> = expected.iter().map(|value| -value).collect();
    assert_eq!(values(&imported.state["student_ema.head.last_layer.weight_g"]), negative);
    assert_eq!(imported.missing.len(), 2);
}

#[test]
fn a_damaged_pytorch_file_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("broken.pth");
    std::fs::write(&path, b"PK\x03\x04 not a zip").unwrap();
    assert!(matches!(read(&path, &training_state(1.0), Model::Average, Scope::All), Err(Error::Damaged { .. })));
}
