//! Masking rounds against the reference: token counts of many grids, and the second of two rounds from the first.
// clippy.toml frees test functions; helpers beside them need it said.
#![allow(clippy::unwrap_used)]

use occlude_golden::{Tensors, set};
use occlude_masking::{Grid, Round, RoundConfig, Rounds, RoundsConfig, kept_count};
use serde_json::Value;

fn ratios(of: &Value) -> Vec<RoundConfig> {
    let list = |name: &str| of[name].as_array().unwrap().iter().map(|ratio| ratio.as_f64().unwrap());
    list("mask_ratio")
        .zip(list("dec_mask_ratio"))
        .map(|(mask, decode_mask)| RoundConfig { mask, decode_mask })
        .collect()
}

/// The recorded permutations of every round under `prefix`.
fn recorded(tensors: &Tensors, prefix: &str) -> Vec<Vec<u32>> {
    let names = (1..).map(|round| format!("{prefix}r{round}.ids_shuffle"));
    let values = |name: String| Some(tensors.get(&name)?.flatten_all().unwrap().to_vec1::<i64>().unwrap());
    names.map_while(values).map(|ids| ids.into_iter().map(|id| u32::try_from(id).unwrap()).collect()).collect()
}

fn assert_counts(tensors: &Tensors, prefix: &str, rounds: &Rounds) {
    for (i, counts) in rounds.counts().iter().enumerate() {
        let of = |name: &str| tensors[&format!("{prefix}r{}.{name}", i + 1)].to_vec1::<i64>().unwrap()[0];
        assert_eq!((counts.keep as i64, counts.decode as i64), (of("len_keep"), of("len_dec")), "{prefix}{i}");
    }
}

#[test]
fn golden_moca_token_counts() {
    let Some(table) = set("moca").json("mask_counts.json") else { return };
    let count = |value: &Value| usize::try_from(value.as_u64().unwrap()).unwrap();
    let rows = table.as_array().unwrap();
    assert!(!rows.is_empty());
    for row in rows {
        let patches = count(&row["L"]);
        let cases = [
            ("round1", 0.55, 0.35),
            ("round2", 0.75, 0.55),
            ("single65", 0.65, 0.45),
            ("single55", 0.55, 0.35),
            ("single75", 0.75, 0.55),
            ("single80", 0.80, 0.60),
        ];
        for (name, mask, decode_mask) in cases {
            let expected = (count(&row[name]["keep"]), count(&row[name]["dec"]));
            let got = (kept_count(patches, mask), kept_count(patches, decode_mask));
            assert_eq!(got, expected, "{name} of {patches}");
        }
        assert_eq!(kept_count(patches, 0.0), count(&row["single65"]["dec_full"]));
    }
}

#[test]
fn golden_moca_second_round_from_the_first() {
    let set = set("moca");
    let (Some(inputs), Some(config)) = (set.tensors("step1_inputs"), set.config()) else { return };
    let patches = inputs["r1.ids_shuffle"].dims()[1];
    let side = patches.isqrt();
    let config = RoundsConfig { rounds: ratios(&config["masking"]), complementary: true };
    let rounds = config.check(Grid::new(side, side)).unwrap();
    assert_counts(&inputs, "", &rounds);
    let both = recorded(&inputs, "");
    assert_eq!(rounds.from_permutations(both.clone()).unwrap().len(), both.len());
    assert_eq!(rounds.complementary(), both.len() == 2);
    if rounds.complementary() {
        assert_eq!(second_of(&rounds, &both[0]), both[1], "the second round follows from the first");
    }
}

/// The second round of given first permutations.
fn second_of(rounds: &Rounds, first: &[u32]) -> Vec<u32> {
    let drawn: Vec<Round> = rounds.complemented(first.to_vec()).unwrap();
    drawn[1].ids().to_vec()
}

#[test]
fn golden_moca_counts_of_the_variants() {
    let set = set("moca");
    let (Some(record), Some(config)) = (set.tensors("variants"), set.config()) else { return };
    let Some(inputs) = set.tensors("step1_inputs") else { return };
    let side = inputs["r1.ids_shuffle"].dims()[1].isqrt();
    for (name, variant) in config["variants"].as_object().unwrap() {
        let of = if variant.get("mask_ratio").is_some() { variant } else { &config["masking"] };
        let rounds = RoundsConfig { rounds: ratios(of), complementary: true }.check(Grid::new(side, side)).unwrap();
        let prefix = format!("{name}/");
        assert_counts(&record, &prefix, &rounds);
        let ids = recorded(&record, &prefix);
        assert_eq!(rounds.from_permutations(ids.clone()).unwrap().len(), ids.len(), "{name}");
        assert_eq!(rounds.complementary(), ids.len() == 2);
        if rounds.complementary() {
            assert_eq!(second_of(&rounds, &ids[0]), ids[1], "{name}");
        }
    }
}
