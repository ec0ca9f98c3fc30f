//! Tests of MOCA, and what they share: the reference set, and a configuration that runs in milliseconds.

mod golden_step;
mod golden_variants;
mod settings;
mod state;
mod variants;

use super::{GlobalToken, Moca, MocaConfig};
use crate::{BatchSize, Method, StepContext};
use candle_core::{DType, Device, Tensor};
use occlude_golden::{Tensors, set, with_split_attention};
use occlude_heads::DecoderInput;
use occlude_masking::{Round, RoundConfig};
use occlude_random::Streams;
use occlude_settings::{Ruler, Span};
use occlude_tokenizers::{Choice, Chosen, Place};
use serde_json::Value;

/// The reference set: settings, start values, inputs of the first step.
pub(super) struct Golden {
    pub(super) config: Value,
    /// Model, masking and training of `config` in one object.
    pub(super) settings: Value,
    pub(super) state: Tensors,
    pub(super) inputs: Tensors,
}

fn int(of: &Value, name: &str) -> usize {
    usize::try_from(of[name].as_u64().unwrap_or_else(|| panic!("{name}"))).unwrap()
}

fn float(of: &Value, name: &str) -> f64 {
    of[name].as_f64().unwrap_or_else(|| panic!("{name}"))
}

fn floats(of: &Value, name: &str) -> Vec<f64> {
    of[name].as_array().unwrap_or_else(|| panic!("{name}")).iter().map(|value| value.as_f64().unwrap()).collect()
}

impl Golden {
    pub(super) fn find() -> Option<Self> {
        let set = set("moca");
        let (config, state, inputs) = (set.config()?, set.tensors("state0")?, set.tensors("step1_inputs")?);
        let mut settings = config["model"].clone();
        for part in ["masking", "train"] {
            overlay(&mut settings, &config[part]);
        }
        Some(Self { config, settings, state: with_split_attention(state), inputs })
    }

    /// The settings with some of them changed.
    pub(super) fn with(&self, changes: &Value) -> Value {
        let mut settings = self.settings.clone();
        overlay(&mut settings, changes);
        settings
    }

    /// The step of the optimizer that is recorded as the first or second.
    pub(super) fn step(&self, number: usize) -> u64 {
        (floats(&self.config, "epoch_float")[number - 1] * self.steps_per_epoch()).round() as u64
    }

    /// Steps of an epoch, so that the recorded ones follow each other.
    fn steps_per_epoch(&self) -> f64 {
        let epochs = floats(&self.config, "epoch_float");
        (1.0 / (epochs[1] - epochs[0])).round()
    }

    pub(super) fn moca_config(&self, settings: &Value) -> MocaConfig {
        let mut config = MocaConfig::default();
        let (int, float) = (|name| int(settings, name), |name| float(settings, name));
        let flag = |name: &str| settings[name].as_bool().unwrap();
        let (image, local) = (float("img_weight"), float("loc_weight"));
        assert_eq!(image + local, 1.0, "lambda is a share");
        config.lambda = image;
        config.global_token = if flag("avg_pooling") { GlobalToken::Avg } else { GlobalToken::Cls };
        let encoder = &mut config.encoder;
        (encoder.dim, encoder.depth, encoder.heads) = (int("embed_dim"), int("depth"), int("num_heads"));
        encoder.patch = int("patch_size");
        encoder.mlp_ratio = self.config["model_notes"]["mlp_ratio"].as_f64().unwrap();
        let rounds = floats(settings, "mask_ratio").into_iter().zip(floats(settings, "dec_mask_ratio"));
        config.masking.rounds = rounds.map(|(mask, decode_mask)| RoundConfig { mask, decode_mask }).collect();
        let codebook = &mut config.codebook;
        (codebook.words, codebook.new_words_per_step) = (int("num_words"), int("num_new_words"));
        (codebook.border, codebook.inverse_temperature) = (int("skip_offset"), float("inv_delta"));
        (config.generator.hidden_ratio, config.generator.kappa) = (float("pred_mlp_ratio"), float("kappa"));
        let decoder = &mut config.decoder;
        (decoder.dim, decoder.depth) = (int("decoder_embed_dim"), int("decoder_depth"));
        decoder.heads = int("decoder_num_heads");
        match int("early_layer") {
            0 => decoder.input = DecoderInput::LastLayer,
            early => config.intermediate = Some(config.encoder.depth - early),
        }
        let (optimizer, given) = (&mut config.optimizer, &self.config["optimizer"]);
        (optimizer.base_lr, optimizer.lr) = (float("blr"), settings["lr"].as_f64());
        optimizer.warmup = Span::Epochs(float("warmup_epochs"));
        (optimizer.horizon, optimizer.generator_lr) = (float("lr_epochs_mul"), float("lr_wgen"));
        optimizer.weight_decay = float("weight_decay");
        optimizer.weight_decay_end = settings["weight_decay_end"].as_f64();
        let betas = floats(given, "betas");
        (optimizer.betas, optimizer.eps) = ((betas[0], betas[1]), given["eps"].as_f64().unwrap());
        optimizer.momentum = float("alpha");
        optimizer.momentum_end = if flag("alpha_cos") { 1.0 } else { optimizer.momentum };
        config
    }

    /// The method with these settings and start values.
    pub(super) fn moca(&self, config: &MocaConfig, state: &Tensors) -> Moca {
        let steps_per_epoch = self.steps_per_epoch();
        let total_steps = (steps_per_epoch * float(&self.settings, "max_epochs")).round() as u64;
        let batch = BatchSize {
            micro: int(&self.settings, "batch_size") * int(&self.config, "world_size"),
            accumulate: int(&self.settings, "accum_iter"),
        };
        let ruler = Ruler { steps_per_epoch, total_steps };
        let settings = config.check(int(&self.settings, "img_size"), batch, ruler).unwrap();
        let mut moca = Moca::new(&settings, Streams::new(0), DType::F32, &Device::Cpu).unwrap();
        // Variants lack some of the reference's parameters (no decoder).
        let known = moca.state();
        moca.load(&state.clone().into_iter().filter(|(name, _)| known.contains_key(name)).collect()).unwrap();
        moca
    }
}

fn overlay(settings: &mut Value, changes: &Value) {
    for (name, value) in changes.as_object().unwrap() {
        settings[name] = value.clone();
    }
}

/// The tensors whose names begin with `prefix`, without it.
pub(super) fn under(tensors: &Tensors, prefix: &str) -> Tensors {
    let strip = |(name, tensor): (&String, &Tensor)| Some((name.strip_prefix(prefix)?.to_owned(), tensor.clone()));
    tensors.iter().filter_map(strip).collect()
}

fn integers(tensor: &Tensor) -> Vec<u32> {
    tensor.flatten_all().unwrap().to_vec1::<i64>().unwrap().into_iter().map(|v| u32::try_from(v).unwrap()).collect()
}

pub(super) fn views(inputs: &Tensors) -> [&Tensor; 2] {
    [&inputs["x1"], &inputs["x2"]]
}

/// The recorded rounds.
pub(super) fn rounds(moca: &Moca, inputs: &Tensors) -> Vec<Round> {
    let recorded = |round: usize| integers(&inputs[&format!("r{round}.ids_shuffle")]);
    let count = moca.settings.rounds.counts().len();
    let rounds = moca.settings.rounds.from_permutations((1..=count).map(recorded).collect()).unwrap();
    for (round, at) in rounds.iter().zip(1..) {
        // Accumulated micro-batches have no counts beside them.
        for (name, count) in [("len_keep", round.counts().keep), ("len_dec", round.counts().decode)] {
            let recorded = inputs.get(&format!("r{at}.{name}"));
            assert!(recorded.is_none_or(|recorded| integers(recorded) == [count as u32]), "{name} of round {at}");
        }
    }
    rounds
}

/// The recorded new words.
pub(super) fn choice(inputs: &Tensors) -> Choice {
    let (images, tokens) = (integers(&inputs["upd_image_idx"]), integers(&inputs["upd_token_idx"]));
    // The recorded index counts the class token.
    let place = |(image, token): (u32, u32)| Place { image, patch: token - 1 };
    let words = Chosen::Tokens(images.into_iter().zip(tokens).map(place).collect());
    Choice { view: integers(&inputs["upd_view"])[0] as usize, words }
}

/// A number as a tensor of one element, as the reference has them.
pub(super) fn single(value: f64) -> Tensor {
    Tensor::new(&[value], &Device::Cpu).unwrap()
}

pub(super) fn context(step: u64) -> StepContext<'static> {
    StepContext::single(step, Streams::new(7))
}

/// A configuration that runs in milliseconds.
pub(super) fn tiny() -> MocaConfig {
    let mut config = MocaConfig::default();
    let encoder = &mut config.encoder;
    (encoder.dim, encoder.depth, encoder.heads, encoder.patch, encoder.mlp_ratio) = (16, 3, 2, 4, 2.0);
    config.intermediate = Some(2);
    (config.codebook.words, config.codebook.new_words_per_step, config.codebook.border) = (8, 2, 1);
    (config.decoder.dim, config.decoder.depth, config.decoder.heads) = (12, 2, 2);
    config.optimizer.warmup = Span::Steps(1);
    config
}

pub(super) const TINY_IMAGE: usize = 16;
pub(super) const TINY_BATCH: BatchSize = BatchSize { micro: 4, accumulate: 1 };
pub(super) const TINY_RULER: Ruler = Ruler { steps_per_epoch: 10.0, total_steps: 20 };

/// The method of a tiny configuration.
pub(super) fn build(config: &MocaConfig) -> Moca {
    let settings = config.check(TINY_IMAGE, TINY_BATCH, TINY_RULER).unwrap();
    Moca::new(&settings, Streams::new(7), DType::F32, &Device::Cpu).unwrap()
}

/// A view of a batch, with something in it.
pub(super) fn pictures(seed: usize, batch: usize, side: usize) -> Tensor {
    let values: Vec<f32> = (0..batch * 3 * side * side)
        .map(|i| (((i + 31 * seed) as f32 * 0.37).sin() + (i as f32 * 0.011 + ((i + seed) / side) as f32).cos()) * 0.8)
        .collect();
    Tensor::from_vec(values, (batch, 3, side, side), &Device::Cpu).unwrap()
}
