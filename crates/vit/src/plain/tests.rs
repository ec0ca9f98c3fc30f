//! The plain encoder: against the reference, on some patches and on other grids, its gradients and first values.

use super::{PlainVit, PlainVitConfig, Sights, patches_of};
use crate::{DropPath, sincos_table};
use candle_core::{D, DType, Device, Tensor};
use occlude_golden::{assert_close, relative_difference, set, with_split_attention};
use occlude_kernels::check::{check_parameters, sample, stir};
use occlude_kernels::{ParamStore, Role, StateDict};
use occlude_masking::Grid;
use occlude_random::Streams;

const ACTIVATIONS: f64 = 3e-5;
const TABLES: f64 = 1e-5;
const SIDE: usize = 12;

fn tiny(dtype: DType) -> (ParamStore, PlainVit) {
    let config = PlainVitConfig { dim: 8, depth: 2, heads: 2, patch: 4, mlp_ratio: 2.0, recompute: false };
    let mut store = ParamStore::trainable(Streams::new(5), dtype, &Device::Cpu);
    let vit = PlainVit::new(&mut store.root(), &config.check(SIDE).unwrap()).unwrap();
    (store, vit)
}

fn images(batch: usize, height: usize, width: usize) -> Tensor {
    sample(1, (batch, 3, height, width)).unwrap()
}

fn encode(vit: &PlainVit, images: &Tensor, visible: Option<&[u32]>) -> Tensor {
    vit.forward(images, visible, &[], &mut DropPath::off()).unwrap().tokens
}

#[test]
fn golden_moca_evaluated_encoder() {
    let set = set("moca");
    let (Some(state), Some(reference), Some(config)) = (set.tensors("state1"), set.tensors("evalvit"), set.config())
    else {
        return;
    };
    let model = |name: &str| usize::try_from(config["model"][name].as_u64().unwrap()).unwrap();
    let (depth, side) = (model("depth"), model("img_size"));
    let config = PlainVitConfig {
        dim: model("embed_dim"),
        depth,
        heads: model("num_heads"),
        patch: model("patch_size"),
        mlp_ratio: config["model_notes"]["mlp_ratio"].as_f64().unwrap(),
        recompute: false,
    };
    let mut store = ParamStore::frozen(Streams::new(0), DType::F32, &Device::Cpu);
    let vit = PlainVit::new(&mut store.root(), &config.check(side).unwrap()).unwrap();
    let strip = |(name, tensor): (String, Tensor)| Some((name.strip_prefix("encoder_teacher.")?.to_owned(), tensor));
    let teacher: StateDict = with_split_attention(state).into_iter().filter_map(strip).collect();
    assert_close("positions", store.get("pos_embed").unwrap(), &teacher["pos_embed"], TABLES);
    store.load(&teacher).unwrap();
    let seen = vit.forward(&reference["x"], None, &[depth, depth - 1], &mut DropPath::off()).unwrap();
    let close = |name: &str, got: &Tensor| assert_close(name, got, &reference[name], ACTIVATIONS);
    close("tokens", &seen.tokens);
    close("feature_cls", &seen.class().unwrap());
    close("feature_avg", &seen.patches().unwrap().mean(1).unwrap());
    close("last2_blocks_norm_tokens_0", &vit.norm().forward(&seen.tapped[1]).unwrap());
    close("last2_blocks_norm_tokens_1", &vit.norm().forward(&seen.tapped[0]).unwrap());
    close("feature_lowshot_prenorm_avg", &patches_of(&seen.tapped[0]).unwrap().mean(1).unwrap());
    let mut grids = 0;
    for (name, expected) in &reference {
        let Some((to, _)) = name.strip_prefix("pos_embed_grid").and_then(|rest| rest.split_once("_from_grid")) else {
            continue;
        };
        let to = to.parse().unwrap();
        let table = vit.table(Grid::new(to, to)).unwrap().unsqueeze(0).unwrap();
        assert_close(name, &table, expected, TABLES);
        grids += 1;
    }
    assert!(grids > 0);
}

#[test]
fn the_order_of_the_patches_is_that_of_the_tokens() {
    let (_, vit) = tiny(DType::F64);
    let images = images(2, SIDE, SIDE);
    let all = encode(&vit, &images, None);
    let listed: Vec<u32> = (0..18).collect();
    let same = encode(&vit, &images, Some(&listed));
    assert_eq!(all.to_vec3::<f64>().unwrap(), same.to_vec3::<f64>().unwrap());
    let (some, turned) = ([4_u32, 0, 7, 9, 17, 12], [7_u32, 4, 0, 12, 9, 17]);
    let (some, turned) = (encode(&vit, &images, Some(&some)), encode(&vit, &images, Some(&turned)));
    let row = |tokens: &Tensor, image: usize, at: usize| tokens.get(image).unwrap().get(at).unwrap();
    for (image, pairs) in [(0, [(0, 0), (1, 2), (2, 3), (3, 1)]), (1, [(0, 0), (1, 2), (2, 3), (3, 1)])] {
        for (a, b) in pairs {
            let (a, b) = (row(&some, image, a), row(&turned, image, b));
            assert!(relative_difference(&a, &b) < 1e-12);
        }
    }
}

#[test]
fn hidden_patches_do_not_count() {
    let (_, vit) = tiny(DType::F64);
    let images = images(1, SIDE, SIDE);
    let visible = [4_u32, 8, 0];
    // Patch 1 is the second of the first row.
    let mut pixels = images.flatten_all().unwrap().to_vec1::<f64>().unwrap();
    pixels[4..8].fill(9.0);
    let other = Tensor::from_vec(pixels, images.shape(), &Device::Cpu).unwrap();
    let tokens = |images: &Tensor, visible| encode(&vit, images, visible).to_vec3::<f64>().unwrap();
    assert_eq!(tokens(&images, Some(&visible)), tokens(&other, Some(&visible)));
    assert_ne!(tokens(&images, None), tokens(&other, None));
}

#[test]
fn taps_are_raw_and_come_as_asked() {
    let (store, vit) = tiny(DType::F64);
    let images = images(2, SIDE, SIDE);
    let seen = vit.forward(&images, None, &[2, 1, 2], &mut DropPath::off()).unwrap();
    let [last, first, again] = seen.tapped.as_slice() else { panic!("three taps") };
    let next = vit.blocks()[1].mix(first, &mut DropPath::off()).unwrap();
    for got in [last, again] {
        assert_eq!(got.to_vec3::<f64>().unwrap(), next.to_vec3::<f64>().unwrap());
    }
    let normed = vit.norm().forward(last).unwrap();
    assert_eq!(seen.tokens.to_vec3::<f64>().unwrap(), normed.to_vec3::<f64>().unwrap());
    let mean = seen.tokens.mean(D::Minus1).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f64>().unwrap();
    assert!(mean < 1e-12 && store.get("norm.bias").is_some(), "weights are ones at first: {mean}");
}

#[test]
fn other_grids_have_positions_of_their_own() {
    let (_, vit) = tiny(DType::F64);
    assert_eq!(encode(&vit, &images(1, 20, 8), None).dims(), [1, 11, 8]);
    let table = vit.table(Grid::new(3, 3)).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
    assert_eq!(table, sincos_table(8, Grid::new(3, 3), true).unwrap());
    let resized = vit.table(Grid::new(5, 2)).unwrap();
    assert_eq!(resized.get(0).unwrap().to_vec1::<f64>().unwrap(), [0.0; 8]);
}

/// The keys' bias moves all scores of a query alike.
fn is_still(name: &str) -> bool {
    name.ends_with("k.bias")
}

#[test]
fn gradients_are_those_of_differences() {
    let (store, vit) = tiny(DType::F64);
    stir(&store, 0.3).unwrap();
    let (images, visible) = (images(2, SIDE, SIDE), [4_u32, 0, 7, 9, 17, 12]);
    check_parameters(&store, is_still, || {
        let seen = vit.forward(&images, Some(&visible), &[1], &mut DropPath::off())?;
        let both = (seen.tokens * &seen.tapped[0])?;
        Ok((both * sample(77, (2, 4, 8))?)?.sum_all()?)
    })
    .unwrap();
}

fn patches_only() -> (ParamStore, PlainVit) {
    let config = PlainVitConfig { dim: 8, depth: 2, heads: 2, patch: 4, mlp_ratio: 2.0, recompute: false };
    let mut store = ParamStore::trainable(Streams::new(5), DType::F64, &Device::Cpu);
    let vit = PlainVit::new(&mut store.root(), &config.check(SIDE).unwrap().patches_only()).unwrap();
    stir(&store, 0.3).unwrap();
    (store, vit)
}

/// Ranks of nine patches of two images: four segments and three.
const RANKS: [u32; 18] = [2, 0, 0, 3, 1, 1, 2, 0, 3, 1, 1, 1, 0, 2, 2, 0, 0, 2];

#[test]
fn without_a_class_token_there_are_patches_alone() {
    let (store, vit) = patches_only();
    assert!(store.get("cls_token").is_none());
    assert_eq!(store.get("pos_embed").unwrap().dims(), [1, 9, 8]);
    assert_eq!((vit.leading(), encode(&vit, &images(2, SIDE, SIDE), None).dims()), (0, &[2, 9, 8][..]));
    assert_eq!(encode(&vit, &images(1, 20, 8), None).dims(), [1, 10, 8], "another grid");
    let seen = vit.forward(&images(2, SIDE, SIDE), None, &[], &mut DropPath::off()).unwrap();
    assert_eq!(seen.patches().unwrap().dims(), [2, 9, 8]);
    assert!(seen.class().unwrap_err().to_string().contains("no class token"));
    let mut store = ParamStore::trainable(Streams::new(5), DType::F64, &Device::Cpu);
    let config = PlainVitConfig { dim: 8, heads: 2, patch: 4, ..PlainVitConfig::default() };
    PlainVit::new(&mut store.root(), &config.check(SIDE).unwrap().patches_only()).unwrap();
    assert_eq!(store.get("patch_embed.proj.bias").unwrap().to_vec1::<f64>().unwrap(), [0.0; 8]);
}

#[test]
fn an_order_without_limits_is_none() {
    let (_, vit) = patches_only();
    let images = images(2, SIDE, SIDE);
    let seen = vit.forward_in_order(&images, &Sights::of(&[0; 18], 9), &[]).unwrap().tokens;
    assert!(relative_difference(&seen, &encode(&vit, &images, None)) < 1e-12, "one segment sees itself whole");
    let (_, with_class) = tiny(DType::F64);
    let error = with_class.forward_in_order(&images, &Sights::of(&RANKS, 9), &[]).unwrap_err().to_string();
    assert!(error.contains("class token"), "{error}");
    assert!(vit.forward_in_order(&images, &Sights::of(&RANKS[..12], 6), &[]).is_err(), "ranks of other patches");
}

#[test]
fn gradients_of_both_streams_are_those_of_differences() {
    let (store, vit) = patches_only();
    let (images, sights) = (images(2, SIDE, SIDE), Sights::of(&RANKS, 9));
    check_parameters(&store, is_still, || {
        let seen = vit.forward_in_order(&images, &sights, &[1])?;
        let both = (seen.tokens + &seen.tapped[0])?;
        Ok((both * sample(78, (2, 9, 8))?)?.sum_all()?)
    })
    .unwrap();
    let said = || -> occlude_kernels::Result<Tensor> {
        Ok((vit.query_stream(&images, &sights)? * sample(79, (2, 9, 8))?)?.sum_all()?)
    };
    check_parameters(&store, is_still, said).unwrap();
}

#[test]
fn the_query_stream_is_that_of_single_blocks() {
    let (_, vit) = patches_only();
    let (images, sights) = (images(2, SIDE, SIDE), Sights::of(&RANKS, 9));
    let mut content = vit.embed(&images, Grid::new(3, 3), None).unwrap();
    let mut query = vit.table(Grid::new(3, 3)).unwrap().broadcast_as((2, 9, 8)).unwrap().contiguous().unwrap();
    let off = &mut DropPath::off();
    for block in vit.blocks() {
        query = block.last_stream(&content, &query, sights.memory.clone(), off).unwrap();
        content = block.mix_seeing(&content, sights.content.clone(), off).unwrap();
    }
    let expected = vit.norm().forward(&query).unwrap();
    assert!(relative_difference(&vit.query_stream(&images, &sights).unwrap(), &expected) < 1e-12);
}

#[test]
fn names_decay_and_first_values() {
    let (store, _) = tiny(DType::F32);
    let names: Vec<&str> = store.params().iter().map(|param| param.name.as_str()).collect();
    let first = ["cls_token", "pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias", "blocks.0.norm1.weight"];
    assert!(names.starts_with(&first) && names.ends_with(&["norm.weight", "norm.bias"]), "{names:?}");
    for name in ["attn.q.weight", "attn.k.bias", "attn.v.weight", "attn.proj.bias", "mlp.fc1.weight", "mlp.fc2.bias"] {
        assert!(names.contains(&format!("blocks.1.{name}").as_str()), "{name}");
    }
    for param in store.params() {
        let values: Vec<f64> = param.tensor.flatten_all().unwrap().to_dtype(DType::F64).unwrap().to_vec1().unwrap();
        let largest = values.iter().fold(0.0_f64, |most, v| most.max(v.abs()));
        let Role::Trained(factors) = param.role else {
            assert_eq!(param.name, "pos_embed");
            continue;
        };
        assert_eq!((factors.lr, factors.wd), (1.0, f64::from(u8::from(param.tensor.rank() > 1))), "{}", param.name);
        let (expected, least) = match (param.name.as_str(), param.tensor.dims()) {
            ("cls_token", _) => (0.1, 0.0), // five deviations
            ("patch_embed.proj.weight", _) => ((6.0_f64 / 56.0).sqrt(), 0.9),
            ("patch_embed.proj.bias", _) => (1.0 / 48_f64.sqrt(), 0.5),
            (name, [rows, columns]) if [".q.", ".k.", ".v."].iter().any(|third| name.contains(third)) => {
                ((6.0 / (3 * rows + columns) as f64).sqrt(), 0.8)
            }
            (_, [rows, columns]) => ((6.0 / (rows + columns) as f64).sqrt(), 0.8),
            (name, _) if name.ends_with("weight") => (1.0, 1.0),
            _ => (0.0, 0.0),
        };
        assert!(largest <= expected && largest >= least * expected, "{}: {largest} of {expected}", param.name);
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let (_, vit) = tiny(DType::F64);
    let images = images(2, SIDE, SIDE);
    let refused = |visible: &[u32], taps: &[usize]| {
        vit.forward(&images, Some(visible), taps, &mut DropPath::off()).unwrap_err().to_string()
    };
    for unequal in [&[0_u32, 1, 9][..], &[0, 9, 10, 1], &[9, 0], &[]] {
        assert!(refused(unequal, &[]).contains("equally many"), "{unequal:?}");
    }
    assert!(refused(&[0, 18], &[]).contains("patch 18"));
    for tap in [0, 3] {
        assert!(refused(&[0, 9], &[tap]).contains(&format!("block {tap} of 2")));
    }
}
