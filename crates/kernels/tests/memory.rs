//! What operators keep and take of memory, counted at the allocator.
#![allow(clippy::unwrap_used, unsafe_code)] // a test stops at the first surprise; an allocator is unsafe by its trait

use candle_core::{DType, Tensor, Var};
use occlude_kernels::check::sample;
use occlude_kernels::{
    Affine, BlockOptions, BlockWeights, NormWeights, RankRule, Visibility, attention, backward, block,
    joined_stream_block, soft_cross_entropy,
};
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Bytes in use, and the most that were in use since [`peak_of`] last set it back.
static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);
/// The counts are those of the whole process, so tests take turns.
static TURN: Mutex<()> = Mutex::new(());

struct Counting;

// SAFETY: every call goes to the system's allocator unchanged; counting touches no memory of the caller.
unsafe impl GlobalAlloc for Counting {
    // SAFETY: as the trait asks of the caller.
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        PEAK.fetch_max(LIVE.fetch_add(layout.size(), Relaxed) + layout.size(), Relaxed);
        // SAFETY: the caller's promise about `layout` is passed on.
        unsafe { System.alloc(layout) }
    }

    // SAFETY: as the trait asks of the caller.
    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Relaxed);
        // SAFETY: `memory` came from `alloc` above with this `layout`, so from the system's allocator.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The result of `f`, the bytes it left in use, and the most it had in use beyond those before it.
fn counted<R>(f: impl FnOnce() -> R) -> (R, usize, usize) {
    let before = LIVE.load(Relaxed);
    PEAK.store(before, Relaxed);
    let result = f();
    (result, LIVE.load(Relaxed) - before, PEAK.load(Relaxed) - before)
}

const ROWS: usize = 8 * 50;
const DIM: usize = 64;
const HIDDEN: usize = 4 * DIM;
/// Bytes of a stream of tokens.
const STREAM: usize = ROWS * DIM * size_of::<f32>();

fn var(seed: u64, shape: &[usize]) -> Tensor {
    Var::from_tensor(&sample(seed, shape).unwrap().to_dtype(DType::F32).unwrap()).unwrap().into_inner()
}

fn weights() -> BlockWeights {
    let norm = |seed| NormWeights { weight: var(seed, &[DIM]), bias: None, centred: false, eps: 1e-5 };
    let map = |seed, out, inner| Affine { weight: var(seed, &[out, inner]), bias: None };
    BlockWeights {
        norm1: norm(1),
        queries: map(2, DIM, DIM),
        keys: map(3, DIM, DIM),
        values: map(4, DIM, DIM),
        projection: map(5, DIM, DIM),
        norm2: norm(6),
        expand: map(7, HIDDEN, DIM),
        contract: map(8, DIM, HIDDEN),
    }
}

/// Bytes in use after a forward pass through three blocks, in streams of tokens.
fn kept_by(weights: &BlockWeights, recompute: bool) -> f64 {
    let x = var(9, &[8, 50, DIM]);
    let options = BlockOptions { recompute, ..BlockOptions::new(4) };
    let three = || (0..3).try_fold(x.clone(), |x, _| block(&x, None, weights, options.clone())).unwrap();
    drop(three()); // threads and their buffers come with the first use
    let (_held, left, _) = counted(three);
    left as f64 / STREAM as f64
}

#[test]
fn recomputing_blocks_keep_their_inputs_alone() {
    let _turn = TURN.lock();
    let weights = weights();
    let (kept, recomputed) = (kept_by(&weights, false), kept_by(&weights, true));
    // Three outputs; queries, keys, values, attended, the stream between the branches, and the hidden layer, four wide.
    assert!((kept - 3.0 * (1.0 + 5.0 + 4.0)).abs() < 1.0, "{kept}");
    assert!((recomputed - 3.0).abs() < 0.3, "{recomputed}");
    let untracked = kept_by(&weights.detach(), false);
    assert!(untracked > 20.0, "the input is a variable: {untracked}");
}

/// Bytes in use after a forward pass of two streams, 30 + 20 tokens, through three layers, in streams of all tokens.
fn kept_by_streams(weights: &BlockWeights, recompute: bool) -> f64 {
    let x = var(9, &[8, 50, DIM]);
    let options = BlockOptions { recompute, ..BlockOptions::new(4) };
    let three = || (0..3).try_fold(x.clone(), |x, _| joined_stream_block(&x, 30, weights, options.clone())).unwrap();
    drop(three());
    let (_held, left, _) = counted(three);
    left as f64 / STREAM as f64
}

#[test]
fn recomputing_streams_keep_their_inputs_alone() {
    let _turn = TURN.lock();
    let weights = weights();
    let (kept, recomputed) = (kept_by_streams(&weights, false), kept_by_streams(&weights, true));
    // As above, but keys and values of 30 tokens of 50.
    assert!((kept - 3.0 * (1.0 + 3.0 + 2.0 * 0.6 + 4.0)).abs() < 1.0, "{kept}");
    assert!((recomputed - 3.0).abs() < 0.3, "{recomputed}");
}

#[test]
fn nothing_is_kept_where_nothing_is_trained() {
    let _turn = TURN.lock();
    let (weights, x) = (weights().detach(), var(9, &[8, 50, DIM]).detach());
    let once = || block(&x, None, &weights, BlockOptions::new(4)).unwrap();
    drop(once());
    let (_output, left, _) = counted(once);
    assert!((left as f64 / STREAM as f64 - 1.0).abs() < 0.1, "{left}");
}

#[test]
fn cross_entropy_makes_no_second_copy_of_its_logits() {
    let _turn = TURN.lock();
    let (rows, classes) = (64, 4096);
    let logits = var(1, &[rows, classes]);
    let targets = sample(2, (rows, classes)).unwrap().to_dtype(DType::F32).unwrap();
    let loss = || soft_cross_entropy(&logits, &targets, 0.1).unwrap();
    drop(backward(&loss()).unwrap());
    let size = (rows * classes * size_of::<f32>()) as f64;
    let (loss, _, peak) = counted(loss);
    assert!((peak as f64) < 0.1 * size, "forward: {peak}");
    let (_gradients, _, peak) = counted(|| backward(&loss).unwrap());
    // The gradient of the logits; beside it candle's graph makes a tensor of zeros for the edge and the sum of the two.
    assert!((peak as f64) < 3.1 * size, "backward: {}", peak as f64 / size);
}

#[test]
fn attention_by_ranks_makes_no_table_of_pairs() {
    let _turn = TURN.lock();
    let tokens = 4096;
    let x = var(1, &[1, tokens, 16]);
    let ranks: Vec<u32> = (0..tokens as u32).rev().collect();
    let visibility = Visibility::Ranks { queries: ranks.clone(), keys: ranks, rule: RankRule::AtMost };
    let run = || attention(&x, &x, &x, 1, &visibility).unwrap().sum_all().unwrap();
    drop(backward(&run()).unwrap());
    let (loss, _, peak) = counted(run);
    // One byte for each pair of tokens; what is held are scores of a few queries and copies of the tokens.
    assert!(peak < tokens * tokens / 4, "forward: {peak}");
    let (_gradients, _, peak) = counted(|| backward(&loss).unwrap());
    assert!(peak < tokens * tokens / 3, "backward: {peak}");
}
