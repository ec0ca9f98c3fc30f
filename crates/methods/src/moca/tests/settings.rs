//! Settings: the published recipes, refusals that name the field.

use super::{TINY_BATCH, TINY_IMAGE, TINY_RULER, tiny};
use crate::moca::{LocTarget, MocaConfig};
use crate::{BatchSize, MethodConfig};
use occlude_heads::DecoderInput;
use occlude_masking::RoundConfig;
use occlude_settings::{Ruler, Span};

/// 200 epochs of 625 steps.
const RULER: Ruler = Ruler { steps_per_epoch: 625.0, total_steps: 125_000 };
const BATCH: BatchSize = BatchSize { micro: 256, accumulate: 8 };

#[test]
fn defaults_are_those_of_the_paper() {
    let settings = MocaConfig::default().check(224, BATCH, RULER).unwrap();
    let counts: Vec<_> = settings.rounds().counts().iter().map(|counts| (counts.keep, counts.decode)).collect();
    assert_eq!((counts, settings.rounds().complementary()), (vec![(88, 127), (49, 88)], true));
    assert_eq!((settings.encoder().grid().count(), settings.codebook.interior().len()), (196, 100));
    assert_eq!((settings.codebook.words(), settings.codebook.new_words()), (4096, 4));
    assert_eq!(settings.local.as_ref().unwrap().intermediate, 8);
    let recipe = &settings.recipe;
    let close = |got: f64, expected: f64| assert!((got / expected - 1.0).abs() < 1e-12, "{got} {expected}");
    close(recipe.lr.at(30 * 625), 1.2e-3);
    close(recipe.lr.at(140 * 625), 0.6e-3); // halfway to epoch 250
    assert_eq!((recipe.lr.at(0), recipe.generator_lr.at(7)), (0.0, 1e-4));
    assert_eq!((recipe.momentum.at(0), recipe.momentum.at(125_000)), (0.99, 1.0));
    close(recipe.weight_decay.at(70_000), 0.05);
}

#[test]
fn the_recommended_run_of_the_code_differs_in_two_settings() {
    let mut config = MocaConfig::default();
    config.optimizer.momentum = 0.994;
    config.optimizer.weight_decay_end = Some(0.2);
    let recipe = config.check(224, BATCH, RULER).unwrap().recipe;
    assert!(
        (recipe.weight_decay.at(62_500) - 0.125).abs() < 1e-12 && (recipe.momentum.at(62_500) - 0.997).abs() < 1e-12
    );
    assert_eq!(recipe.generator_weight_decay.at(62_500), 0.05);
}

#[test]
fn rates_follow_the_batch_unless_they_are_given() {
    let peak = |lr, batch| {
        let mut config = tiny();
        (config.optimizer.lr, config.optimizer.warmup) = (lr, Span::Steps(0));
        config.check(TINY_IMAGE, batch, TINY_RULER).unwrap().recipe.lr.at(0)
    };
    assert_eq!(peak(None, BatchSize { micro: 64, accumulate: 2 }), 0.75e-4);
    assert_eq!(peak(Some(3e-4), BatchSize { micro: 64, accumulate: 2 }), 3e-4);
}

#[test]
fn a_run_of_less_than_an_epoch_learns_to_its_end() {
    let mut config = tiny();
    config.optimizer.warmup = Span::Percent(10.0);
    let ruler = Ruler { steps_per_epoch: 100.0, total_steps: 50 };
    let lr = config.check(TINY_IMAGE, TINY_BATCH, ruler).unwrap().recipe.lr;
    let peak = 1.5e-4 * 4.0 / 256.0;
    assert!((lr.at(5) - peak).abs() < 1e-18 && lr.at(49) > 0.1 * peak && lr.at(49) < lr.at(40));
}

fn refused(change: impl Fn(&mut MocaConfig)) -> String {
    let mut config = tiny();
    change(&mut config);
    config.check(TINY_IMAGE, TINY_BATCH, TINY_RULER).unwrap_err().to_string()
}

#[test]
fn each_refusal_names_its_field() {
    type Change = fn(&mut MocaConfig);
    let cases: &[(&str, Change)] = &[
        ("lambda = 1.5: must be between 0 and 1", |c| c.lambda = 1.5),
        ("lambda = NaN", |c| c.lambda = f64::NAN),
        ("intermediate = 4: must be a block of the encoder, 1 to 3", |c| c.intermediate = Some(4)),
        ("intermediate = 0", |c| c.intermediate = Some(0)),
        ("intermediate = none: must be given: an encoder of 3 blocks", |c| c.intermediate = None),
        ("encoder.heads = 3: must divide dim = 16", |c| c.encoder.heads = 3),
        ("encoder.dim = 18: must be a multiple of 4", |c| c.encoder.dim = 18),
        ("encoder.patch = 5: must divide the image size 16", |c| c.encoder.patch = 5),
        ("masking.rounds = 0: must be at least 1", |c| c.masking.rounds.clear()),
        ("masking.rounds[0].mask = 1: must be between", |c| c.masking.rounds[0].mask = 1.0),
        ("masking.rounds[0].decode_mask = 0.55: must leave more patches", |c| c.masking.rounds[0].decode_mask = 0.55),
        ("masking.complementary = true: cannot be", |c| {
            c.masking.rounds[0] = RoundConfig { mask: 0.5, decode_mask: 0.1 };
        }),
        ("codebook.border = 2: must leave a patch", |c| c.codebook.border = 2),
        ("codebook.new_words_per_step = 8: must be at most the 4 images", |c| c.codebook.new_words_per_step = 8),
        ("codebook.new_words_per_step = 3: must divide words = 8", |c| c.codebook.new_words_per_step = 3),
        ("codebook.inverse_temperature = 0", |c| c.codebook.inverse_temperature = 0.0),
        ("generator.kappa = -3: must be positive", |c| c.generator.kappa = -3.0),
        ("decoder.heads = 5: must divide dim = 12", |c| c.decoder.heads = 5),
        ("two_decoders = true: must be false with lambda = 1", |c| (c.lambda, c.two_decoders) = (1.0, true)),
        ("loc_target = pixels: must be `assign` with lambda = 1", |c| {
            (c.lambda, c.loc_target) = (1.0, LocTarget::Pixels);
        }),
        ("decoder.input = last_layer: must be `condenser` with two_decoders = true", |c| {
            (c.decoder.input, c.two_decoders) = (DecoderInput::LastLayer, true);
        }),
        ("optimizer.base_lr = -1: must be at least 0", |c| c.optimizer.base_lr = -1.0),
        ("optimizer.lr = inf", |c| c.optimizer.lr = Some(f64::INFINITY)),
        ("optimizer.generator_lr = NaN", |c| c.optimizer.generator_lr = f64::NAN),
        ("optimizer.weight_decay_end = -0.1", |c| c.optimizer.weight_decay_end = Some(-0.1)),
        ("optimizer.horizon = 0.5: must be at least 1", |c| c.optimizer.horizon = 0.5),
        ("optimizer.warmup = 21: steps must fit into the run of 20 steps", |c| c.optimizer.warmup = Span::Steps(21)),
        ("optimizer.warmup.percent = 101", |c| c.optimizer.warmup = Span::Percent(101.0)),
        ("optimizer.betas = 1", |c| c.optimizer.betas.1 = 1.0),
        ("optimizer.eps = 0", |c| c.optimizer.eps = 0.0),
        ("optimizer.momentum = 1.5: must be between 0 and 1", |c| c.optimizer.momentum = 1.5),
        ("optimizer.momentum_end = -1", |c| c.optimizer.momentum_end = -1.0),
    ];
    for (expected, change) in cases {
        let message = refused(change);
        assert!(message.starts_with(expected), "{expected}: {message}");
    }
}

#[test]
fn what_nothing_reads_need_not_be_given() {
    for change in [
        (|c: &mut MocaConfig| c.lambda = 1.0) as fn(&mut MocaConfig),
        |c| c.decoder.input = DecoderInput::LastLayer,
        |c| c.decoder.input = DecoderInput::Plain,
    ] {
        let mut config = tiny();
        config.intermediate = None;
        change(&mut config);
        config.check(TINY_IMAGE, TINY_BATCH, TINY_RULER).unwrap();
    }
}

#[test]
fn a_config_survives_its_file() {
    let config = MethodConfig::Moca(Box::new(tiny()));
    let text = toml::to_string(&config).unwrap();
    assert!(text.starts_with("kind = \"moca\"\nlambda = 0.5\nglobal_token = \"avg\""), "{text}");
    assert_eq!(toml::from_str::<MethodConfig>(&text).unwrap(), config);
    let read = |text: &str| toml::from_str::<MethodConfig>(&format!("kind = \"moca\"\n{text}"));
    let MethodConfig::Moca(config) = read("masking.complementary = false\nencoder.depth = 24").unwrap() else {
        panic!("another method")
    };
    assert_eq!((config.masking.rounds.len(), config.encoder.dim, config.decoder.dim), (2, 768, 512));
    for text in ["lambdas = 1", "encoder.registers = 4", "loc_target = \"words\"", "optimizer.clip = 0.1"] {
        assert!(read(text).is_err(), "{text}");
    }
}
