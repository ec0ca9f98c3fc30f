//! The recorded networks: segments, activations, losses in all their forms, gradients, steps, features.

use crate::randsac::{Architecture, Network, Randsac, RandsacConfig};
use crate::{BatchSize, Method, Weights};
use candle_core::{DType, Device, Tensor};
use occlude_golden::{Tensors, assert_close, integers, relative_difference, set, with_split_attention};
use occlude_optim::{Optimizer, Schedule};
use occlude_random::Streams;
use occlude_settings::{Ruler, Span};
use occlude_vit::Sights;
use std::collections::BTreeMap;

const ACTIVATIONS: f64 = 1e-5;
const LOSSES: f64 = 1e-5;
const GRADIENTS: f64 = 5e-5;
/// Of an entry whose gradient is at least `LEAST`, after one step and after three.
const UPDATES: f64 = 1e-5;
const LEAST: f64 = 1e-5;
/// The learning rate of the recorded steps.
const LR: f64 = 2e-3;

/// A recorded network.
struct Golden {
    tensors: Tensors,
    /// As the reference calls them: `arch`, `norm_pix`, `skip_first`, `decoder`, `config`.
    notes: BTreeMap<String, String>,
}

impl Golden {
    fn find(file: &str) -> Option<Self> {
        let set = set("randsac");
        Some(Self { tensors: set.tensors(file)?, notes: set.notes(file)? })
    }

    fn flag(&self, name: &str) -> bool {
        self.notes[name] == "true"
    }

    fn size(&self, name: &str) -> usize {
        let config: serde_json::Value = serde_json::from_str(&self.notes["config"]).unwrap();
        usize::try_from(config[name].as_u64().unwrap()).unwrap()
    }

    fn config(&self) -> RandsacConfig {
        let mut config = RandsacConfig { norm_pix: self.flag("norm_pix"), ..RandsacConfig::default() };
        config.loss_on_first = !self.flag("skip_first");
        config.architecture = match self.notes["arch"].as_str() {
            "plain" => Architecture::Plain,
            "skip" => Architecture::Skip,
            _ => Architecture::TwoStream,
        };
        let encoder = &mut config.encoder;
        (encoder.dim, encoder.depth) = (self.size("dim"), self.size("depth"));
        (encoder.heads, encoder.patch) = (self.size("heads"), self.size("patch"));
        let decoder: Vec<usize> = serde_json::from_str(&self.notes["decoder"]).unwrap();
        (config.decoder.dim, config.decoder.depth, config.decoder.heads) = (decoder[0], decoder[1], decoder[2]);
        config.segments.blobs = serde_json::from_str(&self.notes["levels"]).unwrap();
        (config.optimizer.lr, config.optimizer.warmup) = (Some(LR), Span::Steps(0));
        // Stated beside the tensors, in words: those of the ablations on CIFAR-10, which have plain pixels, else of ImageNet.
        config.optimizer.betas = (0.9, if config.norm_pix { 0.95 } else { 0.999 });
        config
    }

    /// The method with these settings and the recorded weights.
    fn method(&self, config: &RandsacConfig) -> Randsac {
        let ruler = Ruler { steps_per_epoch: 1.0, total_steps: 1000 };
        let batch = BatchSize { micro: self.size("batch"), accumulate: 1 };
        let settings = config.check(self.size("img"), batch, ruler).unwrap();
        let mut method = Randsac::new(&settings, Streams::new(0), DType::F32, &Device::Cpu).unwrap();
        let mut state = method.state();
        let weights = self.under("w.");
        assert_eq!(weights.len() + fixed(&state).len(), state.len(), "every tensor of the reference has its place");
        state.extend(weights);
        method.load(&state).unwrap();
        method
    }

    fn under(&self, prefix: &str) -> Tensors {
        let strip = |(name, tensor): (&String, &Tensor)| Some((name.strip_prefix(prefix)?.to_owned(), tensor.clone()));
        split(self.tensors.iter().filter_map(strip).collect())
    }

    fn ranks(&self) -> Vec<u32> {
        integers(&self.tensors["in.rank"]).into_iter().map(|rank| u32::try_from(rank).unwrap()).collect()
    }

    fn sights(&self) -> Sights {
        Sights::of(&self.ranks(), self.tensors["in.rank"].dim(1).unwrap())
    }

    fn images(&self) -> &Tensor {
        &self.tensors["in.images"]
    }
}

/// Tables of positions, which the reference keeps no weights of.
fn fixed(state: &occlude_kernels::StateDict) -> Vec<&String> {
    state.keys().filter(|name| name.ends_with("pos_embed")).collect()
}

/// Fused keys and values as two, beside the thirds.
fn split(tensors: Tensors) -> Tensors {
    let halves = |(name, tensor): (String, Tensor)| match name.split_once(".kv.") {
        None => vec![(name, tensor)],
        Some((block, rest)) => {
            let halves = tensor.chunk(2, 0).unwrap();
            let half =
                |(letter, half): (&str, Tensor)| (format!("{block}.{letter}.{rest}"), half.contiguous().unwrap());
            ["k", "v"].into_iter().zip(halves).map(half).collect()
        }
    };
    with_split_attention(tensors).into_iter().flat_map(halves).collect()
}

fn values(tensor: &Tensor) -> Vec<f64> {
    tensor.flatten_all().unwrap().to_dtype(DType::F64).unwrap().to_vec1().unwrap()
}

fn single(value: f64) -> Tensor {
    Tensor::new(&[value], &Device::Cpu).unwrap()
}

/// The ranks given as masks: who sees whom.
fn check_masks(golden: &Golden) {
    let (ranks, expected) = (golden.ranks(), &golden.tensors);
    let tokens = expected["in.rank"].dim(1).unwrap();
    for (name, rule) in [
        ("mask.source", occlude_masking::sees_content as fn(u32, u32) -> bool),
        ("mask.decoder_self", occlude_masking::sees_content),
        ("mask.memory", occlude_masking::sees_memory),
    ] {
        let Some(mask) = expected.get(name) else { continue };
        let of_image = |ranks: &[u32]| -> Vec<i64> {
            ranks.iter().flat_map(|query| ranks.iter().map(|key| i64::from(rule(*query, *key)))).collect()
        };
        assert_eq!(integers(mask), ranks.chunks(tokens).flat_map(of_image).collect::<Vec<i64>>(), "{name}");
    }
}

fn check_activations(golden: &Golden, network: &Network) {
    let (images, sights, expected) = (golden.images(), golden.sights(), &golden.tensors);
    let depth = golden.size("depth");
    let taps: Vec<usize> = (1..=depth).collect();
    let seen = network.encoder().forward_in_order(images, &sights, &taps).unwrap();
    for (block, tapped) in taps.iter().zip(&seen.tapped) {
        assert_close(&format!("act.enc.{block}"), tapped, &expected[&format!("act.enc.{block}")], ACTIVATIONS);
    }
    if let Some(decoder) = network.decoder() {
        for (layer, memory) in (1..).zip(decoder.memory(&network.seen(images, &sights).unwrap()).unwrap()) {
            assert_close(&format!("memory.{layer}"), &memory, &expected[&format!("act.memory.{layer}")], ACTIVATIONS);
        }
    }
    assert_close("pred", &network.predict(images, &sights).unwrap(), &expected["out.pred"], ACTIVATIONS);
}

/// The same prediction, judged in all four ways.
fn check_loss_forms(golden: &Golden) {
    for norm_pix in [false, true] {
        for loss_on_first in [false, true] {
            let method = golden.method(&RandsacConfig { norm_pix, loss_on_first, ..golden.config() });
            let got = method.step_with(golden.images(), &golden.ranks()).unwrap().losses[0].1;
            let word = |flag: bool| if flag { "True" } else { "False" };
            let name = format!("out.loss[norm_pix={},skip_first={}]", word(norm_pix), word(!loss_on_first));
            assert_close(&name, &single(got), &golden.tensors[&name], LOSSES);
        }
    }
}

/// Parameters after some steps: entries that have a gradient by their distance, the others by how far they can have gone.
fn check_updated(golden: &Golden, method: &Randsac, steps: usize) {
    let (state, gradients) = (method.state(), golden.under("grad."));
    let before = golden.under("w.");
    for (name, expected) in golden.under(&format!("step{steps}.")) {
        let lists = [&state[&name], &expected, &gradients[&name], &before[&name]].map(values);
        for at in 0..lists[0].len() {
            let [got, expected, gradient, start] = [0, 1, 2, 3].map(|list: usize| lists[list][at]);
            if gradient.abs() >= LEAST {
                assert!((got - expected).abs() <= UPDATES, "{name}[{at}] after {steps}: {got} against {expected}");
            } else {
                assert!((got - start).abs() <= 1.1 * LR * steps as f64, "{name}[{at}] after {steps}");
            }
        }
    }
}

fn check(file: &str) {
    let Some(golden) = Golden::find(file) else { return };
    let mut method = golden.method(&golden.config());
    check_masks(&golden);
    check_activations(&golden, method.network());
    check_loss_forms(&golden);
    let features = method.extractor(Weights::Student).features(golden.images()).unwrap().global.unwrap();
    assert_close("features", &features, &golden.tensors["out.features"], ACTIVATIONS);
    let mut groups = method.groups();
    groups.iter_mut().for_each(|group| group.lr = Schedule::constant(LR));
    let mut optimizer = Optimizer::new(groups, None).unwrap();
    let losses = values(&golden.tensors["out.losses"]);
    for (step, expected) in losses.into_iter().enumerate() {
        let output = method.step_with(golden.images(), &golden.ranks()).unwrap();
        assert_close(&format!("loss {step}"), &single(output.losses[0].1), &single(expected), LOSSES);
        if step == 0 {
            let gradients = golden.under("grad.");
            assert_eq!(gradients.len(), output.gradients.len(), "every gradient has its reference");
            for (name, expected) in gradients.iter().filter(|(name, _)| !name.ends_with(".k.bias")) {
                let gradient = output.gradients.get(method.trained.get(name).unwrap()).unwrap();
                let apart = relative_difference(gradient, expected);
                assert!(apart <= GRADIENTS, "{name}: {apart:e}");
            }
        }
        optimizer.step(&output.gradients, step as u64).unwrap();
        if golden.tensors.keys().any(|name| name.starts_with(&format!("step{}.", step + 1))) {
            check_updated(&golden, &method, step + 1);
        }
    }
    method.after_step(&super::context(0)).unwrap();
}

#[test]
fn golden_randsac_flat_plain() {
    check("flat_plain");
}

#[test]
fn golden_randsac_hier_skip() {
    check("hier_skip");
}

#[test]
fn golden_randsac_hier3_skip() {
    check("hier3_skip");
}

#[test]
fn golden_randsac_two_stream() {
    check("two_stream");
}
