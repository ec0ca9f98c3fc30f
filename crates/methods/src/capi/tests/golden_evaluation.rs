//! Features of a frozen model, on images of other sizes too, and the variants of registers.

use super::Golden;
use crate::capi::CapiConfig;
use crate::{Method, Weights};
use candle_core::{DType, Tensor};
use occlude_golden::{assert_close, set};
use occlude_vit::{DropPath, RegisterCoords};

const FEATURES: f64 = 2e-5;

type Change = fn(&mut CapiConfig);

#[test]
fn golden_capi_features() {
    let (Some(golden), Some(reference)) = (Golden::find(), set("capi").tensors("eval_forward")) else { return };
    let capi = golden.capi(&golden.capi_config(), DType::F32);
    let extractor = capi.extractor(Weights::Teacher);
    let mut compared = 0;
    for name in reference.keys().filter_map(|name| name.strip_suffix(".image")) {
        let features = extractor.features(&reference[&format!("{name}.image")]).unwrap();
        let (batch, _, dim) = features.patches.dims3().unwrap();
        let map = features.patches.reshape((batch, features.grid.rows, features.grid.cols, dim)).unwrap();
        let close = |what: &str, got: &Tensor| {
            let name = format!("{name}.{what}");
            assert_close(&name, got, &reference[&name], FEATURES);
        };
        close("feature_map", &map);
        close("global", &features.global.unwrap());
        match &features.registers {
            Some(registers) => close("registers", registers),
            None => assert_eq!(golden.config["n_registers"], 0, "{name}: registers are missing"),
        }
        compared += 1;
    }
    assert!(compared > 0, "the file holds images");
}

#[test]
fn golden_capi_features_of_an_earlier_block() {
    let (Some(golden), Some(reference)) = (Golden::find(), set("capi").tensors("eval_forward")) else { return };
    let mut compared = 0;
    for name in reference.keys().filter_map(|name| name.strip_suffix(".feature_map")) {
        let Some((layer, images)) = name.strip_prefix("out_layer").and_then(|rest| rest.split_once('.')) else {
            continue;
        };
        let mut config = golden.capi_config();
        config.encoder.out_layer = Some(layer.parse().unwrap());
        let capi = golden.capi(&config, DType::F32);
        let features = capi.extractor(Weights::Teacher).features(&reference[&format!("{images}.image")]).unwrap();
        let expected = &reference[&format!("{name}.feature_map")];
        assert_close(name, &features.patches.reshape(expected.dims()).unwrap(), expected, FEATURES);
        let global = format!("{name}.global");
        assert_close(&global, &features.global.unwrap(), &reference[&global], FEATURES);
        compared += 1;
    }
    assert!(compared > 0, "the file holds features of an earlier block");
}

#[test]
fn golden_capi_register_variants() {
    let (Some(golden), Some(reference)) = (Golden::find(), set("capi").tensors("eval_forward")) else { return };
    let variants: [(&str, Change); 3] = [
        ("no_registers", |config| config.encoder.registers = 0),
        ("registers_at_zero", |config| config.encoder.register_coords = RegisterCoords::Zeros),
        ("registers_unscaled", |config| config.encoder.scale_registers = false),
    ];
    let (images, mask) = (golden.images(DType::F32), golden.mask(0));
    for (name, change) in variants {
        let mut config = golden.capi_config();
        change(&mut config);
        let capi = golden.capi(&config, DType::F32);
        let network = capi.teacher();
        let encoded = network.encoder().forward(&images, Some(&mask.visible), &mut DropPath::off()).unwrap();
        let visible = format!("{name}.visible_patch_out");
        assert_close(&visible, &encoded.patches().unwrap(), &reference[&visible], FEATURES);
        let out = network.predictor().predict(network.encoder(), &images, &mask, &mut DropPath::off()).unwrap();
        let predictor = format!("{name}.predictor_out");
        assert_close(&predictor, &out, &reference[&predictor], FEATURES);
    }
}
