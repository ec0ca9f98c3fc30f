//! The divergence against the reference: recorded logits and assignments, for every round and view.
// clippy.toml frees test functions; helpers beside them need it said.
#![allow(clippy::unwrap_used)]

use candle_core::Tensor;
use occlude_golden::{Tensors, assert_close, set};
use occlude_losses::kl_divergence;

const LOSSES: f64 = 1e-5;

/// The mean over all rows, and over those of each view, which are halves.
fn assert_losses(record: &Tensors, name: &str, logits: &Tensor, targets: &Tensor) {
    let half = logits.dims()[0] / 2;
    let mean = |start: usize, count: usize| {
        let rows = |t: &Tensor| t.narrow(0, start, count).unwrap();
        kl_divergence(&rows(logits), &rows(targets), 1.0).unwrap().unsqueeze(0).unwrap()
    };
    assert_close(name, &mean(0, 2 * half), &record[name], LOSSES);
    let views = Tensor::cat(&[mean(0, half), mean(half, half)], 0).unwrap();
    assert_close(name, &views, &record[&format!("{name}_per_view")], LOSSES);
}

#[test]
fn golden_moca_losses_of_every_round_and_view() {
    let Some(record) = set("moca").tensors("step1_record") else { return };
    let both = |first: &str, second: &str| Tensor::cat(&[&record[first], &record[second]], 0).unwrap();
    let images = both("bow_x2", "bow_x1"); // Crossed: [rows, words]
    let patches = both("codes_x1", "codes_x2"); // [rows, patches, words]
    let (rows, words) = (patches.dims()[0], patches.dims()[2]);
    let mut rounds = 0;
    while let Some(ids) = record.get(&format!("r{}.ids_decoded", rounds + 1)) {
        rounds += 1;
        let of = |name: &str| format!("r{rounds}.{name}");
        assert_losses(&record, &of("loss_img"), &record[&of("logits_img")], &images);
        let count = ids.dims()[1];
        let index = ids.unsqueeze(2).unwrap().broadcast_as((rows, count, words)).unwrap().contiguous().unwrap();
        let targets = patches.gather(&index, 1).unwrap().reshape((rows * count, words)).unwrap();
        assert_losses(&record, &of("loss_loc"), &record[&of("logits_loc")], &targets);
    }
    assert!(rounds > 0);
}
