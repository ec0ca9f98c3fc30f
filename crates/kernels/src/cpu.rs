//! What every CPU operator stands on: typed views of tensors, parallel loops whose result does not depend on the
//! number of threads, and the matrix product.
//!
//! Invariants: work is cut into chunks of a size that depends on the shapes alone, and partial sums are added in
//! chunk order, so results are bit-equal for any number of threads. One parallel level: code inside a parallel loop
//! calls serial helpers only.

use crate::{Error, Result};
use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, DType, Layout, Shape, Storage, StorageRef, Tensor, WithDType};
use gemm::Parallelism;
use rayon::prelude::*;
use std::marker::PhantomData;
use std::ops::{Deref, Range};

pub(crate) use crate::simd::Real;
use crate::{precision, simd};

/// Work (touched elements or multiply-adds) below which a parallel loop costs more than it saves.
const SERIAL_WORK: usize = 16 * 1024;
/// Elements of a chunk where rows alone matter: 64 KB of f32, which a second-level cache holds several times.
pub(crate) const ELEMENTS: usize = 16 * 1024;
/// Most rows and columns, about, of a block of a product that is finished by the thread that made it: 200 KB of f32, which
/// the second cache holds. Smaller ones pack their operands too often. They decide rounding, as does [`SUM_ROWS`].
const BLOCK_ROWS: usize = 264;
const BLOCK_COLUMNS: usize = 192;
/// Rows per partial sum of a column sum. It decides rounding, so it is the same on every machine.
const SUM_ROWS: usize = 256;

/// Runs the code with the type `$T` standing for the dtype f32 or f64; any other dtype is refused.
macro_rules! by_dtype {
    ($op:expr, $dtype:expr, $T:ident => $body:expr) => {
        match $dtype {
            candle_core::DType::F32 => {
                type $T = f32;
                $body
            }
            candle_core::DType::F64 => {
                type $T = f64;
                $body
            }
            got => Err($crate::Error::Dtype { op: $op, expected: "F32 or F64", got }.into()),
        }
    };
}
pub(crate) use by_dtype;

/// Rows of `width` elements per chunk, at least one.
pub(crate) fn rows_of(width: usize) -> usize {
    (ELEMENTS / width.max(1)).max(1)
}

/// Whether `x` lies in the memory that the fused kernels read.
pub(crate) fn on_cpu(x: &Tensor) -> bool {
    x.device().is_cpu()
}

/// The elements of a contiguous layout, inside a custom operator's forward pass.
pub(crate) fn slice<'a, T: Real>(storage: &'a CpuStorage, layout: &Layout) -> candle_core::Result<&'a [T]> {
    Ok(&T::cpu_storage_as_slice(storage)?[contiguous(layout)?])
}

/// A storage over `values`, without a copy.
pub(crate) fn storage<T: Real>(values: Vec<T>) -> CpuStorage {
    T::to_cpu_storage_owned(values)
}

/// The dtype of a storage.
pub(crate) fn dtype(storage: &CpuStorage) -> DType {
    storage.dtype()
}

fn contiguous(layout: &Layout) -> Result<Range<usize>> {
    let (start, end) =
        layout.contiguous_offsets().ok_or_else(|| Error::shape("cpu kernel", "a contiguous tensor", layout.dims()))?;
    Ok(start..end)
}

/// The elements of a contiguous CPU tensor; the storage is locked for reading as long as this lives.
pub(crate) struct Values<'a, T> {
    storage: StorageRef<'a>,
    range: Range<usize>,
    element: PhantomData<T>,
}

impl<'a, T: Real> Values<'a, T> {
    /// Refuses other dtypes, other devices and gaps.
    pub(crate) fn of(tensor: &'a Tensor) -> Result<Self> {
        let (storage, layout) = tensor.storage_and_layout();
        let range = contiguous(layout)?;
        match &*storage {
            Storage::Cpu(values) => T::cpu_storage_as_slice(values)?,
            _ => return Err(Error::argument("cpu kernel", "a tensor of another device")),
        };
        Ok(Self { storage, range, element: PhantomData })
    }
}

impl<T: Real> Deref for Values<'_, T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        match &*self.storage {
            // `of` found this very slice, so the other arms are not taken.
            Storage::Cpu(values) => T::cpu_storage_as_slice(values).map_or(&[], |values| &values[self.range.clone()]),
            _ => &[],
        }
    }
}

/// A tensor over `values`, without a copy.
pub(crate) fn tensor<T: Real>(values: Vec<T>, shape: impl Into<Shape>) -> candle_core::Result<Tensor> {
    let shape: Shape = shape.into();
    Tensor::from_vec(values, shape, &candle_core::Device::Cpu)
}

/// A vector of `len` elements filled by `fill`, which gets disjoint chunks of `chunk` elements (the last may be
/// shorter) and their index. `work` is the cost of all of it; small work stays on this thread.
pub(crate) fn fill_chunks<T: Real>(
    len: usize,
    chunk: usize,
    work: usize,
    fill: impl Fn(usize, &mut [T]) + Sync,
) -> Vec<T> {
    let (mut out, chunk) = (Vec::new(), chunk.max(1));
    let shared = SharedRows::spare(&mut out, len);
    for_each(len.div_ceil(chunk), work, &|i| {
        // SAFETY: no two calls get the same index; the chunk is written before it is lent. Its own thread does that, for a
        // pass of zeros over all of it takes as long as many an operator.
        #[allow(unsafe_code)]
        fill(i, unsafe {
            shared.clear_chunk(i, chunk);
            shared.chunk(i, chunk)
        });
    });
    // SAFETY: the chunks cover all `len` elements.
    #[allow(unsafe_code)]
    unsafe {
        out.set_len(len);
    }
    out
}

/// A copy, made by all threads.
pub(crate) fn copied<T: Real>(values: &[T]) -> Vec<T> {
    let mut out = Vec::new();
    let shared = SharedRows::spare(&mut out, values.len());
    for_each(values.len().div_ceil(ELEMENTS), values.len(), &|i| {
        let chunk = &values[i * ELEMENTS..values.len().min((i + 1) * ELEMENTS)];
        // SAFETY: no two calls get the same chunk.
        #[allow(unsafe_code)]
        unsafe {
            shared.write(i * ELEMENTS, chunk);
        }
    });
    // SAFETY: the chunks cover all elements.
    #[allow(unsafe_code)]
    unsafe {
        out.set_len(values.len());
    }
    out
}

/// Runs `f` on disjoint chunks of `chunk` elements of `out` (the last may be shorter) with their index.
pub(crate) fn for_chunks<T: Real>(out: &mut [T], chunk: usize, work: usize, f: impl Fn(usize, &mut [T]) + Sync) {
    let (chunk, count) = (chunk.max(1), out.len().div_ceil(chunk.max(1)));
    let out = SharedRows::new(out);
    for_each(count, work, &|i| {
        // SAFETY: no two calls get the same index.
        #[allow(unsafe_code)]
        f(i, unsafe { out.chunk(i, chunk) });
    });
}

/// [`for_chunks`] on two slices at once, of as many chunks, each with the elements of its chunks.
pub(crate) fn for_chunk_pairs<A: Real, B: WithDType>(
    (a, a_chunk): (&mut [A], usize),
    (b, b_chunk): (&mut [B], usize),
    work: usize,
    f: impl Fn(usize, &mut [A], &mut [B]) + Sync,
) {
    let b = SharedRows::new(b);
    for_chunks(a, a_chunk, work, |i, a| {
        // SAFETY: no two calls get the same index.
        #[allow(unsafe_code)]
        f(i, a, unsafe { b.chunk(i, b_chunk) });
    });
}

/// [`fill_chunks`] beside the chunks of a slice, which are as many: each call has one of either.
pub(crate) fn fill_chunks_beside<A: Real, B: WithDType>(
    (len, chunk): (usize, usize),
    (beside, beside_chunk): (&mut [B], usize),
    work: usize,
    fill: impl Fn(usize, &mut [A], &mut [B]) + Sync,
) -> Vec<A> {
    let beside = SharedRows::new(beside);
    fill_chunks(len, chunk, work, |i, elements| {
        // SAFETY: no two calls get the same index.
        #[allow(unsafe_code)]
        fill(i, elements, unsafe { beside.chunk(i, beside_chunk) });
    })
}

/// Runs `f` for every index below `count`, in groups of up to eight that share a scratch memory.
pub(crate) fn for_each_index<S>(
    count: usize,
    work: usize,
    scratch: impl Fn() -> S + Sync,
    f: impl Fn(&mut S, usize) + Sync,
) {
    // Few indices are whole tasks, so that many threads find work.
    let size = (count / 64).clamp(1, 8);
    for_each(count.div_ceil(size), work, &|group| {
        let mut scratch = scratch();
        (group * size..count.min((group + 1) * size)).for_each(|i| f(&mut scratch, i));
    });
}

/// Every parallel loop of the kernels ends here, the matrix product's own aside: one instance of rayon's machinery instead
/// of one per operator, which halves what the crate takes to compile.
fn for_each(count: usize, work: usize, f: &(dyn Fn(usize) + Sync)) {
    if work < SERIAL_WORK || count < 2 {
        (0..count).for_each(f);
    } else {
        (0..count).into_par_iter().for_each(f);
    }
}

/// Column sums of a row-major matrix `[rows, columns]`, with `add(i, sum)` adding row i: partial sums over fixed groups
/// of rows, then over the groups in order.
pub(crate) fn sum_rows<T: Real>(rows: usize, columns: usize, add: impl Fn(usize, &mut [T]) + Sync) -> Vec<T> {
    let groups = rows.div_ceil(SUM_ROWS).max(1);
    let partial = fill_chunks(groups * columns, columns, rows * columns, |group, sum: &mut [T]| {
        (group * SUM_ROWS..rows.min((group + 1) * SUM_ROWS)).for_each(|row| add(row, sum));
    });
    let mut total = partial;
    let (first, rest) = total.split_at_mut(columns);
    for group in rest.chunks_exact(columns.max(1)) {
        simd::add_assign(first, group);
    }
    total.truncate(columns);
    total
}

/// Column sums of a row-major matrix with this many columns.
pub(crate) fn column_sums<T: Real>(values: &[T], columns: usize) -> Vec<T> {
    let rows = values.len().checked_div(columns).unwrap_or(0);
    sum_rows(rows, columns, |row, sum| simd::add_assign(sum, &values[row * columns..][..columns]))
}

/// Adds `other` to `values`, element by element.
pub(crate) fn add_in_place<T: Real>(values: &mut [T], other: &[T]) {
    const CHUNK: usize = 16 * 1024;
    let work = values.len();
    for_chunks(values, CHUNK, work, |i, values| simd::add_assign(values, &other[i * CHUNK..][..values.len()]));
}

/// A matrix inside a slice.
#[derive(Clone, Copy)]
pub(crate) struct Matrix<'a, T> {
    values: &'a [T],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a, T> Matrix<'a, T> {
    /// Row-major, without gaps.
    pub(crate) fn new(values: &'a [T], rows: usize, columns: usize) -> Self {
        Self { values, rows, columns, row_stride: columns, column_stride: 1 }
    }

    /// Its transpose.
    pub(crate) fn t(self) -> Self {
        Self {
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
            ..self
        }
    }

    /// Rows and columns.
    pub(crate) fn shape(&self) -> (usize, usize) {
        (self.rows, self.columns)
    }

    /// Some of its rows, of which none is beyond its end.
    fn rows(self, rows: &Range<usize>) -> Self {
        Self { values: &self.values[rows.start * self.row_stride..], rows: rows.len(), ..self }
    }

    /// The same view of the same elements, if they are f32.
    pub(crate) fn singles(&self) -> Option<crate::tiles::Matrix<'a>>
    where
        T: Real,
    {
        let strides = (self.row_stride, self.column_stride);
        crate::tiles::Matrix::strided(T::singles(self.values)?, self.shape(), strides).ok()
    }

    /// Elements from the first to the last, both included.
    fn extent(&self) -> usize {
        if self.rows * self.columns == 0 {
            return 0;
        }
        (self.rows - 1) * self.row_stride + (self.columns - 1) * self.column_stride + 1
    }
}

/// The product of two matrices, row-major, in the [`Precision`](crate::Precision) that holds on this thread.
/// Threads split rows and columns only, never the sum, so the result does not depend on their number.
pub(crate) fn product<T: Real>(a: Matrix<'_, T>, b: Matrix<'_, T>) -> Vec<T> {
    affine(a, b, None)
}

/// [`product`], in which `b` holds the elements of the tensor `weight`, if that stays as it is for a while.
pub(crate) fn affine<T: Real>(a: Matrix<'_, T>, b: Matrix<'_, T>, weight: Option<&Tensor>) -> Vec<T> {
    precision::product(a, b, weight, None).unwrap_or_else(|| native_product(a, b))
}

/// What is done to a piece of a row of a product while it is in the cache: given row, first column and elements. It is
/// called exactly once for each element; pieces are disjoint, depend on the shapes alone, and come in any order and from
/// any thread.
pub(crate) type Finish<'a, T> = dyn Fn(usize, usize, &mut [T]) + Sync + 'a;

/// [`affine`], finished. Each thread finishes the blocks that it made.
pub(crate) fn finished<T: Real>(
    a: Matrix<'_, T>,
    b: Matrix<'_, T>,
    weight: Option<&Tensor>,
    finish: &Finish<'_, T>,
) -> Vec<T> {
    precision::product(a, b, weight, Some(finish)).unwrap_or_else(|| native_finished(a, b, finish))
}

fn native_finished<T: Real>(a: Matrix<'_, T>, b: Matrix<'_, T>, finish: &Finish<'_, T>) -> Vec<T> {
    let (m, n, k) = (a.rows, b.columns, a.columns.min(b.rows));
    if m * n * k == 0 {
        let mut out = vec![T::zero(); m * n];
        out.chunks_exact_mut(n.max(1)).enumerate().for_each(|(row, out)| finish(row, 0, out));
        return out;
    }
    let (down, across) = (Cut::new(m, BLOCK_ROWS, 8), Cut::new(n, BLOCK_COLUMNS, 16));
    let mut out = Vec::<T>::new();
    let shared = SharedRows::spare(&mut out, m * n);
    for_each(down.parts() * across.parts(), m * n * k, &|i| {
        let (rows, columns) = (down.part(i / across.parts()), across.part(i % across.parts()));
        let first = rows.start * n + columns.start;
        // SAFETY: the block lies inside the memory of `out`, and no two calls get the same one. `write_product` writes
        // each of its elements without reading it first, so rows of it are initialised afterwards.
        #[allow(unsafe_code)]
        unsafe {
            let (a, b) = (a.rows(&rows), b.t().rows(&columns).t());
            write_product(shared.start.add(first), n, a, b, false, Parallelism::None);
            rows.for_each(|row| finish(row, columns.start, shared.range(row * n + columns.start, columns.len())));
        }
    });
    // SAFETY: the blocks cover all m * n elements.
    #[allow(unsafe_code)]
    unsafe {
        out.set_len(m * n);
    }
    out
}

/// How rows or columns are cut into parts of nearly one size.
#[derive(Clone, Copy)]
struct Cut {
    len: usize,
    part: usize,
}

impl Cut {
    /// Parts of about `most`, in whole multiples of `unit`.
    fn new(len: usize, most: usize, unit: usize) -> Self {
        Self { len, part: len.div_ceil(len.div_ceil(most).max(1)).next_multiple_of(unit) }
    }

    fn parts(self) -> usize {
        self.len.div_ceil(self.part)
    }

    fn part(self, i: usize) -> Range<usize> {
        i * self.part..self.len.min((i + 1) * self.part)
    }
}

fn native_product<T: Real>(a: Matrix<'_, T>, b: Matrix<'_, T>) -> Vec<T> {
    let (m, n, k) = (a.rows, b.columns, a.columns.min(b.rows));
    if m * n * k == 0 {
        return vec![T::zero(); m * n];
    }
    let parallel = if m * n * k < SERIAL_WORK { Parallelism::None } else { Parallelism::Rayon(0) };
    let mut out = Vec::with_capacity(m * n);
    // SAFETY: `out` has room for m * n elements; `write_product` writes each of them without reading it first, after
    // which its length is m * n.
    #[allow(unsafe_code)]
    unsafe {
        write_product(out.as_mut_ptr(), n, a, b, false, parallel);
        out.set_len(m * n);
    }
    out
}

/// [`product`] written to `out`, in the type of its elements whatever the precision.
pub(crate) fn write_native_product<T: Real>(out: &mut [T], a: Matrix<'_, T>, b: Matrix<'_, T>) {
    let (m, n, k) = (a.rows, b.columns, a.columns.min(b.rows));
    assert_eq!(out.len(), m * n, "the result has the shape of the product");
    if m * n * k == 0 {
        out.fill(T::zero());
        return;
    }
    let parallel = if m * n * k < SERIAL_WORK { Parallelism::None } else { Parallelism::Rayon(0) };
    // SAFETY: `out` holds m * n initialised elements, by the line above, and is borrowed mutably.
    #[allow(unsafe_code)]
    unsafe {
        write_product(out.as_mut_ptr(), n, a, b, false, parallel);
    }
}

/// Adds the product of two matrices to `out`, row-major. `weight` is as in [`affine`]; neither precision nor threads
/// are other than there.
pub(crate) fn add_product<T: Real>(out: &mut [T], a: Matrix<'_, T>, b: Matrix<'_, T>, weight: Option<&Tensor>) {
    let (m, n, k) = (a.rows, b.columns, a.columns.min(b.rows));
    assert_eq!(out.len(), m * n, "the sum has the shape of the product");
    if m * n * k == 0 || precision::add_product(out, a, b, weight) {
        return;
    }
    let parallel = if m * n * k < SERIAL_WORK { Parallelism::None } else { Parallelism::Rayon(0) };
    // SAFETY: `out` holds m * n initialised elements, by the line above, and is borrowed mutably.
    #[allow(unsafe_code)]
    unsafe {
        write_product(out.as_mut_ptr(), n, a, b, true, parallel);
    }
}

/// # Safety
/// `out` is valid for writes of `a.rows` rows of `b.columns` elements, `stride` from row to row, that neither input holds,
/// and for reads if `add`.
#[allow(unsafe_code)]
unsafe fn write_product<T: Real>(
    out: *mut T,
    stride: usize,
    a: Matrix<'_, T>,
    b: Matrix<'_, T>,
    add: bool,
    parallel: Parallelism,
) {
    let (m, n, k) = (a.rows, b.columns, a.columns.min(b.rows));
    // These slices are the bounds check of the raw pointers below.
    let (left, right) = (&a.values[..a.extent()], &b.values[..b.extent()]);
    // SAFETY: rows, columns and strides address exactly the slices taken above: the largest offset of each matrix is
    // its extent less one. The caller vouches for `out`, which is read only if `add`.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out,
            1,
            stride as isize,
            add,
            left.as_ptr(),
            a.column_stride as isize,
            a.row_stride as isize,
            right.as_ptr(),
            b.column_stride as isize,
            b.row_stride as isize,
            if add { T::one() } else { T::zero() },
            T::one(),
            false,
            false,
            false,
            parallel,
        );
    }
}

/// Rows of a matrix that several threads write, each its own.
#[derive(Clone, Copy)]
pub(crate) struct SharedRows<'a, T> {
    start: *mut T,
    len: usize,
    borrowed: PhantomData<&'a mut [T]>,
}

// SAFETY: only `range` reaches the memory, and its caller promises disjoint ranges; elements are plain numbers.
#[allow(unsafe_code)]
unsafe impl<T: WithDType> Send for SharedRows<'_, T> {}
// SAFETY: as above.
#[allow(unsafe_code)]
unsafe impl<T: WithDType> Sync for SharedRows<'_, T> {}

impl<'a, T: WithDType> SharedRows<'a, T> {
    /// Over `values`, which stay borrowed as long as this lives.
    pub(crate) fn new(values: &'a mut [T]) -> Self {
        Self { start: values.as_mut_ptr(), len: values.len(), borrowed: PhantomData }
    }

    /// Over memory for `len` elements in the empty vector `values`. Nothing in it may be read before it was written; the
    /// owner sets the length when all is.
    pub(crate) fn spare(values: &'a mut Vec<T>, len: usize) -> Self {
        values.reserve_exact(len);
        Self { start: values.as_mut_ptr(), len, borrowed: PhantomData }
    }

    /// Chunk `index` of `size` elements: shorter at the end, empty beyond it.
    ///
    /// # Safety
    /// As [`SharedRows::range`]; chunks of one size are disjoint.
    #[allow(unsafe_code)]
    #[allow(clippy::mut_from_ref)] // As below.
    pub(crate) unsafe fn chunk(&self, index: usize, size: usize) -> &mut [T] {
        let start = (index * size).min(self.len);
        // SAFETY: the caller's promise.
        unsafe { self.range(start, size.min(self.len - start)) }
    }

    /// Writes zeros to chunk `index` of `size` elements.
    ///
    /// # Safety
    /// No other thread touches the chunk meanwhile.
    #[allow(unsafe_code)]
    unsafe fn clear_chunk(&self, index: usize, size: usize) {
        let start = (index * size).min(self.len);
        // SAFETY: inside the memory, nobody else's by the caller's promise; all bits zero is 0.0 of both element types.
        unsafe { std::ptr::write_bytes(self.start.add(start), 0, size.min(self.len - start)) };
    }

    /// The elements `start..start + len`.
    ///
    /// # Safety
    /// No other thread touches them as long as the result lives, and they are initialised: in [`SharedRows::spare`]
    /// memory, written before.
    #[allow(unsafe_code)]
    #[allow(clippy::mut_from_ref)] // Disjoint ranges of one matrix go to several threads: the purpose of this type.
    pub(crate) unsafe fn range(&self, start: usize, len: usize) -> &mut [T] {
        assert!(start <= self.len && len <= self.len - start, "a range lies inside the matrix");
        // SAFETY: in bounds by the line above; initialised and nobody else's by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(start), len) }
    }

    /// Copies `row` to `offset`.
    ///
    /// # Safety
    /// No other thread touches `offset..offset + row.len()` meanwhile.
    #[allow(unsafe_code)]
    pub(crate) unsafe fn write(&self, offset: usize, row: &[T]) {
        assert!(offset <= self.len && row.len() <= self.len - offset, "a range lies inside the matrix");
        // SAFETY: in bounds by the line above and nobody else's by the caller's promise, so `row` lies elsewhere. Nothing
        // is read, so it need not be initialised.
        unsafe { std::ptr::copy_nonoverlapping(row.as_ptr(), self.start.add(offset), row.len()) };
    }
}
