//! In which arithmetic the operators multiply f32 matrices: linear maps, attention and those of a block, forward and
//! backward. Inside attention an f32 is one bf16 or itself, never a sum of several.
//!
//! A [`Precision`] holds on one thread as long as its [`PrecisionScope`] lives. A weight of a block that was read more than once
//! in the last step is rounded and packed once in this one, for every product that reads it, and dropped with the last of as
//! many reads; another is packed for its product alone, so that a model whose weights are read once holds no second copy.
//!
//! Not here: the products themselves ([`crate::tiles`], and `gemm` for native f32); softmax, norms, losses and the
//! optimizer, which are f32 in every precision.

use crate::cpu::{Finish, Matrix, Real};
use crate::tiles::{Each, PackedB, Path, Plain, Refused, Right, Split, Store, Tiles};
use crate::{Error, Result};
use candle_core::{DType, Tensor};
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::fmt;
use std::marker::PhantomData;
use std::str::FromStr;
use std::sync::Arc;

/// How f32 operands of a matrix product are read. Sums are f32 always; f64 tensors are multiplied in f64 always.
///
/// Relative error (L2) of a product over 900 numbers against f64: 4e-7 in `F32`, 2.4e-3 in `Bf16`, 4e-6 in `F32x3`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Precision {
    /// As they are: the reference.
    #[default]
    F32,
    /// Rounded to bf16, where the processor multiplies bf16 (AMX or AVX512-BF16); elsewhere as [`Precision::F32`].
    Bf16,
    /// Each as the sum of two bf16, three products: near f32. Scores of attention and what they weigh are multiplied in f32. Only
    /// where bf16 products are three times as fast as f32 (AMX); elsewhere as [`Precision::F32`].
    F32x3,
}

impl Precision {
    /// Every precision, the reference first.
    pub const ALL: [Self; 3] = [Self::F32, Self::Bf16, Self::F32x3];

    /// As in settings: `f32`, `bf16`, `f32x3`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::F32x3 => "f32x3",
        }
    }

    /// What multiplies in this precision on this processor; `None`: native f32.
    #[must_use]
    pub fn tiles(self) -> Option<Tiles> {
        let (paths, split): (&[Path], _) = match self {
            Self::F32 => (&[], Split::One),
            Self::Bf16 => (&[Path::Amx, Path::Avx512Bf16], Split::One),
            Self::F32x3 => (&[Path::Amx], Split::Two),
        };
        paths.iter().find_map(|path| Tiles::new(*path, split).ok())
    }

    /// What this precision means on this processor, in words.
    #[must_use]
    pub fn explain(self) -> &'static str {
        match (self, self.tiles().map(Tiles::path)) {
            (Self::F32, _) => "f32",
            (Self::Bf16, Some(Path::Amx)) => "bf16, by AMX",
            (Self::Bf16, Some(_)) => "bf16, by AVX512-BF16",
            (Self::F32x3, Some(_)) => "f32x3, by AMX",
            (Self::Bf16, None) => "f32: this processor has no bf16 products",
            (Self::F32x3, None) => "f32: without AMX, f32x3 would be slower",
        }
    }

    /// Makes this the precision of this thread until the scope ends.
    pub fn scope(self) -> PrecisionScope {
        PrecisionScope::enter(self, self.tiles())
    }

    /// The precision that was asked for on this thread, whatever the processor makes of it.
    #[must_use]
    pub fn current() -> Self {
        ASKED.get()
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Precision {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let found = Self::ALL.into_iter().find(|precision| precision.name() == name);
        found.ok_or_else(|| Error::argument("precision", format!("`{name}`: there are `f32`, `bf16` and `f32x3`")))
    }
}

/// What multiplies on a thread, and what it has packed.
struct Active {
    tiles: Tiles,
    packed: HashMap<Key, Packed>,
}

/// Where a matrix lies and how it is read.
type Key = (*const f32, (usize, usize), bool);

struct Packed {
    /// Keeps the memory that the key points to.
    _weight: Tensor,
    packed: Arc<PackedB>,
}

/// How often each weight was read between two changes of the weights: in the last step, and so far in this one.
#[derive(Default)]
struct Reads {
    last: HashMap<Key, u32>,
    now: HashMap<Key, u32>,
}

impl Reads {
    /// Counts one; whether there will be more in this step, if it is like the last.
    fn count(&mut self, key: Key) -> bool {
        let now = self.now.entry(key).or_default();
        *now += 1;
        self.last.get(&key).is_some_and(|last| last > now)
    }

    fn next_step(&mut self) {
        if !self.now.is_empty() {
            self.last = std::mem::take(&mut self.now);
        }
    }
}

thread_local! {
    /// Outlives scopes, for a scope may be as short as a step.
    static READS: RefCell<Reads> = RefCell::default();
    /// `None`: native f32.
    static ACTIVE: RefCell<Option<Active>> = const { RefCell::new(None) };
    /// What the innermost scope was asked for.
    static ASKED: Cell<Precision> = const { Cell::new(Precision::F32) };
}

/// As long as it lives, products called on its thread have its precision, in forward and backward passes alike.
/// Scopes nest; the inner one must end first.
///
/// The weights of a block must not change meanwhile other than by [`crate::adamw_step`] and [`crate::assign`] on the same
/// thread.
#[must_use = "the precision ends with the scope"]
pub struct PrecisionScope {
    outer: Option<Active>,
    asked: Precision,
    /// The scope belongs to its thread.
    thread: PhantomData<*const ()>,
}

impl PrecisionScope {
    /// Products by these instructions, whatever the processor does best: for tests. [`Precision::current`] stays. Attention
    /// uses them where an f32 is one bf16, and multiplies f32 elsewhere.
    pub fn of(tiles: Option<Tiles>) -> Self {
        Self::enter(Precision::current(), tiles)
    }

    fn enter(asked: Precision, tiles: Option<Tiles>) -> Self {
        let active = tiles.map(|tiles| Active { tiles, packed: HashMap::new() });
        Self { outer: ACTIVE.replace(active), asked: ASKED.replace(asked), thread: PhantomData }
    }
}

impl Drop for PrecisionScope {
    fn drop(&mut self) {
        ACTIVE.set(self.outer.take());
        ASKED.set(self.asked);
        READS.with_borrow_mut(Reads::next_step);
    }
}

impl fmt::Debug for PrecisionScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PrecisionScope").finish_non_exhaustive()
    }
}

/// Weights have changed: what was packed is no longer theirs.
pub(crate) fn forget() {
    ACTIVE.with_borrow_mut(|active| active.iter_mut().for_each(|active| active.packed.clear()));
    READS.with_borrow_mut(Reads::next_step);
}

/// `a b`, finished, unless the product is native.
pub(crate) fn product<T: Real>(
    a: Matrix<'_, T>,
    b: Matrix<'_, T>,
    weight: Option<&Tensor>,
    finish: Option<&Finish<'_, T>>,
) -> Option<Vec<T>> {
    let tiles = tiles()?;
    let (left, right) = (a.singles()?, b.singles()?);
    let packed = weight.and_then(|weight| packed(tiles, right, weight));
    let right = packed.as_deref().map_or(Right::Matrix(right), Right::Packed);
    let done = match finish {
        Some(finish) => {
            let each = |row: usize, column: usize, c: &mut [f32]| {
                T::of_singles_mut(c).into_iter().for_each(|c| finish(row, column, c));
            };
            tiles.product_of(left, right, &Each(each))
        }
        None => tiles.product_of(left, right, &Plain),
    };
    T::vec_of_singles(fits(done))
}

/// Adds `a b` to `out`, unless the product is native. Whether it did.
pub(crate) fn add_product<T: Real>(out: &mut [T], a: Matrix<'_, T>, b: Matrix<'_, T>, weight: Option<&Tensor>) -> bool {
    let (Some(tiles), Some(left), Some(right)) = (tiles(), a.singles(), b.singles()) else { return false };
    let Some(c) = T::singles_mut(out) else { return false };
    let packed = weight.and_then(|weight| packed(tiles, right, weight));
    let right = packed.as_deref().map_or(Right::Matrix(right), Right::Packed);
    fits(tiles.product(left, right, c, Store::Add, &Plain));
    true
}

/// Operators have checked the shapes of their tensors, so nothing is refused here.
fn fits<R: fmt::Debug + Default>(done: std::result::Result<R, Refused>) -> R {
    assert!(done.is_ok(), "{done:?}");
    done.unwrap_or_default()
}

fn tiles() -> Option<Tiles> {
    ACTIVE.with_borrow(|active| active.as_ref().map(|active| active.tiles))
}

/// What multiplies inside attention on this thread; `None`: native code, also where an f32 is more than one bf16. Heads are
/// small: packing their operands in parts, for three products each, takes as long as products in f32 or longer.
pub(crate) fn attention_tiles<T: Real>() -> Option<Tiles> {
    tiles().filter(|tiles| T::DTYPE == DType::F32 && tiles.split() == Split::One)
}

/// `b`, whose elements are those of `weight`, packed now or before; `None` where packing it for one product is enough.
fn packed(tiles: Tiles, b: crate::tiles::Matrix<'_>, weight: &Tensor) -> Option<Arc<PackedB>> {
    let key = (b.start(), b.shape(), b.has_rows());
    let more = READS.with_borrow_mut(|reads| reads.count(key));
    let held = ACTIVE.with_borrow_mut(|active| active.as_mut()?.packed.remove(&key));
    if !more {
        return held.map(|held| held.packed);
    }
    let held = held.unwrap_or_else(|| Packed { _weight: weight.clone(), packed: Arc::new(tiles.pack(b)) });
    let packed = held.packed.clone();
    ACTIVE.with_borrow_mut(|active| active.as_mut().map(|active| active.packed.insert(key, held)));
    Some(packed)
}

#[cfg(test)]
mod tests {
    use super::{ACTIVE, Precision, PrecisionScope};
    use crate::check::{output_and_gradients, same_for_any_threads, sample};
    use crate::tiles::{Path, Split, Tiles};
    use crate::{
        AdamWStep, Affine, BlockOptions, BlockWeights, NormWeights, Result, adamw_step, assign, block, linear,
    };
    use candle_core::{DType, Device, Tensor, Var};

    fn portable(split: Split) -> PrecisionScope {
        PrecisionScope::of(Some(Tiles::new(Path::Scalar, split).unwrap()))
    }

    /// x, w, b, of no round sizes.
    fn inputs() -> Vec<Tensor> {
        vec![sample(1, (37, 90)).unwrap(), sample(2, (35, 90)).unwrap(), sample(3, 35).unwrap()]
    }

    fn run(dtype: DType, scope: impl FnOnce() -> Option<PrecisionScope>) -> Vec<Tensor> {
        let _scope = scope();
        output_and_gradients(&inputs(), dtype, |v| linear(&v[0], &v[1], Some(&v[2]))).unwrap()
    }

    /// Relative L2 distance.
    fn apart(got: &Tensor, exact: &Tensor) -> f64 {
        let flat = |x: &Tensor| x.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
        let (got, exact) = (flat(got), flat(exact));
        let off: f64 = got.iter().zip(&exact).map(|(a, b)| (a - b).powi(2)).sum();
        (off / exact.iter().map(|x| x * x).sum::<f64>()).sqrt()
    }

    #[test]
    fn operands_are_rounded_in_forward_and_backward_products() {
        let exact = run(DType::F64, || None);
        for (split, low, high) in [(Split::One, 2e-4, 5e-3), (Split::Two, 1e-8, 1e-5)] {
            let got = run(DType::F32, || Some(portable(split)));
            // Output, dx, dw; the gradient of the bias is a sum and no product.
            for (i, (got, exact)) in got.iter().zip(&exact).take(3).enumerate() {
                let error = apart(got, exact);
                assert!(error > low && error < high, "{split:?}, tensor {i}: {error}");
            }
            assert!(apart(&got[3], &exact[3]) < 1e-6);
        }
    }

    #[test]
    fn f64_and_other_threads_are_left_alone_and_scopes_nest() {
        let same = |a: &[Tensor], b: &[Tensor]| a.iter().zip(b).all(|(a, b)| apart(a, b) == 0.0);
        let (native, wide) = (run(DType::F32, || None), run(DType::F64, || None));
        let _outer = portable(Split::One);
        assert!(same(&run(DType::F64, || None), &wide));
        let rounded = run(DType::F32, || None);
        assert!(!same(&rounded, &native));
        assert!(same(&run(DType::F32, || Some(Precision::F32.scope())), &native), "the inner scope rules");
        assert!(same(&run(DType::F32, || None), &rounded), "and then the outer one");
        let elsewhere = std::thread::spawn(|| run(DType::F32, || None)).join().unwrap();
        assert!(same(&elsewhere, &native));
    }

    fn weights(tensors: &[Tensor]) -> BlockWeights {
        let norm = |i: usize| NormWeights { weight: tensors[i].clone(), bias: None, centred: false, eps: 1e-5 };
        let map = |i: usize| Affine { weight: tensors[i].clone(), bias: None };
        BlockWeights {
            norm1: norm(1),
            queries: map(3),
            keys: map(4),
            values: map(5),
            projection: map(6),
            norm2: norm(2),
            expand: map(7),
            contract: map(8),
        }
    }

    fn block_inputs() -> Vec<Tensor> {
        let shapes: [&[usize]; 9] =
            [&[3, 7, 16], &[16], &[16], &[16, 16], &[16, 16], &[16, 16], &[16, 16], &[40, 16], &[16, 40]];
        shapes.iter().enumerate().map(|(i, shape)| sample(i as u64 + 1, *shape).unwrap()).collect()
    }

    fn one_block(v: &[Tensor]) -> Result<Tensor> {
        block(&v[0], None, &weights(v), BlockOptions::new(2))
    }

    #[test]
    fn gradients_of_a_block_in_two_parts_are_near_f64() {
        let exact = output_and_gradients(&block_inputs(), DType::F64, one_block).unwrap();
        let rounded = |split| {
            let _scope = portable(split);
            output_and_gradients(&block_inputs(), DType::F32, one_block).unwrap()
        };
        for (i, (got, exact)) in rounded(Split::Two).iter().zip(&exact).enumerate() {
            assert!(apart(got, exact) < 5e-5, "tensor {i}: {}", apart(got, exact));
        }
        for (i, (got, exact)) in rounded(Split::One).iter().zip(&exact).enumerate() {
            assert!(apart(got, exact) < 3e-2, "tensor {i}: {}", apart(got, exact));
        }
    }

    #[test]
    fn a_weight_that_is_read_again_is_packed_once_for_either_direction() {
        let inputs: Vec<_> =
            block_inputs().iter().map(|x| Var::from_tensor(&x.to_dtype(DType::F32).unwrap()).unwrap()).collect();
        let tensors: Vec<Tensor> = inputs.iter().map(|var| var.as_tensor().clone()).collect();
        let held = || ACTIVE.with_borrow(|active| active.as_ref().map_or(0, |active| active.packed.len()));
        // What is held after each pass, forward and backward.
        let round = || {
            let loss = one_block(&tensors).and_then(|y| Ok(y.sum_all()?)).unwrap();
            let forward = held();
            crate::backward(&loss).unwrap();
            [forward, held()]
        };
        let step = |rounds: usize| {
            let _scope = portable(Split::One);
            (0..rounds).map(|_| round()).collect::<Vec<_>>()
        };
        let beside_teacher = || {
            let _scope = portable(Split::One);
            block(&tensors[0], None, &weights(&tensors).detach(), BlockOptions::new(2)).unwrap();
            (held(), round())
        };
        assert_eq!(step(1), [[0, 0]], "nothing is known");
        assert_eq!(step(1), [[0, 0]], "six maps are read once, in either direction");
        assert_eq!(step(2), [[0, 0]; 2]);
        assert_eq!(step(2), [[6, 12], [6, 0]], "twice, and dropped with the last read");
        assert_eq!(step(1), [[6, 12]]);
        assert_eq!(step(1), [[0, 0]], "and forgotten after a step");
        assert_eq!(beside_teacher(), (0, [0, 0]));
        assert_eq!(beside_teacher(), (6, [0, 0]), "a teacher of the same weights packs them for the student");
    }

    #[test]
    fn changed_weights_are_packed_again() {
        let f32 = |x: &Tensor| x.to_dtype(DType::F32).unwrap();
        let tensors: Vec<Tensor> =
            block_inputs().iter().map(|x| Var::from_tensor(&f32(x)).unwrap().into_inner()).collect();
        let fresh = || {
            let _scope = portable(Split::One);
            one_block(&tensors).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap()
        };
        let _scope = portable(Split::One);
        let read = |times: usize| {
            let all: Vec<_> = (0..times).map(|_| one_block(&tensors).unwrap()).collect();
            all[times - 1].flatten_all().unwrap().to_vec1::<f32>().unwrap()
        };
        let holds = || ACTIVE.with_borrow(|active| active.as_ref().is_some_and(|active| !active.packed.is_empty()));
        // Each step reads once less than the one before, so it keeps what it has packed.
        read(3);
        super::forget();
        let before = read(2);
        assert!(holds());
        assign(&tensors[7], &f32(&sample(70, (40, 16)).unwrap())).unwrap();
        let assigned = read(1);
        assert!(holds());
        assert!(assigned != before && assigned == fresh());
        let zeros = || Tensor::zeros((16, 40), DType::F32, &Device::Cpu).unwrap();
        let settings = AdamWStep {
            lr: 0.1,
            weight_decay: 0.0,
            beta1: 0.9,
            beta2: 0.99,
            eps: 1e-8,
            step: 1,
            grad_scale: 1.0,
            ema_momentum: None,
        };
        adamw_step(&tensors[8], &f32(&sample(71, (16, 40)).unwrap()), &zeros(), &zeros(), None, &settings).unwrap();
        let stepped = read(1);
        assert!(stepped != assigned && stepped == fresh());
    }

    #[test]
    fn threads_do_not_change_a_bit() {
        let run = || {
            let _scope = portable(Split::One);
            output_and_gradients(&block_inputs(), DType::F32, one_block)
        };
        same_for_any_threads(run).unwrap();
    }

    #[test]
    fn what_was_asked_for_is_known_on_its_thread() {
        let _outer = Precision::Bf16.scope();
        {
            let _inner = Precision::F32x3.scope();
            assert_eq!(Precision::current(), Precision::F32x3);
            let _tiles = portable(Split::One);
            assert_eq!(Precision::current(), Precision::F32x3, "instructions are no precision");
        }
        assert_eq!(Precision::current(), Precision::Bf16);
        assert_eq!(std::thread::spawn(Precision::current).join().unwrap(), Precision::F32);
    }

    #[test]
    fn names_are_read_and_explained() {
        for precision in Precision::ALL {
            assert_eq!(precision.to_string().parse::<Precision>().unwrap(), precision);
            let native = precision.tiles().is_none();
            assert_eq!(precision.explain().starts_with("f32:") || precision == Precision::F32, native, "{precision}");
        }
        let message = "half".parse::<Precision>().unwrap_err().to_string();
        assert_eq!(message, "precision: `half`: there are `f32`, `bf16` and `f32x3`");
    }
}
