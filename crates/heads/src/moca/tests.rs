//! Generator and decoder on small sizes: gradients, order of tokens, running statistics.

use super::{Decoder, DecoderConfig, DecoderInput, Generator, GeneratorConfig, TargetHead};
use candle_core::{DType, Device, Tensor};
use occlude_kernels::check::{check_differences, same, same_for_any_threads, sample};
use occlude_kernels::{ParamStore, Role, assign, backward};
use occlude_masking::{Grid, Round, RoundConfig, RoundsConfig};
use occlude_random::Streams;

const GRID: Grid = Grid { rows: 3, cols: 2 };
const WIDTH: usize = 5;

fn store(dtype: DType) -> ParamStore {
    ParamStore::trainable(Streams::new(4), dtype, &Device::Cpu)
}

/// Every trained tensor off its first value, so that one that is not used fails.
fn shake(store: &ParamStore) {
    for (seed, param) in (10..).zip(store.trained()) {
        let noise = sample(seed, param.tensor.shape().clone()).unwrap().to_dtype(param.tensor.dtype()).unwrap();
        assign(&param.tensor, &(&param.tensor + noise * 0.4).unwrap()).unwrap();
    }
}

fn generator(out: usize, dtype: DType) -> (ParamStore, Generator) {
    let mut store = store(dtype);
    let settings = GeneratorConfig::default().check(WIDTH).unwrap();
    let generator = Generator::new(&mut store.root(), &settings, out).unwrap();
    shake(&store);
    (store, generator)
}

fn decoder(input: DecoderInput, dtype: DType) -> (ParamStore, Decoder) {
    let mut store = store(dtype);
    let settings = DecoderConfig { input, dim: 8, depth: 2, heads: 2 }.check(WIDTH, GRID, false).unwrap();
    let decoder = Decoder::new(&mut store.root(), &settings, "_cls_pt").unwrap();
    shake(&store);
    (store, decoder)
}

/// Two rows: patches 4 and 1 visible, 3 and 0 asked for; and 2 and 5, then 0 and 4.
fn round() -> Round {
    let config = RoundsConfig { rounds: vec![RoundConfig { mask: 0.6, decode_mask: 0.3 }], complementary: true };
    let rounds = config.check(GRID).unwrap();
    rounds.from_permutations(vec![vec![4, 1, 3, 0, 2, 5, 2, 5, 0, 4, 1, 3]]).unwrap().remove(0)
}

fn inputs() -> [Tensor; 2] {
    [sample(1, (2, WIDTH)).unwrap(), sample(2, (2, 2, WIDTH)).unwrap()]
}

/// Gradients of every trained tensor of `store` against central differences of some of its elements.
fn check_parameters(store: &ParamStore, output: impl Fn() -> Tensor) {
    let weights = sample(77, output().shape().clone()).unwrap();
    let loss = || (output() * &weights).unwrap().sum_all().unwrap();
    let gradients = backward(&loss()).unwrap();
    for param in store.trained() {
        let gradient = gradients.get(&param.tensor).unwrap_or_else(|| panic!("{} has no gradient", param.name));
        let gradient: Vec<f64> = gradient.flatten_all().unwrap().to_vec1().unwrap();
        let scale = gradient.iter().fold(1e-3_f64, |most, g| most.max(g.abs()));
        // The keys' bias moves all scores of a query alike, and so has none.
        assert!(param.name.ends_with("attn.k.bias") || scale > 1e-3, "{}: a gradient of nothing", param.name);
        let values: Vec<f64> = param.tensor.flatten_all().unwrap().to_vec1().unwrap();
        for at in (0..values.len()).step_by(values.len().div_ceil(7)) {
            let moved = |step: f64| {
                let mut values = values.clone();
                values[at] += step;
                assign(&param.tensor, &Tensor::from_vec(values, param.tensor.shape(), &Device::Cpu).unwrap()).unwrap();
                loss().to_scalar::<f64>().unwrap()
            };
            let slope = (moved(1e-5) - moved(-1e-5)) / 2e-5;
            moved(0.0);
            assert!((slope - gradient[at]).abs() <= 1e-6 * scale, "{}[{at}]: {slope} {}", param.name, gradient[at]);
        }
    }
}

#[test]
fn gradients_of_the_generator_are_those_of_differences() {
    for out in [WIDTH, 8] {
        let (store, generator) = generator(out, DType::F64);
        let words = sample(3, (9, WIDTH)).unwrap();
        check_parameters(&store, || generator.generate(&words).unwrap().prototypes);
    }
}

#[test]
fn gradients_of_the_decoder_are_those_of_differences() {
    for input in [DecoderInput::Condenser, DecoderInput::Plain] {
        let (store, decoder) = decoder(input, DType::F64);
        let [leading, visible] = inputs();
        check_parameters(&store, || decoder.forward(&leading, &visible, &round()).unwrap());
        check_differences(&inputs(), |v| decoder.forward(&v[0], &v[1], &round())).unwrap();
    }
}

#[test]
fn gradients_of_scores_reach_features_and_prototypes() {
    let (_, generator) = generator(8, DType::F64);
    let inputs = [sample(1, (3, 8)).unwrap(), sample(2, (4, 8)).unwrap()];
    check_differences(&inputs, |v| generator.logits(&v[0], &v[1])).unwrap();
    let got = generator.logits(&inputs[0], &inputs[1]).unwrap();
    let expected = (inputs[0].matmul(&inputs[1].t().unwrap()).unwrap() * 3.0).unwrap();
    same("scores", &got, &expected, 1e-12).unwrap();
}

#[test]
fn running_statistics_move_when_told() {
    let (store, mut generator) = generator(WIDTH, DType::F64);
    let words = sample(3, (9, WIDTH)).unwrap();
    let bn = |name: &str| store.get(&format!("layers_w.0.generator.b0_bn.{name}")).unwrap();
    let first = generator.generate(&words).unwrap();
    assert_eq!(bn("running_mean").to_vec1::<f64>().unwrap(), [0.0; 10]);
    generator.observe(&first.statistics).unwrap();
    let again = generator.generate(&words).unwrap();
    same("the batch's own statistics count", &again.prototypes, &first.prototypes, 0.0).unwrap();
    let unit = occlude_kernels::l2_normalize(&words, 1e-5).unwrap();
    let hidden = unit.matmul(&store.get("layers_w.0.generator.b0_fc.weight").unwrap().t().unwrap()).unwrap();
    same("mean", bn("running_mean"), &(hidden.mean(0).unwrap() * 0.1).unwrap(), 1e-12).unwrap();
    let variance = ((hidden.var(0).unwrap() * 0.1).unwrap() + 0.9).unwrap();
    same("variance", bn("running_var"), &variance, 1e-12).unwrap();
    assert_eq!(bn("num_batches_tracked").to_scalar::<i64>().unwrap(), 1);
}

#[test]
fn a_nan_reaches_every_prototype_it_should() {
    let (store, generator) = generator(8, DType::F64);
    let words = sample(3, (9, WIDTH)).unwrap();
    let weight = store.get("layers_w.0.generator.b0_fc.weight").unwrap();
    assign(weight, &(weight * f64::NAN).unwrap()).unwrap();
    let got = generator.generate(&words).unwrap().prototypes.flatten_all().unwrap().to_vec1::<f64>().unwrap();
    assert!(got.iter().all(|v| v.is_nan()));
}

#[test]
fn tokens_stand_in_the_order_of_the_round() {
    let (store, decoder) = decoder(DecoderInput::Plain, DType::F64);
    let [leading, visible] = inputs();
    let tokens = decoder.tokens(&leading, &visible, &round()).unwrap();
    assert_eq!(tokens.dims(), [2, 5, 8]);
    let table = store.get("decoder_pos_embed").unwrap().squeeze(0).unwrap();
    let position = |patch: usize| table.get(1 + patch).unwrap();
    let mask = store.get("mask_token_cls_pt").unwrap().flatten_all().unwrap();
    let (weight, bias) = ("decoder_embed_cls_pt.weight", "decoder_embed_cls_pt.bias");
    let embed = |x: Tensor| {
        let x = x.unsqueeze(0).unwrap().matmul(&store.get(weight).unwrap().t().unwrap()).unwrap().squeeze(0).unwrap();
        (x + store.get(bias).unwrap()).unwrap()
    };
    let token = |row: usize, at: usize| tokens.get(row).unwrap().get(at).unwrap();
    let ids = [[4, 1, 3, 0], [2, 5, 0, 4]];
    for (row, ids) in ids.into_iter().enumerate() {
        same("leading", &token(row, 0), &embed(leading.get(row).unwrap()), 1e-12).unwrap();
        for (at, patch) in ids.into_iter().enumerate() {
            let bare = if at < 2 { embed(visible.get(row).unwrap().get(at).unwrap()) } else { mask.clone() };
            same("patch", &token(row, 1 + at), &(bare + position(patch)).unwrap(), 1e-12).unwrap();
        }
    }
    assert_eq!(decoder.forward(&leading, &visible, &round()).unwrap().dims(), [8, 8]);
}

#[test]
fn what_is_hidden_from_the_decoder_does_not_count() {
    // Which patches come after the decoded ones changes nothing; which come first does.
    let (_, decoder) = decoder(DecoderInput::Condenser, DType::F64);
    let [leading, visible] = inputs();
    let config = RoundsConfig { rounds: vec![RoundConfig { mask: 0.6, decode_mask: 0.3 }], complementary: true };
    let rounds = config.check(GRID).unwrap();
    let say = |ids: Vec<u32>| {
        let round = rounds.from_permutations(vec![ids]).unwrap().remove(0);
        decoder.forward(&leading, &visible, &round).unwrap().to_vec2::<f64>().unwrap()
    };
    let plain = say(vec![4, 1, 3, 0, 2, 5, 2, 5, 0, 4, 1, 3]);
    assert_eq!(plain, say(vec![4, 1, 3, 0, 5, 2, 2, 5, 0, 4, 3, 1]));
    assert_ne!(plain, say(vec![4, 1, 0, 3, 2, 5, 2, 5, 0, 4, 1, 3]));
}

#[test]
fn a_decoder_of_the_last_layer_is_a_condenser_and_a_plain_one_has_no_first_norm() {
    let say = |input| {
        let (store, decoder) = decoder(input, DType::F64);
        let [leading, visible] = inputs();
        let moved = (&visible + 2.0).unwrap(); // A layer norm takes this off.
        let say = |visible| decoder.forward(&leading, visible, &round()).unwrap().to_vec2::<f64>().unwrap();
        (store.get("norm_cls_pt.weight").is_some(), say(&visible), say(&moved))
    };
    let (condenser, last) = (say(DecoderInput::Condenser), say(DecoderInput::LastLayer));
    assert!(condenser.0 && last.0 && condenser.1 == last.1);
    let apart = |a: &[Vec<f64>], b: &[Vec<f64>]| {
        a.concat().iter().zip(b.concat()).fold(0.0_f64, |most, (a, b)| most.max((a - b).abs()))
    };
    assert!(apart(&condenser.1, &condenser.2) < 1e-9);
    let plain = say(DecoderInput::Plain);
    assert!(!plain.0 && apart(&plain.1, &plain.2) > 1e-3);
}

#[test]
fn names_decay_and_first_values() {
    let (mut store, decoder_settings) =
        (store(DType::F32), DecoderConfig { dim: 8, depth: 1, heads: 2, ..DecoderConfig::default() });
    Decoder::new(&mut store.root(), &decoder_settings.check(WIDTH, GRID, false).unwrap(), "_cls_pt").unwrap();
    let settings = GeneratorConfig::default().check(WIDTH).unwrap();
    Generator::new(&mut store.root().sub("pred"), &settings, 8).unwrap();
    TargetHead::pixels(&mut store.root(), 8, 2).unwrap();
    let head = TargetHead::embeddings(&mut store.root(), 8, WIDTH).unwrap();
    for param in store.params() {
        let values: Vec<f64> = param.tensor.flatten_all().unwrap().to_dtype(DType::F64).unwrap().to_vec1().unwrap();
        let largest = values.iter().fold(0.0_f64, |most, v| most.max(v.abs()));
        let is = |suffix: &str| param.name.ends_with(suffix);
        let bound = |rows: usize, columns: usize| (6.0 / (rows + columns) as f64).sqrt();
        match param.role {
            Role::Constant => {
                let known = ["decoder_pos_embed", "scale", "running_mean", "running_var", "num_batches_tracked"];
                assert!(known.iter().any(|name| is(name)), "{}", param.name);
            }
            Role::Trained(factors) => {
                assert_eq!(factors.wd, f64::from(u8::from(param.tensor.rank() > 1)), "{}", param.name)
            }
        }
        if is(".bias") {
            assert_eq!(largest, 0.0, "{}", param.name);
        } else if let (Role::Trained(_), [rows, columns]) = (param.role, param.tensor.dims()) {
            // Queries, keys and values are drawn as one matrix.
            let thirds = [".q.", ".k.", ".v."].iter().any(|third| param.name.contains(third));
            let bound = bound(if thirds { 3 * rows } else { *rows }, *columns);
            assert!(largest <= bound && largest > 0.8 * bound, "{}: {largest} of {bound}", param.name);
        }
    }
    assert_eq!(store.get("pred.scale").unwrap().to_vec1::<f32>().unwrap(), [3.0]);
    assert_eq!(store.get("pixel_head.weight").unwrap().dims(), [12, 8]);
    assert!(
        store.get("pred.layers_w.0.skip.weight").is_some()
            && store.get("pred.layers_w.0.generator.b0_fc.bias").is_none()
    );
    assert_eq!(head.forward(&sample(1, (3, 8)).unwrap().to_dtype(DType::F32).unwrap()).unwrap().dims(), [3, WIDTH]);
}

#[test]
fn what_does_not_fit_is_refused() {
    let (_, decoder) = decoder(DecoderInput::Condenser, DType::F64);
    let [leading, visible] = inputs();
    let refused = |leading: &Tensor, visible: &Tensor, round: &Round| {
        decoder.forward(leading, visible, round).unwrap_err().to_string()
    };
    assert!(refused(&leading.narrow(0, 0, 1).unwrap(), &visible, &round()).contains("leading tokens [2, 5]"));
    assert!(refused(&leading, &visible.narrow(1, 0, 1).unwrap(), &round()).contains("visible tokens [2, 2, 5]"));
    let rounds = RoundsConfig { rounds: vec![RoundConfig { mask: 0.5, decode_mask: 0.0 }], complementary: true };
    let other = rounds.check(Grid::new(2, 2)).unwrap().from_permutations(vec![vec![0, 1, 2, 3]]).unwrap().remove(0);
    assert!(refused(&leading, &visible, &other).contains("a round of 4 patches for a grid of 6"));
    let (_, generator) = generator(8, DType::F64);
    assert!(generator.generate(&sample(3, (9, 4)).unwrap()).is_err());
    assert!(generator.generate(&sample(3, (1, WIDTH)).unwrap()).unwrap_err().to_string().contains("two rows"));
}

#[test]
fn any_number_of_threads_gives_equal_bits() {
    let grid = Grid::new(9, 7);
    let settings =
        DecoderConfig { dim: 24, depth: 1, heads: 3, ..DecoderConfig::default() }.check(33, grid, false).unwrap();
    let rounds = RoundsConfig { complementary: false, ..RoundsConfig::default() }.check(grid).unwrap();
    let round = rounds.draw(6, |row| Streams::new(1).stream("mask", 0, row as u64)).remove(0);
    let single = |seed, shape: &[usize]| sample(seed, shape).unwrap().to_dtype(DType::F32).unwrap();
    same_for_any_threads(|| {
        let mut store = store(DType::F32);
        let decoder = Decoder::new(&mut store.root(), &settings, "_cls_pt")?;
        let generator = Generator::new(&mut store.root(), &GeneratorConfig::default().check(33).unwrap(), 24)?;
        let said = decoder.forward(&single(1, &[6, 33]), &single(2, &[6, round.counts().keep, 33]), &round)?;
        let made = generator.generate(&single(3, &[80, 33]))?.prototypes;
        let scores = generator.logits(&said, &made)?;
        let gradients = backward(&scores.sqr()?.mean_all()?)?;
        let each = store.trained().map(|param| gradients.get(&param.tensor).cloned());
        Ok(each.chain([Some(scores)]).collect::<Option<Vec<_>>>().unwrap())
    })
    .unwrap();
}
