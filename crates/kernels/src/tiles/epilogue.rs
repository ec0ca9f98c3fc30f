//! What is done to finished elements of C while they are in the cache.

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

/// Calls a function with row, first column and elements: a bias, an activation, a residual.
#[derive(Clone, Copy, Debug)]
pub struct Each<F>(pub F);

impl<F: Fn(usize, usize, &mut [f32]) + Sync> Epilogue for Each<F> {
    fn finish(&self, row: usize, column: usize, c: &mut [f32]) {
        (self.0)(row, column, c);
    }
}
