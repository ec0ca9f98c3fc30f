//! Views of f32 matrices, and what is refused.

use super::Path;
use std::fmt;
use std::ops::Range;

/// Why nothing was multiplied.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Refused {
    /// This process cannot use the path: the processor or the operating system lacks it.
    Unavailable(Path),
    /// The elements do not fit into the slice, or neither rows nor columns are contiguous.
    View {
        /// Elements in the slice.
        len: usize,
        /// Rows and columns.
        shape: (usize, usize),
        /// From row to row and from column to column.
        strides: (usize, usize),
    },
    /// The columns of A are not as many as the rows of B.
    Inner {
        /// Shape of A.
        a: (usize, usize),
        /// Shape of B.
        b: (usize, usize),
    },
    /// The slice for C has another number of elements.
    Output {
        /// Rows and columns of C.
        shape: (usize, usize),
        /// Elements in the slice.
        len: usize,
    },
    /// B was packed for another split.
    Packed,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unavailable(path) => write!(f, "{path:?}: not available to this process"),
            Self::View { len, shape: (rows, columns), strides } => write!(
                f,
                "a {rows} x {columns} matrix with strides {strides:?} in {len} elements: must fit, and one stride must be 1"
            ),
            Self::Inner { a, b } => write!(f, "{} x {} times {} x {}: the inner sizes differ", a.0, a.1, b.0, b.1),
            Self::Output { shape: (rows, columns), len } => {
                write!(f, "{len} elements for a product of {rows} x {columns}")
            }
            Self::Packed => write!(f, "B was packed for another split"),
        }
    }
}

impl std::error::Error for Refused {}

/// A matrix inside a slice; its rows or its columns are contiguous.
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a> {
    values: &'a [f32],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a> Matrix<'a> {
    /// Row-major, without gaps: all of `values`.
    pub fn new(values: &'a [f32], rows: usize, columns: usize) -> Result<Self, Refused> {
        let exact = rows.checked_mul(columns) == Some(values.len());
        let refused = Refused::View { len: values.len(), shape: (rows, columns), strides: (columns, 1) };
        if exact { Self::strided(values, (rows, columns), (columns, 1)) } else { Err(refused) }
    }

    /// With steps from row to row and from column to column, one of which is 1 (where it matters).
    pub fn strided(values: &'a [f32], shape: (usize, usize), strides: (usize, usize)) -> Result<Self, Refused> {
        let refused = Refused::View { len: values.len(), shape, strides };
        let (rows, columns) = shape;
        // Steps that are never taken: any number will do.
        let row_stride = if rows <= 1 { 1 } else { strides.0 };
        let column_stride = if columns <= 1 { 1 } else { strides.1 };
        let last = || {
            let down = (rows - 1).checked_mul(row_stride)?;
            down.checked_add((columns - 1).checked_mul(column_stride)?)
        };
        let fits = rows == 0 || columns == 0 || last().is_some_and(|last| last < values.len());
        let contiguous = row_stride == 1 || column_stride == 1;
        if fits && contiguous { Ok(Self { values, rows, columns, row_stride, column_stride }) } else { Err(refused) }
    }

    /// Its transpose, without a copy.
    pub fn t(self) -> Self {
        Self {
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
            ..self
        }
    }

    /// Rows and columns.
    pub fn shape(&self) -> (usize, usize) {
        (self.rows, self.columns)
    }

    /// Where its first element lies.
    pub(crate) fn start(&self) -> *const f32 {
        self.values.as_ptr()
    }

    /// Whether each row is contiguous.
    pub(crate) fn has_rows(&self) -> bool {
        self.column_stride == 1
    }

    /// Elements `columns` of a row, cut at its end; none of a row that is not there.
    #[inline(always)]
    pub(super) fn row(&self, row: usize, columns: Range<usize>) -> &'a [f32] {
        debug_assert!(self.has_rows());
        cut(self.values, row, self.rows, self.row_stride, columns, self.columns)
    }

    /// Elements `rows` of a column, cut at its end; none of a column that is not there.
    #[inline(always)]
    pub(super) fn column(&self, column: usize, rows: Range<usize>) -> &'a [f32] {
        debug_assert!(self.row_stride == 1);
        cut(self.values, column, self.columns, self.column_stride, rows, self.rows)
    }
}

#[inline(always)]
fn cut(values: &[f32], line: usize, lines: usize, stride: usize, part: Range<usize>, len: usize) -> &[f32] {
    let end = part.end.min(len);
    if line >= lines || part.start >= end {
        return &[];
    }
    &values[line * stride + part.start..line * stride + end]
}

#[cfg(test)]
mod tests {
    use super::{Matrix, Refused};

    #[test]
    fn a_view_that_does_not_fit_is_refused() {
        let values = [0.0; 12];
        assert!(Matrix::new(&values, 3, 4).is_ok());
        assert!(matches!(Matrix::new(&values, 3, 5), Err(Refused::View { .. })));
        assert!(Matrix::strided(&values, (2, 4), (8, 1)).is_ok());
        assert!(Matrix::strided(&values, (2, 5), (8, 1)).is_err());
        assert!(Matrix::strided(&values, (3, 2), (1, 9)).is_ok());
        assert!(Matrix::strided(&values, (2, 2), (2, 2)).is_err(), "neither is contiguous");
        assert!(Matrix::strided(&values, (3, 3), (usize::MAX, 1)).is_err(), "overflow");
        assert!(Matrix::strided(&[], (0, 7), (7, 1)).is_ok());
    }

    #[test]
    fn lines_end_where_the_matrix_does() {
        let values: Vec<f32> = (0..12).map(|i| i as f32).collect();
        let x = Matrix::new(&values, 3, 4).unwrap();
        assert_eq!(x.row(1, 2..9), [6.0, 7.0]);
        assert!(x.row(3, 0..9).is_empty());
        assert_eq!(x.t().column(2, 1..3), [9.0, 10.0]);
        assert_eq!(x.t().shape(), (4, 3));
    }
}
