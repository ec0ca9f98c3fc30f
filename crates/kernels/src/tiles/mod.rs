//! Matrix products with bf16 operands and f32 sums, on the processor. No tensors and no devices: slices in, slices out.
//! [`Precision`](crate::Precision) chooses when the operators use it.
//!
//! ```
//! # use occlude_kernels::tiles::{Each, Matrix, Path, Split, Store, Tiles};
//! # fn main() -> Result<(), occlude_kernels::tiles::Refused> {
//! let (x, w) = (vec![0.5; 4 * 64], vec![0.25; 8 * 64]);
//! let doubled = Each(|_row, _column, c: &mut [f32]| c.iter_mut().for_each(|c| *c *= 2.0));
//! let tiles = Tiles::new(Path::best(), Split::One)?;
//! let weights = tiles.pack(Matrix::new(&w, 8, 64)?.t()); // once per step
//! let mut y = vec![0.0; 4 * 8];
//! tiles.product(Matrix::new(&x, 4, 64)?, &weights, &mut y, Store::Write, &doubled)?;
//! assert_eq!(y, [16.0; 32]);
//! # Ok(())
//! # }
//! ```
//!
//! Arithmetic. Each f32 is rounded to the nearest bf16, ties to even, or cut into two or three bf16 that sum to it
//! ([`Split`]); products are exact and summed in f32. NaN stays NaN. Denormal f32 count as zero on every path. With one
//! part infinities stay; with two or three an infinite operand gives NaN or infinity. A magnitude above 3.39e38 rounds
//! to infinity.
//!
//! Always: the same operands on every path, bit by bit; on one path, results that are bit-equal for any number of
//! threads, for packed and unpacked B, and for every form of strides.
//! Not: equal results on different paths. The order of a sum differs (`vdpbf16ps` adds one product after the other,
//! `tdpbf16ps` first sums up to 32 in two lanes), and those two flush denormal results where [`Path::Scalar`] keeps
//! them. Where all sums are exact, paths agree.
//!
//! Where it ran: every path on an Intel Xeon with AMX, [`Path::Scalar`] on AMD processors as well. On one that has
//! AVX512-BF16 and no tiles (AMD Zen 5) that path's speed is unknown. The tests run every path that the processor has,
//! and the tile code over arrays.
//!
//! One parallel level: an epilogue runs inside a task and must not start another product on the same threads.

mod amx;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod blocks;
mod epilogue;
mod lanes;
mod matrix;
mod pack;
mod path;
mod portable;
#[cfg(test)]
mod tests;

pub use blocks::Store;
pub use epilogue::{Each, Epilogue, Plain};
pub use matrix::{Matrix, Refused};
pub use pack::PackedB;
pub use path::Path;

use blocks::{Hands, Output};
use lanes::{Lanes, Line};
use std::cell::Cell;

/// How many bf16 stand for one f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Split {
    /// One: 8 bits of significand.
    One,
    /// Two, 16 bits: three products, all but that of the two small parts.
    Two,
    /// Three, 24 bits: six products, those that f32 can see.
    Three,
}

impl Split {
    fn parts(self) -> usize {
        match self {
            Self::One => 1,
            Self::Two => 2,
            Self::Three => 3,
        }
    }

    /// Which part of A meets which part of B, in an order in which steps share an operand.
    fn terms(self) -> &'static [(usize, usize)] {
        match self {
            Self::One => &[(0, 0)],
            Self::Two => &[(1, 0), (0, 0), (0, 1)],
            Self::Three => &[(2, 0), (1, 0), (1, 1), (0, 1), (0, 0), (0, 2)],
        }
    }
}

/// The right operand of a product.
#[derive(Clone, Copy, Debug)]
pub enum Right<'a> {
    /// Packed by the product, into memory that this thread keeps.
    Matrix(Matrix<'a>),
    /// Packed before.
    Packed(&'a PackedB),
}

impl<'a> From<Matrix<'a>> for Right<'a> {
    fn from(b: Matrix<'a>) -> Self {
        Self::Matrix(b)
    }
}

impl<'a> From<&'a PackedB> for Right<'a> {
    fn from(b: &'a PackedB) -> Self {
        Self::Packed(b)
    }
}

/// A path that this process can use, and a split.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tiles {
    path: Path,
    split: Split,
}

/// Runs the code with `$kernel` standing for the token of `$path`, which is available.
macro_rules! with_kernel {
    ($path:expr, $kernel:ident => $body:expr) => {{
        #[cfg(target_arch = "x86_64")]
        if let (Path::Amx, Some(lanes), Some(unit)) = ($path, avx512::Avx512::detect(), amx::Hardware::detect()) {
            let $kernel = amx::Tiled::new(lanes, unit);
            return $body;
        }
        #[cfg(target_arch = "x86_64")]
        if let (Path::Avx512Bf16, Some($kernel)) = ($path, avx512::Avx512::detect()) {
            return $body;
        }
        assert_eq!($path, Path::Scalar, "a path is available once and for all");
        if let Some($kernel) = portable::Portable::<true>::detect() {
            return $body;
        }
        let $kernel = portable::Portable::ANY;
        $body
    }};
}

impl Tiles {
    /// Refuses a path that this process cannot use: another one is never taken in its place.
    pub fn new(path: Path, split: Split) -> Result<Self, Refused> {
        if path.is_available() { Ok(Self { path, split }) } else { Err(Refused::Unavailable(path)) }
    }

    /// Which instructions multiply.
    pub fn path(self) -> Path {
        self.path
    }

    /// How many bf16 stand for one f32.
    pub fn split(self) -> Split {
        self.split
    }

    /// Rounds and orders B for many products. For x W^T pack `w.t()`, for dY W pack `w`.
    pub fn pack(self, b: Matrix<'_>) -> PackedB {
        let mut packed = PackedB::empty(self.split);
        packed.fill(self, b, Hands::Many);
        packed
    }

    /// Memory for [`PackedB::refill_here`]; nothing is packed yet.
    pub(crate) fn room(self) -> PackedB {
        PackedB::empty(self.split)
    }

    /// C = A B or C += A B, with C row-major and without gaps; then the epilogue.
    pub fn product<'b>(
        self,
        a: Matrix<'_>,
        b: impl Into<Right<'b>>,
        c: &mut [f32],
        store: Store,
        epilogue: &dyn Epilogue,
    ) -> Result<(), Refused> {
        match b.into() {
            Right::Packed(b) => self.product_packed(a, b, c, store, epilogue),
            Right::Matrix(b) => {
                check(a.shape(), b.shape(), c.len())?;
                self.with_packed(b, |b| self.product_packed(a, b, c, store, epilogue))
            }
        }
    }

    /// A B as a vector that is written once; then the epilogue.
    pub(crate) fn product_of<'b>(
        self,
        a: Matrix<'_>,
        b: impl Into<Right<'b>>,
        epilogue: &dyn Epilogue,
    ) -> Result<Vec<f32>, Refused> {
        match b.into() {
            Right::Packed(b) => self.product_of_packed(a, b, epilogue),
            Right::Matrix(b) => self.with_packed(b, |b| self.product_of_packed(a, b, epilogue)),
        }
    }

    fn product_of_packed(self, a: Matrix<'_>, b: &PackedB, epilogue: &dyn Epilogue) -> Result<Vec<f32>, Refused> {
        let shape = (a.shape().0, b.shape().1);
        check(a.shape(), b.shape(), shape.0 * shape.1)?;
        if b.split() != self.split {
            return Err(Refused::Packed);
        }
        let mut c = Vec::new();
        self.multiply(a, b, Output::spare(&mut c, shape), Store::Write, epilogue, Hands::Many);
        // SAFETY: there is room for so many elements, and a product that is written, not added, writes each of them.
        #[allow(unsafe_code)]
        unsafe {
            c.set_len(shape.0 * shape.1);
        }
        Ok(c)
    }

    /// Runs `f` on B, packed into memory that this thread keeps.
    fn with_packed<R>(self, b: Matrix<'_>, f: impl FnOnce(&PackedB) -> R) -> R {
        let mut packed = PackedB::with_memory(self.split, SPARE.take());
        packed.fill(self, b, Hands::Many);
        let done = f(&packed);
        SPARE.set(packed.into_memory(SPARE_LINES));
        done
    }

    fn product_packed(
        self,
        a: Matrix<'_>,
        b: &PackedB,
        c: &mut [f32],
        store: Store,
        epilogue: &dyn Epilogue,
    ) -> Result<(), Refused> {
        check(a.shape(), b.shape(), c.len())?;
        if b.split() != self.split {
            return Err(Refused::Packed);
        }
        self.multiply(a, b, Output::new(c, b.shape().1), store, epilogue, Hands::Many);
        Ok(())
    }

    /// C = A B or C += A B on this thread alone, where rows of C are `stride` apart: inside a parallel loop.
    pub(crate) fn multiply_here(
        self,
        a: Matrix<'_>,
        b: &PackedB,
        (c, stride): (&mut [f32], usize),
        store: Store,
    ) -> Result<(), Refused> {
        let ((rows, inner), (depth, columns)) = (a.shape(), b.shape());
        if inner != depth {
            return Err(Refused::Inner { a: a.shape(), b: b.shape() });
        }
        let fits = rows * columns == 0 || (columns <= stride && c.len() >= (rows - 1) * stride + columns);
        if !fits {
            return Err(Refused::Output { shape: (rows, columns), len: c.len() });
        }
        if b.split() != self.split {
            return Err(Refused::Packed);
        }
        self.multiply(a, b, Output::new(c, stride), store, &Plain, Hands::One);
        Ok(())
    }

    fn multiply(self, a: Matrix<'_>, b: &PackedB, c: Output<'_>, store: Store, epilogue: &dyn Epilogue, hands: Hands) {
        with_kernel!(self.path, kernel => blocks::product(kernel, a, b, c, store, epilogue, hands))
    }

    fn pack_panels(self, b: Matrix<'_>, first: usize, to: &mut [Line]) {
        let split = self.split;
        with_kernel!(self.path, lanes => lanes.enter(pack::Panels { lanes, b, split, first, to }))
    }
}

/// Packed memory beyond which a thread keeps none for its next product: 32 MiB, a head of 16,384 classes in two parts.
const SPARE_LINES: usize = 1 << 19;

thread_local! {
    /// Memory for an operand that the product packs itself.
    static SPARE: Cell<Vec<Line>> = const { Cell::new(Vec::new()) };
}

fn check(a: (usize, usize), b: (usize, usize), c: usize) -> Result<(), Refused> {
    if a.1 != b.0 {
        return Err(Refused::Inner { a, b });
    }
    let shape = (a.0, b.1);
    if shape.0.checked_mul(shape.1) == Some(c) { Ok(()) } else { Err(Refused::Output { shape, len: c }) }
}
