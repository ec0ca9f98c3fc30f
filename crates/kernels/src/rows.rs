//! Moving whole rows of the first axis: tokens kept, dropped, put back.

use crate::cpu::{self, Real, Values, by_dtype};
use crate::{Error, Result, input, reference};
use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Shape, Tensor};

/// The rows `index` of `x`, in that order; a row may be taken more than once.
/// x: [rows, ..], result: [index.len(), ..]; f32 or f64.
///
/// # Errors
/// A scalar, an index out of range, or a dtype that is not f32 or f64.
pub fn gather_rows(x: &Tensor, index: &[u32]) -> Result<Tensor> {
    let op = "gather_rows";
    input::float(op, x)?;
    input::in_range(op, index, first_axis(op, x)?)?;
    if !cpu::on_cpu(x) {
        return reference::gather_rows(x, index);
    }
    Ok(x.contiguous()?.apply_op1(Gather { index: index.to_vec() })?)
}

/// A copy of `base` with `scale * src[i]` added to row `index[i]`; rows named more than once receive every addend,
/// in the order of `index`. base: [rows, ..], src: [index.len(), ..].
///
/// # Errors
/// An index out of range, shapes that do not fit, or a dtype that is not f32 or f64.
pub fn scatter_add_rows(base: &Tensor, index: &[u32], src: &Tensor, scale: f64) -> Result<Tensor> {
    check_scatter("scatter_add_rows", base, index, src)?;
    if !cpu::on_cpu(base) {
        return reference::scatter_add_rows(base, index, src, scale);
    }
    Ok(base.contiguous()?.apply_op2(&src.contiguous()?, Scatter { index: index.to_vec(), write: Write::Add(scale) })?)
}

/// A copy of `base` with row `index[i]` replaced by `src[i]`. base: [rows, ..], src: [index.len(), ..].
///
/// # Errors
/// An index out of range or named twice, shapes that do not fit, or a dtype that is not f32 or f64.
pub fn scatter_rows(base: &Tensor, index: &[u32], src: &Tensor) -> Result<Tensor> {
    let op = "scatter_rows";
    check_scatter(op, base, index, src)?;
    if let Some(row) = input::twice(index, base.dims()[0]) {
        return Err(Error::argument(op, format!("row {row} is written twice")));
    }
    if !cpu::on_cpu(base) {
        return reference::scatter_rows(base, index, src);
    }
    Ok(base.contiguous()?.apply_op2(&src.contiguous()?, Scatter { index: index.to_vec(), write: Write::Replace })?)
}

fn first_axis(op: &'static str, x: &Tensor) -> Result<usize> {
    x.dims().first().copied().ok_or_else(|| Error::shape(op, "at least one axis", x.dims()))
}

fn check_scatter(op: &'static str, base: &Tensor, index: &[u32], src: &Tensor) -> Result<()> {
    input::same_float(op, base, src)?;
    let rows = first_axis(op, base)?;
    let mut expected = base.dims().to_vec();
    expected[0] = index.len();
    input::shape(op, "source rows", src, &expected)?;
    input::in_range(op, index, rows)
}

/// Elements of one row.
fn width(dims: &[usize]) -> usize {
    dims[1..].iter().product()
}

/// `scale * x[index[i]]` for every i; `x` has rows of `width`.
pub(crate) fn taken<T: Real>(x: &[T], index: &[u32], width: usize, scale: T) -> Vec<T> {
    let group = cpu::rows_of(width);
    let len = index.len() * width;
    cpu::fill_chunks(len, group * width, len, |i, out: &mut [T]| {
        for (out, &row) in out.chunks_exact_mut(width.max(1)).zip(&index[i * group..]) {
            let source = &x[row as usize * width..][..width];
            out.iter_mut().zip(source).for_each(|(out, x)| *out = *x * scale);
        }
    })
}

/// For every row of the target, the positions in `index` that name it, in order: `order[starts[row]..starts[row + 1]]`.
struct Sources {
    starts: Vec<usize>,
    order: Vec<usize>,
}

impl Sources {
    fn of(index: &[u32], rows: usize) -> Self {
        let mut starts = vec![0; rows + 1];
        index.iter().for_each(|&row| starts[row as usize + 1] += 1);
        for row in 0..rows {
            starts[row + 1] += starts[row];
        }
        let (mut next, mut order) = (starts.clone(), vec![0; index.len()]);
        for (i, &row) in index.iter().enumerate() {
            order[next[row as usize]] = i;
            next[row as usize] += 1;
        }
        Self { starts, order }
    }

    fn row(&self, row: usize) -> &[usize] {
        &self.order[self.starts[row]..self.starts[row + 1]]
    }
}

/// `rows` rows: those of `base` (or zeros) plus `scale` times the rows of `src` that `index` sends there. Each target
/// row is made by one thread, so addends come in the order of `index`.
pub(crate) fn added<T: Real>(
    base: Option<&[T]>,
    rows: usize,
    index: &[u32],
    src: &[T],
    width: usize,
    scale: T,
) -> Vec<T> {
    let sources = Sources::of(index, rows);
    let group = cpu::rows_of(width);
    let len = rows * width;
    cpu::fill_chunks(len, group * width, len + src.len(), |i, out: &mut [T]| {
        if let Some(base) = base {
            out.copy_from_slice(&base[i * group * width..][..out.len()]);
        }
        for (row, out) in out.chunks_exact_mut(width.max(1)).enumerate() {
            for &from in sources.row(i * group + row) {
                let src = &src[from * width..][..width];
                out.iter_mut().zip(src).for_each(|(out, src)| *out += *src * scale);
            }
        }
    })
}

/// `base` with the rows `index` taken from `src`, or zero without one.
fn replaced<T: Real>(base: &[T], rows: usize, index: &[u32], src: Option<&[T]>, width: usize) -> Vec<T> {
    let sources = Sources::of(index, rows);
    let group = cpu::rows_of(width);
    cpu::fill_chunks(rows * width, group * width, rows * width, |i, out: &mut [T]| {
        for (row, out) in out.chunks_exact_mut(width.max(1)).enumerate() {
            let row = i * group + row;
            match (sources.row(row), src) {
                ([from, ..], Some(src)) => out.copy_from_slice(&src[from * width..][..width]),
                ([_, ..], None) => {}
                ([], _) => out.copy_from_slice(&base[row * width..][..width]),
            }
        }
    })
}

struct Gather {
    index: Vec<u32>,
}

impl CustomOp1 for Gather {
    fn name(&self) -> &'static str {
        "gather_rows"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let mut dims = layout.dims().to_vec();
        let width = width(&dims);
        dims[0] = self.index.len();
        by_dtype!("gather_rows", cpu::dtype(x), T => {
            let rows = taken::<T>(cpu::slice(x, layout)?, &self.index, width, T::of(1.0));
            Ok((cpu::storage(rows), Shape::from(dims)))
        })
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, g: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let (rows, width, g) = (x.dims()[0], width(x.dims()), g.contiguous()?);
        by_dtype!("gather_rows", x.dtype(), T => {
            let dx = added::<T>(None, rows, &self.index, &Values::of(&g)?, width, T::of(1.0));
            Ok(Some(cpu::tensor(dx, x.shape())?))
        })
    }
}

/// What happens to a named row of the base.
#[derive(Clone, Copy)]
enum Write {
    /// So many times the source is added.
    Add(f64),
    Replace,
}

struct Scatter {
    index: Vec<u32>,
    write: Write,
}

impl CustomOp2 for Scatter {
    fn name(&self) -> &'static str {
        match self.write {
            Write::Add(_) => "scatter_add_rows",
            Write::Replace => "scatter_rows",
        }
    }

    fn cpu_fwd(
        &self,
        base: &CpuStorage,
        layout: &Layout,
        src: &CpuStorage,
        src_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let (rows, width) = (layout.dims()[0], width(layout.dims()));
        by_dtype!(self.name(), cpu::dtype(base), T => {
            let (base, src): (&[T], &[T]) = (cpu::slice(base, layout)?, cpu::slice(src, src_layout)?);
            let out = match self.write {
                Write::Add(scale) => added(Some(base), rows, &self.index, src, width, T::of(scale)),
                Write::Replace => replaced(base, rows, &self.index, Some(src), width),
            };
            Ok((cpu::storage(out), layout.shape().clone()))
        })
    }

    fn bwd(
        &self,
        base: &Tensor,
        src: &Tensor,
        _y: &Tensor,
        g: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        let (scale, kept) = match self.write {
            Write::Add(scale) => (scale, base.track_op().then(|| g.clone())),
            Write::Replace => (1.0, base.track_op().then(|| blanked(g, &self.index)).transpose()?),
        };
        let moved = src.track_op().then(|| gathered(g, &self.index, scale, src)).transpose()?;
        Ok((kept, moved))
    }
}

/// `scale` times the rows `index` of `g`, in the shape of `like`.
fn gathered(g: &Tensor, index: &[u32], scale: f64, like: &Tensor) -> candle_core::Result<Tensor> {
    let (width, g) = (width(g.dims()), g.contiguous()?);
    by_dtype!("scatter_rows", g.dtype(), T => {
        cpu::tensor(taken::<T>(&Values::of(&g)?, index, width, T::of(scale)), like.shape())
    })
}

/// `g` with the rows `index` zero.
fn blanked(g: &Tensor, index: &[u32]) -> candle_core::Result<Tensor> {
    let (rows, width, g) = (g.dims()[0], width(g.dims()), g.contiguous()?);
    by_dtype!("scatter_rows", g.dtype(), T => {
        cpu::tensor(replaced::<T>(&Values::of(&g)?, rows, index, None, width), g.shape())
    })
}

#[cfg(test)]
mod tests {
    use super::{gather_rows, scatter_add_rows, scatter_rows};
    use crate::check::{check_large, check_op, output_and_gradients, same_for_any_threads, sample};
    use crate::{Error, reference};
    use candle_core::{DType, Device, Tensor};

    /// Shapes of one row: none, one axis, two axes.
    const TAILS: [&[usize]; 4] = [&[], &[1], &[17], &[3, 2]];

    fn with_rows(seed: u64, rows: usize, tail: &[usize]) -> Tensor {
        sample(seed, [&[rows], tail].concat()).unwrap()
    }

    #[test]
    fn gathering_agrees_with_its_reference_and_its_gradient() {
        for tail in TAILS {
            for index in [&[3_u32, 0, 3, 1][..], &[2], &[4, 3, 2, 1, 0]] {
                let inputs = [with_rows(1, 5, tail)];
                check_op(&inputs, |v| gather_rows(&v[0], index), |v| reference::gather_rows(&v[0], index)).unwrap();
            }
        }
    }

    #[test]
    fn adding_rows_agrees_with_its_reference_and_its_gradient() {
        for tail in TAILS {
            let index = [3_u32, 0, 3];
            let inputs = [with_rows(1, 5, tail), with_rows(2, 3, tail)];
            check_op(
                &inputs,
                |v| scatter_add_rows(&v[0], &index, &v[1], 1.25),
                |v| reference::scatter_add_rows(&v[0], &index, &v[1], 1.25),
            )
            .unwrap();
        }
    }

    #[test]
    fn replacing_rows_agrees_with_its_reference_and_its_gradient() {
        for tail in TAILS {
            let index = [4_u32, 0, 2];
            let inputs = [with_rows(1, 5, tail), with_rows(2, 3, tail)];
            check_op(
                &inputs,
                |v| scatter_rows(&v[0], &index, &v[1]),
                |v| reference::scatter_rows(&v[0], &index, &v[1]),
            )
            .unwrap();
        }
    }

    #[test]
    fn a_scattered_gather_gives_the_rows_back() {
        let x = sample(1, (6, 4)).unwrap();
        let index = [5, 1, 3];
        let blank = x.zeros_like().unwrap();
        let back = scatter_rows(&blank, &index, &gather_rows(&x, &index).unwrap()).unwrap();
        assert_eq!(
            gather_rows(&back, &index).unwrap().to_vec2::<f64>().unwrap(),
            gather_rows(&x, &index).unwrap().to_vec2::<f64>().unwrap()
        );
        assert_eq!(gather_rows(&back, &[0, 2, 4]).unwrap().to_vec2::<f64>().unwrap(), vec![vec![0.0; 4]; 3]);
    }

    #[test]
    fn a_replaced_nan_is_gone() {
        let base = Tensor::new(&[f32::NAN, 1.0], &Device::Cpu).unwrap();
        let src = Tensor::new(&[7_f32], &Device::Cpu).unwrap();
        assert_eq!(scatter_rows(&base, &[0], &src).unwrap().to_vec1::<f32>().unwrap(), [7.0, 1.0]);
        assert!(scatter_add_rows(&base, &[0], &src, 1.0).unwrap().to_vec1::<f32>().unwrap()[0].is_nan());
    }

    /// A base and a source of several chunks; rows for all of the source, some twice; and other rows, each once.
    fn many() -> ([Tensor; 2], Vec<u32>, Vec<u32>) {
        let inputs = [sample(1, (2000, 51)).unwrap(), sample(2, (3000, 51)).unwrap()];
        let index = (0..3000).map(|i| i * i % 1999).collect();
        (inputs, index, (0..1500).map(|i| i * 7 % 2000).collect())
    }

    #[test]
    fn many_rows_match_as_well() {
        let (inputs, index, unique) = many();
        check_large(&inputs[..1], |v| gather_rows(&v[0], &index), |v| reference::gather_rows(&v[0], &index)).unwrap();
        check_large(
            &inputs,
            |v| scatter_add_rows(&v[0], &index, &v[1], 0.7),
            |v| reference::scatter_add_rows(&v[0], &index, &v[1], 0.7),
        )
        .unwrap();
        check_large(
            &inputs,
            |v| scatter_rows(&v[0], &unique, &v[1].narrow(0, 0, unique.len())?),
            |v| reference::scatter_rows(&v[0], &unique, &v[1].narrow(0, 0, unique.len())?),
        )
        .unwrap();
    }

    #[test]
    fn any_number_of_threads_gives_equal_bits() {
        let (inputs, index, unique) = many();
        same_for_any_threads(|| {
            let mut all = output_and_gradients(&inputs[..1], DType::F32, |v| gather_rows(&v[0], &index))?;
            let add = |v: &[Tensor]| scatter_add_rows(&v[0], &index, &v[1], 0.7);
            all.extend(output_and_gradients(&inputs, DType::F32, add)?);
            let replace = |v: &[Tensor]| scatter_rows(&v[0], &unique, &v[1].narrow(0, 0, unique.len())?);
            all.extend(output_and_gradients(&inputs, DType::F32, replace)?);
            Ok(all)
        })
        .unwrap();
    }

    #[test]
    fn nothing_moved_is_nothing_changed() {
        let base = sample(1, (3, 4)).unwrap();
        let none = Tensor::zeros((0, 4), DType::F64, &Device::Cpu).unwrap();
        assert_eq!(gather_rows(&base, &[]).unwrap().dims(), [0, 4]);
        let empty = Tensor::zeros((2, 0), DType::F64, &Device::Cpu).unwrap();
        assert_eq!(gather_rows(&empty, &[1, 1, 0]).unwrap().dims(), [3, 0]);
        for same in [scatter_rows(&base, &[], &none).unwrap(), scatter_add_rows(&base, &[], &none, 2.0).unwrap()] {
            assert_eq!(same.to_vec2::<f64>().unwrap(), base.to_vec2::<f64>().unwrap());
        }
    }

    #[test]
    fn bad_indices_shapes_and_dtypes_are_refused() {
        let base = sample(1, (3, 4)).unwrap();
        let src = sample(2, (2, 4)).unwrap();
        assert!(matches!(gather_rows(&base, &[3]), Err(Error::Argument { op: "gather_rows", .. })));
        assert!(matches!(scatter_rows(&base, &[0, 3], &src), Err(Error::Argument { .. })));
        assert!(matches!(scatter_rows(&base, &[1, 1], &src), Err(Error::Argument { .. })));
        assert!(matches!(scatter_add_rows(&base, &[0], &src, 1.0), Err(Error::Shape { .. })));
        assert!(matches!(scatter_rows(&base, &[0, 1], &sample(2, (2, 3)).unwrap()), Err(Error::Shape { .. })));
        let single = src.to_dtype(DType::F32).unwrap();
        assert!(matches!(scatter_add_rows(&base, &[0, 1], &single, 1.0), Err(Error::Dtype { .. })));
        assert!(matches!(reference::scatter_rows(&base, &[0, 3], &src), Err(Error::Argument { .. })));
        assert!(reference::scatter_rows(&Tensor::new(1_f32, &Device::Cpu).unwrap(), &[0], &src).is_err());
        let bytes = Tensor::zeros((3, 4), DType::U8, &Device::Cpu).unwrap();
        assert!(matches!(gather_rows(&bytes, &[0]), Err(Error::Dtype { got: DType::U8, .. })));
        assert!(matches!(gather_rows(&Tensor::new(1_f32, &Device::Cpu).unwrap(), &[0]), Err(Error::Shape { .. })));
    }
}
