//! Settings: the defaults of the public code, refusals that name the field.

use super::{TINY_BATCH, TINY_IMAGE, TINY_RULER, tiny};
use crate::MethodConfig;
use crate::capi::{CapiConfig, LossKind};
use occlude_heads::{HeadKind, PredictorKind};
use occlude_settings::{Ruler, Span};

const RULER: Ruler = Ruler { steps_per_epoch: 100.0, total_steps: 500_000 };

#[test]
fn defaults_are_those_of_the_public_code() {
    let settings = CapiConfig::default().check(224, 16384, RULER).unwrap();
    assert_eq!(settings.predicted(), 8);
    assert_eq!(settings.student.lr.at(49_999), 1e-3);
    assert_eq!(settings.prototypes.lr.at(49_999), 5e-4);
    assert_eq!((settings.momentum.at(0), settings.momentum.at(49_999)), (1.0, 0.999));
    let mut sixteen = CapiConfig::default();
    sixteen.encoder.patch = 16;
    assert_eq!(sixteen.check(224, 16384, RULER).unwrap().predicted(), 6);
}

fn refused(change: impl Fn(&mut CapiConfig)) -> String {
    let mut config = tiny();
    change(&mut config);
    config.check(TINY_IMAGE, TINY_BATCH, TINY_RULER).unwrap_err().to_string()
}

#[test]
fn each_refusal_names_its_field() {
    assert!(refused(|c| c.encoder.heads = 3).starts_with("encoder.heads = 3: must divide dim = 16"));
    assert!(refused(|c| c.encoder.heads = 8).starts_with("encoder.heads = 8: must give heads of a multiple of 4"));
    assert!(refused(|c| c.encoder.registers = 2).starts_with("encoder.registers = 2"));
    assert!(refused(|c| c.encoder.patch = 5).starts_with("encoder.patch = 5: must divide the image size 16"));
    assert!(refused(|c| c.predictor.heads = 5).starts_with("predictor.heads = 5"));
    assert!(refused(|c| c.mask.ratio = 1.2).starts_with("mask.ratio = 1.2: must be between 0 and 1"));
    assert!(refused(|c| c.mask.ratio = 0.05).starts_with("mask.ratio = 0.05: must hide at least one"));
    assert!(refused(|c| c.clustering.prototypes = 1).starts_with("clustering.prototypes = 1: must be at least 2"));
    assert!(refused(|c| c.clustering.lr = f64::NAN).starts_with("clustering.lr = NaN"));
    assert!(refused(|c| c.student_temp = 0.0).starts_with("student_temp = 0"));
    assert!(refused(|c| c.prediction.count = Some(11)).contains("at most the 10 hidden patches"));
    assert!(refused(|c| c.optimizer.warmup = Span::Steps(30)).starts_with("optimizer.warmup = 30"));
    assert!(refused(|c| c.optimizer.momentum.base = 1.5).starts_with("optimizer.momentum.base = 1.5"));
    assert!(refused(|c| c.optimizer.betas.1 = 1.0).starts_with("optimizer.betas = 1"));
    assert!(refused(|c| c.clustering.betas.0 = -0.1).starts_with("clustering.betas = -0.1"));
    let none = refused(|c| c.prediction.subsampling = 0.05);
    assert_eq!(
        none,
        "prediction.subsampling = 0.05: predicts no patch of this grid (10 are hidden): raise it or set prediction.count"
    );
}

#[test]
fn a_head_that_does_not_fit_the_loss_is_refused() {
    let feature = refused(|c| (c.loss, c.head.kind) = (LossKind::Ijepa, Some(HeadKind::Linear)));
    assert!(feature.starts_with("head.kind = linear: must be `identity`"), "{feature}");
    let class = refused(|c| c.head.kind = Some(HeadKind::Identity));
    assert!(class.starts_with("head.kind = identity: must be `linear` or `mlp`"), "{class}");
}

#[test]
fn the_ibot_head_reads_one_width() {
    let wider = |c: &mut CapiConfig| (c.loss, c.predictor.dim) = (LossKind::Ibot, 24);
    let message = refused(wider);
    assert!(message.starts_with("predictor.dim = 24: must equal encoder.dim = 16 with loss = \"ibot\""), "{message}");
    let mut fused = tiny();
    wider(&mut fused);
    fused.predictor.kind = PredictorKind::Fused;
    assert!(fused.check(TINY_IMAGE, TINY_BATCH, TINY_RULER).is_ok(), "a fused predictor has the encoder's width");
}

#[test]
fn prototypes_have_an_optimizer_of_their_own() {
    let mut config = tiny();
    (config.clustering.betas, config.clustering.eps) = ((0.8, 0.99), 1e-6);
    let settings = config.check(TINY_IMAGE, TINY_BATCH, TINY_RULER).unwrap();
    assert_eq!((settings.prototypes.betas, settings.prototypes.eps), ((0.8, 0.99), 1e-6));
    assert_eq!((settings.student.betas, settings.student.eps), ((0.9, 0.95), 1e-8));
}

#[test]
fn a_config_survives_its_file() {
    let mut config = tiny();
    config.encoder.out_layer = Some(1);
    config.prediction.count = Some(3);
    let config = MethodConfig::Capi(Box::new(config));
    let text = toml::to_string(&config).unwrap();
    assert!(text.starts_with("kind = \"capi\"\nloss = \"clustering\""), "{text}");
    assert_eq!(toml::from_str::<MethodConfig>(&text).unwrap(), config);
}

#[test]
fn what_is_left_out_is_default_and_what_is_unknown_is_refused() {
    let read = |text: &str| toml::from_str::<MethodConfig>(&format!("kind = \"capi\"\n{text}"));
    let MethodConfig::Capi(config) = read("predictor = { kind = \"self\" }\nencoder.mlp_ratio = 3").unwrap() else {
        panic!("another method")
    };
    assert_eq!((config.predictor.depth, config.encoder.depth), (12, 24));
    assert_eq!(config.encoder.mlp_ratio, 3.0, "a whole number is a number");
    for text in ["los = \"ibot\"", "encoder.width = 3", "loss = \"moca\"", "mask.ratio = \"much\""] {
        assert!(read(text).is_err(), "{text}");
    }
}
