//! Learning rates by depth, for fine-tuning.

use occlude_kernels::Factors;

/// Factors of a parameter of a plain encoder of `depth` blocks in fine-tuning: the learning rate falls by `decay` from block to
/// block, going down, so that early features move least. Class token, positions and patch embedding are the lowest
/// layer; what is no part of the encoder (a new norm, a head) has the full rate. Vectors, class token and positions are
/// not decayed. `name` as in official files, of a tensor with `rank` axes.
///
/// Source: MOCA, full fine-tuning (`decay` 0.65 for ViT-B).
#[must_use]
pub fn fine_tuning_factors(name: &str, rank: usize, depth: usize, decay: f64) -> Factors {
    let block = || name.strip_prefix("blocks.")?.split('.').next()?.parse::<usize>().ok();
    let table = matches!(name, "cls_token" | "pos_embed");
    let layer = match block() {
        Some(block) => 1 + block,
        None if table || name.starts_with("patch_embed.") => 0,
        None => depth + 1,
    };
    let above = (depth + 1).saturating_sub(layer);
    Factors { lr: decay.powi(above as i32), wd: if table || rank < 2 { 0.0 } else { 1.0 } }
}

#[cfg(test)]
mod tests {
    use super::fine_tuning_factors;

    #[test]
    fn golden_moca_groups_of_fine_tuning() {
        let Some(groups) = occlude_golden::set("moca").json("finetune_groups.json") else { return };
        let of = |name: &str, what: &str| groups[name][what].as_f64().unwrap();
        let names = groups.as_object().unwrap();
        let block = |name: &String| name.strip_prefix("blocks.")?.split('.').next()?.parse::<usize>().ok();
        let depth = 1 + names.keys().filter_map(block).max().unwrap();
        let decay = of(&format!("blocks.{}.norm1.weight", depth - 1), "lr_scale");
        for name in names.keys() {
            let matrix = name.ends_with(".weight") && !name.contains("norm");
            let rank = if matrix || name == "cls_token" || name == "pos_embed" { 2 } else { 1 };
            let got = fine_tuning_factors(name, rank, depth, decay);
            assert!((got.lr - of(name, "lr_scale")).abs() < 1e-12, "{name}: {}", got.lr);
            assert_eq!(got.wd * of("head.weight", "weight_decay"), of(name, "weight_decay"), "{name}");
        }
    }

    #[test]
    fn rates_fall_going_down() {
        let lr = |name| fine_tuning_factors(name, 2, 2, 0.5).lr;
        let names = ["head.weight", "blocks.1.mlp.fc1.weight", "blocks.0.attn.qkv.weight", "patch_embed.proj.weight"];
        assert_eq!(names.map(lr), [1.0, 0.5, 0.25, 0.125]);
        assert_eq!(fine_tuning_factors("blocks.0.norm1.bias", 1, 2, 0.5).wd, 0.0);
    }
}
