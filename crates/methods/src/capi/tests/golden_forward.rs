//! Every intermediate value of one forward pass of teacher and student.

use super::{Golden, assert_number, indices, scalar};
use crate::capi::Network;
use candle_core::{DType, Tensor};
use occlude_golden::{Tensors, assert_close, set};
use occlude_kernels::{Visibility, attention, linear, position_encode, rms_norm};
use occlude_masking::BatchMask;
use occlude_tokenizers::SinkhornKind;
use occlude_vit::{Block, DropPath, NORM_EPS, Positions, final_norm};

const ACTIVATIONS: f64 = 2e-5;
const ASSIGNMENTS: f64 = 1e-4;

/// [batch, tokens, heads * n] -> [batch, heads, tokens, n], as the reference lays out queries and keys.
fn by_head(x: &Tensor, like: &Tensor) -> Tensor {
    let (batch, heads, tokens, n) = like.dims4().unwrap();
    x.reshape((batch, tokens, heads, n)).unwrap().transpose(1, 2).unwrap()
}

/// Heads of queries as the reference lays them out, [batch, heads, tokens, n].
fn heads_of(queries: &Tensor) -> usize {
    queries.dim(1).unwrap()
}

/// Queries, keys and output of the first attention of a stack.
fn check_attention(
    reference: &Tensors,
    prefix: &str,
    block: &Block,
    heads: usize,
    (x, positions): (&Tensor, &Positions),
    context: Option<(&Tensor, &Positions)>,
) {
    let (weights, table) = (block.weights(), block.table().unwrap());
    let normed = rms_norm(x, Some(&weights.norm1.weight), NORM_EPS).unwrap();
    let (context, context_positions) = context.unwrap_or((&normed, positions));
    let encoded = |x: &Tensor, weight: &Tensor, positions: &Positions| {
        let angles = positions.angles(table, None).unwrap();
        position_encode(&linear(x, weight, None).unwrap(), &angles, heads).unwrap()
    };
    let q = encoded(&normed, &weights.queries.weight, positions);
    let k = encoded(context, &weights.keys.weight, context_positions);
    let v = linear(context, &weights.values.weight, None).unwrap();
    let out = attention(&q, &k, &v, heads, &Visibility::All).unwrap();
    let out = linear(&out, &weights.projection.weight, None).unwrap();
    for (got, letter) in [(&q, "q"), (&k, "k")] {
        let name = format!("{prefix}.block0_rope.{letter}");
        assert_close(&name, &by_head(got, &reference[&name]), &reference[&name], ACTIVATIONS);
    }
    let name = format!("{prefix}.block0_attn_out");
    assert_close(&name, &out, &reference[&name], ACTIVATIONS);
}

/// The encoder, stage by stage.
fn check_encoder(reference: &Tensors, who: &str, network: &Network, images: &Tensor, visible: Option<&[u32]>) {
    let close = |name: &str, got: &Tensor| {
        let name = format!("{who}.{name}");
        assert_close(&name, got, &reference[&name], ACTIVATIONS);
    };
    let encoder = network.encoder();
    let (batch, grid) = (images.dim(0).unwrap(), encoder.grid(images).unwrap());
    let every = encoder.embed(images, None).unwrap(); // [batch, patches, dim]
    let map = every.transpose(1, 2).unwrap().reshape((batch, (), grid.rows, grid.cols)).unwrap();
    close("patch_embed_out", &map);
    let registers = encoder.settings().registers();
    let all = encoder.positions(grid, batch, None, &every).unwrap().coords().unwrap();
    close("coords_all", &all.narrow(1, registers, grid.count()).unwrap());
    let mut x = encoder.with_registers(&encoder.embed(images, visible).unwrap()).unwrap();
    close("tokens_in", &x);
    let positions = encoder.positions(grid, batch, visible, &x).unwrap();
    close("coords_in", &positions.coords().unwrap());
    let heads = heads_of(&reference[&format!("{who}.encoder.block0_rope.q")]);
    check_attention(reference, &format!("{who}.encoder"), &encoder.blocks()[0], heads, (&x, &positions), None);
    for (index, block) in encoder.blocks().iter().enumerate() {
        x = block.forward(&x, &positions, &mut DropPath::off()).unwrap();
        close(&format!("encoder.block{index}_out"), &x);
    }
    close("enc_norm_out", &final_norm(&x).unwrap());
}

/// The predictor, stage by stage.
fn check_predictor(reference: &Tensors, network: &Network, images: &Tensor, mask: &BatchMask) {
    let close = |name: &str, got: &Tensor| assert_close(name, got, &reference[name], ACTIVATIONS);
    let encoded = network.encoder().forward(images, Some(&mask.visible), &mut DropPath::off()).unwrap();
    close("student.visible_patch_out", &encoded.patches().unwrap());
    let mut x = network.predictor().queries(mask, &mask.predict).unwrap();
    let all = occlude_vit::patch_coords(mask.grid);
    let each: Vec<Vec<[f64; 2]>> = mask
        .predict
        .chunks(mask.predict_per_image)
        .map(|image| image.iter().map(|index| all[*index as usize % all.len()]).collect())
        .collect();
    let positions = Positions::each(&each, x.dtype(), x.device()).unwrap();
    let blocks = network.predictor().cross_blocks();
    let heads = heads_of(&reference["student.decoder.block0_rope.q"]);
    let context = Some((&encoded.context, &encoded.positions));
    check_attention(reference, "student.decoder", &blocks[0], heads, (&x, &positions), context);
    for (index, block) in blocks.iter().enumerate() {
        let off = &mut DropPath::off();
        x = block.attend(&x, &positions, &encoded.context, &encoded.positions, off).unwrap();
        close(&format!("student.decoder.block{index}_out"), &x);
    }
    close("student.dec_norm_out", &final_norm(&x).unwrap());
    let out = network.predictor().predict(network.encoder(), images, mask, &mut DropPath::off()).unwrap();
    close("student.predictor_out", &out);
    close("student.head_out", &network.head().forward(&out).unwrap());
}

#[test]
fn golden_capi_forward() {
    let (Some(golden), Some(reference)) = (Golden::find(), set("capi").tensors("forward")) else { return };
    let capi = golden.capi(&golden.capi_config(), DType::F32);
    let (images, mask) = (golden.images(DType::F32), golden.mask(0));
    check_encoder(&reference, "teacher", capi.teacher(), &images, None);
    check_encoder(&reference, "student", capi.student(), &images, Some(&mask.visible));
    check_predictor(&reference, capi.student(), &images, &mask);
    let seen = capi.teacher().encode(&images).unwrap();
    assert_close("teacher.patch_out", &seen, &reference["teacher.patch_out"], ACTIVATIONS);
    let clustering = capi.targets.clusters().unwrap();
    let name = "teacher.cluster_logits";
    assert_close(name, &clustering.scores(&seen).unwrap(), &reference[name], ACTIVATIONS);
    let name = "teacher.assignments";
    assert_close(name, &clustering.assignments(&seen).unwrap(), &reference[name], ASSIGNMENTS);
}

#[test]
fn golden_capi_standard_sinkhorn() {
    let (Some(golden), Some(reference)) = (Golden::find(), set("capi").tensors("forward")) else { return };
    let mut config = golden.capi_config();
    config.clustering.sinkhorn = SinkhornKind::Standard;
    let capi = golden.capi(&config, DType::F32);
    let (images, mask) = (golden.images(DType::F32), golden.mask(0));
    let clustering = capi.targets.clusters().unwrap();
    let seen = capi.teacher().encode(&images).unwrap();
    let name = "std_sk.assignments";
    assert_close(name, &clustering.assignments(&seen).unwrap(), &reference[name], ASSIGNMENTS);
    let assigned = clustering.assign(&seen, &mask.predict).unwrap();
    assert_close("std_sk.targets", &assigned.targets, &reference["std_sk.targets"], ASSIGNMENTS);
    let output = capi.step_with(&images, &mask, &mut DropPath::off()).unwrap();
    let losses: Vec<f64> = ["std_sk.capi_loss", "std_sk.clustering_loss"].map(|name| scalar(&reference[name])).to_vec();
    for ((name, got), expected) in output.losses.iter().zip(losses) {
        assert_number(name, *got, expected, 2e-6);
    }
    let weight = capi.clustering.get("teacher.head.layer.weight").unwrap();
    let name = "std_sk.grad.teacher.head.layer.weight";
    assert_close(name, output.gradients.get(weight).unwrap(), &reference[name], 5e-5);
}

#[test]
fn golden_capi_drop_path() {
    let (Some(golden), Some(reference)) = (Golden::find(), set("capi").tensors("droppath")) else { return };
    let capi = golden.capi(&golden.capi_config(), DType::F32);
    let images = reference["images"].clone();
    let batch = images.dim(0).unwrap();
    let grid = capi.student().encoder().grid(&images).unwrap();
    let (visible, predict) = (indices(&reference["visible_indices"]), indices(&reference["predict_indices"]));
    let mask = super::batch_mask(grid, batch, visible, predict);
    let branches = reference["kept_indices"].dim(0).unwrap();
    let kept: Vec<Vec<u32>> = (0..branches).map(|i| indices(&reference["kept_indices"].get(i).unwrap())).collect();

    let network = capi.student();
    let mut drop = DropPath::recorded(kept.clone());
    let encoded = network.encoder().forward(&images, Some(&mask.visible), &mut drop).unwrap();
    let name = "visible_patch_out";
    assert_close(name, &encoded.patches().unwrap(), &reference[name], 5e-5);
    let mut drop = DropPath::recorded(kept);
    let out = network.predictor().predict(network.encoder(), &images, &mask, &mut drop).unwrap();
    assert_close("predictor_out", &out, &reference["predictor_out"], 5e-5);

    let loss = (out * &reference["probe"]).unwrap().sum_all().unwrap();
    let gradients = occlude_kernels::backward(&loss).unwrap();
    let mut compared = 0;
    for (name, expected) in &reference {
        let Some(parameter) = name.strip_prefix("grad.") else { continue };
        let tensor = capi.trained.get(&format!("student.backbone.{parameter}")).unwrap();
        assert_close(name, gradients.get(tensor).unwrap(), expected, 5e-5);
        compared += 1;
    }
    assert!(compared > 0, "the file holds gradients");
}
