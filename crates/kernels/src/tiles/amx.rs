//! Multiplying with tile registers: 32 x 32 of C in four, two of A, two of B, each 16 rows of 64 bytes.
//!
//! What the tiles do is behind [`Unit`], so that tests can run the same code over arrays.

#![allow(unsafe_code)]

use super::lanes::{DEPTH, Job, Kernel, Lanes, Line, Operands, PAIRS, Tile, WIDTH};
use super::matrix::Matrix;
use super::pack;
use std::ops::Range;

/// Bytes from one row of a tile of A or B to the next.
const LINE: usize = size_of::<Line>();

/// The tile registers of this thread, named by number.
pub(super) trait Unit: Copy + Send + Sync {
    /// Gives all eight the shape 16 x 64 bytes.
    fn configure(self);
    /// Forgets shape and content.
    fn release(self);
    fn zero<const T: usize>(self);
    /// # Safety
    /// 64 bytes can be read at `from + r * stride` for r below 16; the tiles are configured.
    unsafe fn load<const T: usize>(self, from: *const u8, stride: usize);
    /// # Safety
    /// As for `load`, for writing.
    unsafe fn store<const T: usize>(self, to: *mut u8, stride: usize);
    /// Adds to tile `C` the product of tile `A` and tile `B` (pairs of rows zipped).
    fn multiply<const C: usize, const A: usize, const B: usize>(self);
}

/// Packing by `L`, multiplying by `U`.
#[derive(Clone, Copy)]
pub(super) struct Tiled<L, U> {
    lanes: L,
    unit: U,
}

impl<L: Lanes, U: Unit> Tiled<L, U> {
    pub(super) fn new(lanes: L, unit: U) -> Self {
        Self { lanes, unit }
    }
}

impl<L: Lanes, U: Unit> Lanes for Tiled<L, U> {
    type Vector = L::Vector;

    #[inline(always)]
    fn enter(self, job: impl Job) {
        self.lanes.enter(job);
    }
    #[inline(always)]
    fn load(self, values: &[f32]) -> L::Vector {
        self.lanes.load(values)
    }
    #[inline(always)]
    fn rest(self, x: L::Vector) -> L::Vector {
        self.lanes.rest(x)
    }
    #[inline(always)]
    fn in_order(self, low: L::Vector, high: L::Vector) -> Line {
        self.lanes.in_order(low, high)
    }
    #[inline(always)]
    fn zipped(self, first: L::Vector, second: L::Vector) -> Line {
        self.lanes.zipped(first, second)
    }
    #[inline(always)]
    fn transpose(self, from: &[Line; PAIRS], to: &mut [Line; PAIRS]) {
        self.lanes.transpose(from, to);
    }
}

/// Releases the tiles however the session ends.
struct Session<U: Unit>(U);

impl<U: Unit> Drop for Session<U> {
    fn drop(&mut self) {
        self.0.release();
    }
}

impl<L: Lanes, U: Unit> Kernel for Tiled<L, U> {
    const ROWS: usize = 2 * PAIRS;
    const GROUP: usize = PAIRS;

    #[inline(always)]
    fn pack<const P: usize>(self, a: Matrix<'_>, rows: Range<usize>, block: &Range<usize>, to: &mut [Line]) {
        pack::rows::<Self, P, PAIRS>(self, a, rows, block, to);
    }

    #[inline(always)]
    fn session(self, job: impl Job) {
        self.unit.configure();
        let _session = Session(self.unit);
        self.enter(job);
    }

    #[inline(always)]
    fn tile(self, operands: Operands<'_>, mut c: Tile<'_>) {
        // Whole tiles are read: rows that C lacks are multiplied too, and left behind.
        operands.check(2, PAIRS);
        if (c.rows(), c.columns()) == (Self::ROWS, WIDTH) {
            let (start, stride, add) = (c.at(0), c.stride(), c.add);
            // SAFETY: `check` passed; C has 32 rows of 32 columns.
            return unsafe { self.square(&operands, start, stride, add) };
        }
        let (add, columns) = (c.add, c.columns());
        let mut whole = Whole([[0.0; WIDTH]; 2 * PAIRS]);
        if add {
            (0..c.rows()).for_each(|row| whole.0[row][..columns].copy_from_slice(c.row(row)));
        }
        // SAFETY: `check` passed; `whole` has 32 rows of 32 columns.
        unsafe { self.square(&operands, whole.0.as_mut_ptr().cast(), WIDTH, add) };
        (0..c.rows()).for_each(|row| c.write(row, 0, &whole.0[row][..columns]));
    }
}

/// A tile of C at the edge, with what lies beyond.
#[repr(align(64))]
struct Whole([[f32; WIDTH]; 2 * PAIRS]);

impl<L: Lanes, U: Unit> Tiled<L, U> {
    /// # Safety
    /// `operands.check(2, PAIRS)` passed, and 32 floats can be read and written at `c + r * stride` for r below 32.
    #[inline(always)]
    unsafe fn square(self, operands: &Operands<'_>, c: *mut f32, stride: usize, add: bool) {
        let (unit, bytes) = (self.unit, stride * size_of::<f32>());
        let corner = |down: usize, right: usize| c.wrapping_add(down * PAIRS * stride + right * PAIRS).cast::<u8>();
        if add {
            // SAFETY: the four corners are the 32 x 32 floats of the contract.
            unsafe {
                unit.load::<0>(corner(0, 0), bytes);
                unit.load::<1>(corner(0, 1), bytes);
                unit.load::<2>(corner(1, 0), bytes);
                unit.load::<3>(corner(1, 1), bytes);
            }
        } else {
            unit.zero::<0>();
            unit.zero::<1>();
            unit.zero::<2>();
            unit.zero::<3>();
        }
        for line in 0..operands.lines {
            let (mut left, mut right) = (usize::MAX, usize::MAX);
            for &(a, b) in operands.split.terms() {
                // SAFETY: `check` found two groups of A and a panel of B, with this line in each part.
                unsafe {
                    if left != a {
                        self.left(operands, a, line);
                    }
                    if right != b {
                        self.right(operands, b, line);
                    }
                }
                (left, right) = (a, b);
                unit.multiply::<0, 4, 6>();
                unit.multiply::<1, 4, 7>();
                unit.multiply::<2, 5, 6>();
                unit.multiply::<3, 5, 7>();
            }
        }
        // SAFETY: as for the loads.
        unsafe {
            unit.store::<0>(corner(0, 0), bytes);
            unit.store::<1>(corner(0, 1), bytes);
            unit.store::<2>(corner(1, 0), bytes);
            unit.store::<3>(corner(1, 1), bytes);
        }
    }
    /// Tiles 4 and 5: this line of 32 rows of A.
    ///
    /// # Safety
    /// `operands.check(2, PAIRS)` passed; the part and the line are among those of the operands.
    #[inline(always)]
    unsafe fn left(self, operands: &Operands<'_>, part: usize, line: usize) {
        let first = operands.a.as_ptr().wrapping_add((part * operands.lines + line) * PAIRS);
        let second = first.wrapping_add(operands.group(PAIRS));
        // SAFETY: the contract's.
        unsafe {
            self.unit.load::<4>(first.cast(), LINE);
            self.unit.load::<5>(second.cast(), LINE);
        }
    }

    /// Tiles 6 and 7: the pairs of this line, of 32 columns of B.
    ///
    /// # Safety
    /// As for [`Self::left`].
    #[inline(always)]
    unsafe fn right(self, operands: &Operands<'_>, part: usize, line: usize) {
        let first = operands.b.as_ptr().wrapping_add((part * operands.lines + line) * DEPTH);
        // SAFETY: the contract's.
        unsafe {
            self.unit.load::<6>(first.cast(), LINE);
            self.unit.load::<7>(first.wrapping_add(PAIRS).cast(), LINE);
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod hardware {
    use super::Unit;
    use crate::tiles::path::Path;
    use std::arch::asm;

    /// Proof that this process may use the tile registers: every SAFETY note below means this. The compiler knows
    /// nothing of them, so their content lasts from one block of assembly to the next.
    #[derive(Clone, Copy)]
    pub(in crate::tiles) struct Hardware(());

    impl Hardware {
        pub(in crate::tiles) fn detect() -> Option<Self> {
            Path::Amx.is_available().then_some(Self(()))
        }
    }

    /// The operand of `ldtilecfg`: palette 1, and for eight tiles 64 bytes in a row and 16 rows.
    #[repr(C, align(64))]
    struct Config {
        palette: u8,
        start_row: u8,
        reserved: [u8; 14],
        row_bytes: [u16; 16],
        rows: [u8; 16],
    }

    const CONFIG: Config = {
        let (mut row_bytes, mut rows) = ([0; 16], [0; 16]);
        let mut tile = 0;
        while tile < 8 {
            (row_bytes[tile], rows[tile]) = (64, 16);
            tile += 1;
        }
        Config { palette: 1, start_row: 0, reserved: [0; 14], row_bytes, rows }
    };

    impl Unit for Hardware {
        #[inline(always)]
        fn configure(self) {
            static SHAPE: Config = CONFIG;
            // SAFETY: the token's; 64 bytes are read.
            unsafe { asm!("ldtilecfg [{}]", in(reg) &SHAPE, options(nostack, preserves_flags, readonly)) }
        }

        #[inline(always)]
        fn release(self) {
            // SAFETY: the token's.
            unsafe { asm!("tilerelease", options(nostack, preserves_flags, nomem)) }
        }

        #[inline(always)]
        fn zero<const T: usize>(self) {
            // SAFETY: the token's.
            unsafe { asm!("tilezero tmm{t}", t = const T, options(nostack, preserves_flags, nomem)) }
        }

        // SAFETY: called under the conditions that the trait states.
        #[inline(always)]
        unsafe fn load<const T: usize>(self, from: *const u8, stride: usize) {
            // SAFETY: the token's and the caller's.
            unsafe {
                asm!("tileloadd tmm{t}, [{from} + {stride}*1]", t = const T, from = in(reg) from, stride = in(reg) stride,
                    options(nostack, preserves_flags, readonly));
            }
        }

        // SAFETY: called under the conditions that the trait states.
        #[inline(always)]
        unsafe fn store<const T: usize>(self, to: *mut u8, stride: usize) {
            // SAFETY: the token's and the caller's.
            unsafe {
                asm!("tilestored [{to} + {stride}*1], tmm{t}", t = const T, to = in(reg) to, stride = in(reg) stride,
                    options(nostack, preserves_flags));
            }
        }

        #[inline(always)]
        fn multiply<const C: usize, const A: usize, const B: usize>(self) {
            // SAFETY: the token's.
            unsafe {
                asm!("tdpbf16ps tmm{c}, tmm{a}, tmm{b}", c = const C, a = const A, b = const B,
                    options(nostack, preserves_flags, nomem));
            }
        }
    }
}
#[cfg(target_arch = "x86_64")]
pub(super) use hardware::Hardware;

#[cfg(test)]
pub(super) mod emulated {
    //! The tile instructions over arrays, as Intel's manual defines them.

    use super::Unit;
    use crate::tiles::portable::{first, second};
    use std::cell::RefCell;

    type Register = [[u32; 16]; 16];

    thread_local! {
        static TILES: RefCell<Option<[Register; 8]>> = const { RefCell::new(None) };
    }

    #[derive(Clone, Copy)]
    pub(in crate::tiles) struct Emulated;

    fn with<R>(f: impl FnOnce(&mut [Register; 8]) -> R) -> R {
        TILES.with_borrow_mut(|tiles| f(tiles.as_mut().expect("tiles are configured")))
    }

    impl Unit for Emulated {
        fn configure(self) {
            TILES.with_borrow_mut(|tiles| assert!(tiles.replace([[[!0; 16]; 16]; 8]).is_none(), "configured twice"));
        }

        fn release(self) {
            TILES.with_borrow_mut(|tiles| assert!(tiles.take().is_some(), "released twice"));
        }

        fn zero<const T: usize>(self) {
            with(|tiles| tiles[T] = [[0; 16]; 16]);
        }

        // SAFETY: called under the conditions that the trait states.
        unsafe fn load<const T: usize>(self, from: *const u8, stride: usize) {
            with(|tiles| {
                for (r, row) in tiles[T].iter_mut().enumerate() {
                    // SAFETY: the caller's.
                    *row = unsafe { from.add(r * stride).cast::<[u32; 16]>().read_unaligned() };
                }
            });
        }

        // SAFETY: called under the conditions that the trait states.
        unsafe fn store<const T: usize>(self, to: *mut u8, stride: usize) {
            with(|tiles| {
                for (r, row) in tiles[T].iter().enumerate() {
                    // SAFETY: the caller's.
                    unsafe { to.add(r * stride).cast::<[u32; 16]>().write_unaligned(*row) };
                }
            });
        }

        fn multiply<const C: usize, const A: usize, const B: usize>(self) {
            with(|tiles| {
                for m in 0..16 {
                    for n in 0..16 {
                        let (mut even, mut odd) = (0.0_f32, 0.0_f32);
                        for (a, b) in tiles[A][m].into_iter().zip(tiles[B].map(|row| row[n])) {
                            even = first(a).mul_add(first(b), even);
                            odd = second(a).mul_add(second(b), odd);
                        }
                        tiles[C][m][n] = (f32::from_bits(tiles[C][m][n]) + (even + odd)).to_bits();
                    }
                }
            });
        }
    }
}
