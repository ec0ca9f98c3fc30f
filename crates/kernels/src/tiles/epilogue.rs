//! What is done to finished elements of C while they are in the cache.

use crate::simd;

/// Finishes pieces of rows of C. Each element is finished exactly once, after the last product was added to it;
/// pieces are disjoint, come in any order and from any thread, and depend on the shapes alone.
pub trait Epilogue: Sync {
    /// Finishes `c`, the elements of row `row` from column `column` on.
    fn finish(&self, row: usize, column: usize, c: &mut [f32]);

    /// Whether `finish` does nothing, so that it need not be called.
    fn is_empty(&self) -> bool {
        false
    }
}

/// Leaves C as it is.
#[derive(Clone, Copy, Debug)]
pub struct Plain;

impl Epilogue for Plain {
    fn finish(&self, _: usize, _: usize, _: &mut [f32]) {}

    fn is_empty(&self) -> bool {
        true
    }
}

/// Adds one value per column; panics if there are fewer of them.
#[derive(Clone, Copy, Debug)]
pub struct Bias<'a>(pub &'a [f32]);

impl Epilogue for Bias<'_> {
    fn finish(&self, _: usize, column: usize, c: &mut [f32]) {
        simd::add_assign(c, &self.0[column..column + c.len()]);
    }
}

/// Adds a row-major matrix of the shape of C, say a residual stream.
#[derive(Clone, Copy, Debug)]
pub struct Residual<'a> {
    /// The matrix.
    pub values: &'a [f32],
    /// Its columns, which are those of C.
    pub columns: usize,
}

impl Epilogue for Residual<'_> {
    fn finish(&self, row: usize, column: usize, c: &mut [f32]) {
        simd::add_assign(c, &self.values[row * self.columns + column..][..c.len()]);
    }
}

/// Calls a function with row, first column and elements: GELU, or saving a copy.
#[derive(Clone, Copy, Debug)]
pub struct Each<F>(pub F);

impl<F: Fn(usize, usize, &mut [f32]) + Sync> Epilogue for Each<F> {
    fn finish(&self, row: usize, column: usize, c: &mut [f32]) {
        (self.0)(row, column, c);
    }
}

/// One after the other.
impl<A: Epilogue, B: Epilogue> Epilogue for (A, B) {
    fn finish(&self, row: usize, column: usize, c: &mut [f32]) {
        self.0.finish(row, column, c);
        self.1.finish(row, column, c);
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty() && self.1.is_empty()
    }
}
