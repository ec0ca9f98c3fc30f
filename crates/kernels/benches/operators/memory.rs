//! Operators whose work is moving numbers, at sizes that no cache holds: 64 images of ViT-S, 197 tokens each.

use crate::table::{Table, Work};
use crate::{angles, plain, var};
use candle_core::Tensor;
use occlude_kernels::{
    AdamWStep, Result, adamw_step, gather_rows, gelu, global_norm, l2_normalize, layer_norm, mean_row_entropy,
    position_encode, rms_norm, scatter_add_rows, scatter_rows, sinkhorn, soft_cross_entropy, softmax, weight_norm,
};

const BATCH: usize = 64;
const TOKENS: usize = 197;
const DIM: usize = 384;
const HEADS: usize = 6;
const ROWS: usize = BATCH * TOKENS;
/// Every third row: about the share of patches that a masked encoder sees.
const SEEN: usize = ROWS / 3;
/// Prototypes of CAPI.
const CLASSES: usize = 16_384;
/// Rows of the scores, and positions and images of the assignments.
const SCORED: usize = 1024;
const POSITIONS: usize = 64;
/// Parameters of the optimizer's step.
const PARAMETERS: usize = 8 << 20;

pub(crate) fn all(table: &mut Table<'_>) {
    rowwise(table);
    moving(table);
    classes(table);
    optimizer(table);
}

/// Forward reads x and writes y; backward reads x and the gradient of y and writes that of x.
fn map<F: Fn(&Tensor) -> Result<Tensor> + Copy + 'static>(table: &mut Table<'_>, name: &str, shape: &[usize], op: F) {
    let count: usize = shape.iter().product();
    let name = format!("{name} {shape:?}");
    table.call(&name, "forward", Work::Numbers(2 * count), || {
        let x = plain(1, shape, 1.0);
        move || op(&x)
    });
    table.backward(&name, Work::Numbers(3 * count), || {
        let x = var(1, shape, 1.0);
        move || op(&x)
    });
}

fn rowwise(table: &mut Table<'_>) {
    let shape = [BATCH, TOKENS, DIM];
    map(table, "rms_norm", &shape, |x| rms_norm(x, None, 1e-5));
    map(table, "layer_norm", &shape, |x| layer_norm(x, None, None, 1e-5));
    let name = format!("rms_norm with weight {shape:?}");
    table.backward(&name, Work::Numbers(3 * ROWS * DIM), || {
        let (x, w) = (var(1, &shape, 1.0), var(2, &[DIM], 1.0));
        move || rms_norm(&x, Some(&w), 1e-5)
    });
    map(table, "gelu", &[ROWS, 4 * DIM], gelu);
    map(table, "softmax", &[ROWS, TOKENS], softmax);
    map(table, "l2_normalize", &[ROWS, DIM], |x| l2_normalize(x, 1e-7));
    let (name, count) = (format!("weight_norm [{CLASSES}, {DIM}]"), CLASSES * DIM);
    table.call(&name, "forward", Work::Numbers(2 * count), || {
        let (v, g) = (plain(1, &[CLASSES, DIM], 1.0), plain(2, &[CLASSES, 1], 1.0));
        move || weight_norm(&v, &g, 1e-8)
    });
    table.backward(&name, Work::Numbers(3 * count), || {
        let (v, g) = (var(1, &[CLASSES, DIM], 1.0), var(2, &[CLASSES, 1], 1.0));
        move || weight_norm(&v, &g, 1e-8)
    });
    // As in a step: the angles are made once, for all blocks.
    let (name, count) = (format!("position_encode {shape:?}, {HEADS} heads"), ROWS * DIM);
    table.call(&name, "forward", Work::Numbers(2 * count), || {
        let (x, angles) = (plain(1, &shape, 1.0), angles(BATCH, TOKENS, DIM / HEADS));
        move || position_encode(&x, &angles, HEADS)
    });
    table.backward(&name, Work::Numbers(2 * count), || {
        let (x, angles) = (var(1, &shape, 1.0), angles(BATCH, TOKENS, DIM / HEADS));
        move || position_encode(&x, &angles, HEADS)
    });
}

fn moving(table: &mut Table<'_>) {
    let index = || (0..SEEN as u32).map(|i| 3 * i).collect::<Vec<_>>();
    let (all, seen) = ([ROWS, DIM], [SEEN, DIM]);
    let name = format!("gather_rows {SEEN} of {all:?}");
    table.call(&name, "forward", Work::Numbers(2 * SEEN * DIM), || {
        let (x, index) = (plain(1, &all, 1.0), index());
        move || gather_rows(&x, &index)
    });
    table.backward(&name, Work::Numbers((SEEN + ROWS) * DIM), || {
        let (x, index) = (var(1, &all, 1.0), index());
        move || gather_rows(&x, &index)
    });
    // A copy of the base, and the rows read and written.
    let work = Work::Numbers(2 * (ROWS + SEEN) * DIM);
    let name = format!("scatter_rows {SEEN} into {all:?}");
    table.call(&name, "forward", work, || {
        let (base, src, index) = (plain(1, &all, 1.0), plain(2, &seen, 1.0), index());
        move || scatter_rows(&base, &index, &src)
    });
    table.backward(&name, work, || {
        let (base, src, index) = (var(1, &all, 1.0), var(2, &seen, 1.0), index());
        move || scatter_rows(&base, &index, &src)
    });
    let name = format!("scatter_add_rows {SEEN} into {all:?}");
    table.call(&name, "forward", work, || {
        let (base, src, index) = (plain(1, &all, 1.0), plain(2, &seen, 1.0), index());
        move || scatter_add_rows(&base, &index, &src, 1.25)
    });
    table.backward(&name, work, || {
        let (base, src, index) = (var(1, &all, 1.0), var(2, &seen, 1.0), index());
        move || scatter_add_rows(&base, &index, &src, 1.25)
    });
}

fn classes(table: &mut Table<'_>) {
    let (shape, count) = ([SCORED, CLASSES], SCORED * CLASSES);
    let targets = move || softmax(&plain(2, &shape, 1.0)).unwrap();
    let name = format!("soft_cross_entropy {shape:?}");
    table.call(&name, "forward", Work::Numbers(2 * count), || {
        let (logits, targets) = (plain(1, &shape, 1.0), targets());
        move || soft_cross_entropy(&logits, &targets, 0.12)
    });
    table.backward(&name, Work::Numbers(3 * count), || {
        let (logits, targets) = (var(1, &shape, 1.0), targets());
        move || soft_cross_entropy(&logits, &targets, 0.12)
    });
    table.call(&format!("mean_row_entropy {shape:?}"), "forward", Work::Numbers(count), || {
        let targets = targets();
        move || mean_row_entropy(&targets)
    });
    let shape = [POSITIONS, SCORED / POSITIONS, CLASSES];
    table.call(&format!("sinkhorn {shape:?}, 3 rounds"), "forward", Work::Numbers(2 * count), || {
        let logits = plain(1, &shape, 1.0);
        move || sinkhorn(&logits, 0.06, 3)
    });
}

fn optimizer(table: &mut Table<'_>) {
    let shape = [PARAMETERS];
    let settings = AdamWStep {
        lr: 1e-3,
        weight_decay: 0.1,
        beta1: 0.9,
        beta2: 0.95,
        eps: 1e-8,
        step: 10,
        grad_scale: 1.0,
        ema_momentum: Some(0.999),
    };
    // Five tensors read, four written; without the average four and three.
    for (name, average, touched) in [("adamw_step and average", true, 9), ("adamw_step", false, 7)] {
        table.call(&format!("{name} {shape:?}"), "in place", Work::Numbers(touched * PARAMETERS), || {
            let [param, gradient, m, v, ema] = [1, 2, 3, 4, 5].map(|seed| plain(seed, &shape, 1e-2));
            let v = v.sqr().unwrap();
            move || adamw_step(&param, &gradient, &m, &v, average.then_some(&ema), &settings)
        });
    }
    table.call(&format!("global_norm {shape:?}"), "forward", Work::Numbers(PARAMETERS), || {
        let gradient = plain(1, &shape, 1.0);
        move || global_norm([&gradient])
    });
}
