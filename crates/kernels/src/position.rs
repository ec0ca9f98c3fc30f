//! CAPI's position encoding of queries and keys.

use crate::cpu::{self, Real, Values, by_dtype};
use crate::simd::{SINE_LIMIT, vectorised};
use crate::{Error, Result, input, reference};
use candle_core::{CpuStorage, CustomOp1, Layout, Shape, Tensor};

const OP: &str = "position_encode";
/// Tokens per parallel chunk.
const CHUNK: usize = 32;

/// The frequency table `[2, head_size]`, row-major: the first row holds the frequencies that multiply y (first half of the
/// channels), the second those that multiply x (second half). Inside a half the list of `head_size / 4` frequencies,
/// geometric from 7 down to 0.0007 turns over the image, appears twice (CAPI specification, section 5.3).
///
/// # Errors
/// `head_size` is zero or not divisible by 4.
pub fn frequency_table(head_size: usize) -> Result<Vec<f64>> {
    const HIGHEST: f64 = 7.0;
    const LOWEST: f64 = 7e-4;
    if head_size == 0 || !head_size.is_multiple_of(4) {
        return Err(Error::argument("frequency_table", format!("head size {head_size}: must be a multiple of 4")));
    }
    let (count, half) = (head_size / 4, head_size / 2);
    let steps = count.saturating_sub(1).max(1) as f64;
    let turns = |j: usize| HIGHEST * (HIGHEST / LOWEST).powf(-(j as f64) / steps);
    let mut table = vec![0.0; 2 * head_size];
    for c in 0..half {
        table[c] = std::f64::consts::TAU * turns(c % count);
        table[head_size + half + c] = table[c];
    }
    Ok(table)
}

/// Cosines and sines of every token's angle in every channel of a head. Computed once for the coordinates of a
/// forward pass and shared by all blocks whose tables are equal. Carries no gradient.
#[derive(Clone, Debug)]
pub struct Angles {
    cos: Tensor,
    sin: Tensor,
}

impl Angles {
    /// coords: [batch, n, 2] as (y, x), table: [2, head_size]. A batch of 1 serves every image alike.
    /// The angle is `y * table[0] + x * table[1]`, computed in the dtype of the tensors.
    ///
    /// # Errors
    /// Other shapes, an odd head size, unequal dtypes, or a dtype that is not f32 or f64.
    pub fn new(coords: &Tensor, table: &Tensor) -> Result<Self> {
        const OP: &str = "position angles";
        input::same_float(OP, coords, table)?;
        let [_, _, 2] = coords.dims() else { return Err(Error::shape(OP, "coords [batch, n, 2]", coords.dims())) };
        let [2, head_size] = *table.dims() else {
            return Err(Error::shape(OP, "a table [2, head_size]", table.dims()));
        };
        if !head_size.is_multiple_of(2) {
            return Err(Error::shape(OP, "a table with an even head size", table.dims()));
        }
        let (coords, table) = (coords.detach().contiguous()?, table.detach().contiguous()?);
        if !cpu::on_cpu(&coords) {
            let (cos, sin) = reference::position_angles(&coords, &table)?;
            return Ok(Self { cos, sin });
        }
        let (batch, n, _) = coords.dims3()?;
        by_dtype!(OP, coords.dtype(), T => {
            let (cos, sin) = tables(&Values::<T>::of(&coords)?, &Values::<T>::of(&table)?, head_size);
            let shape = (batch, n, head_size);
            Ok(Self { cos: cpu::tensor(cos, shape)?, sin: cpu::tensor(sin, shape)? })
        })
    }

    /// Those of `len` tokens from `start` on.
    pub(crate) fn tokens(&self, start: usize, len: usize) -> Result<Self> {
        let part = |table: &Tensor| table.narrow(1, start, len)?.contiguous();
        Ok(Self { cos: part(&self.cos)?, sin: part(&self.sin)? })
    }

    /// Cosines, [batch, n, head_size].
    #[must_use]
    pub fn cos(&self) -> &Tensor {
        &self.cos
    }

    /// Sines, [batch, n, head_size].
    #[must_use]
    pub fn sin(&self) -> &Tensor {
        &self.sin
    }

    /// Channels of a head.
    #[must_use]
    pub fn head_size(&self) -> usize {
        self.cos.dims().last().copied().unwrap_or(0)
    }
}

/// Applies the position encoding to queries or keys. x: [batch, n, heads * head_size], angles of [batch or 1, n, head_size].
///
/// Channel c of a head is paired with channel c + head_size/2:
/// `out[c] = x[c] cos[c] - x[c + half] sin[c]` and `out[c + half] = x[c + half] cos[c + half] + x[c] sin[c + half]`.
/// The two members of a pair use different angles, so this is no rotation: published weights were trained with it
/// (CAPI specification, section 5.3).
///
/// # Errors
/// Shapes that do not fit, unequal dtypes, or a dtype that is not f32 or f64.
pub fn position_encode(x: &Tensor, angles: &Angles, heads: usize) -> Result<Tensor> {
    check(x, angles, heads)?;
    if !cpu::on_cpu(x) {
        return reference::position_encode(x, angles, heads);
    }
    Ok(x.contiguous()?.apply_op1(Encode { angles: angles.clone() })?)
}

fn check(x: &Tensor, angles: &Angles, heads: usize) -> Result<()> {
    input::same_float(OP, x, &angles.cos)?;
    let (images, n, head_size) = angles.cos.dims3()?;
    let fits = matches!(*x.dims(), [batch, tokens, dim]
        if tokens == n && (images == batch || images == 1) && dim == heads * head_size);
    if fits {
        return Ok(());
    }
    let batch = if images == 1 { "batch".to_owned() } else { images.to_string() };
    Err(Error::shape(OP, format!("x of shape [{batch}, {n}, {heads} * {head_size}]"), x.dims()))
}

/// Cosines and sines of the angles of all tokens, [tokens, head_size]. coords: [tokens, 2], table: [2, head_size].
fn tables<T: Real>(coords: &[T], table: &[T], head_size: usize) -> (Vec<T>, Vec<T>) {
    let (tokens, channels) = (coords.len() / 2, head_size.max(1));
    let mut cos = vec![T::zero(); tokens * head_size];
    let work = 32 * cos.len();
    let at = |chunk: usize| &coords[2 * CHUNK * chunk..];
    cpu::for_chunks(&mut cos, CHUNK * channels, work, |chunk, cos| angles::<T>(at(chunk), table, cos));
    let mut sin = cos.clone();
    cpu::for_chunks(&mut cos, CHUNK * channels, work, |_, angle| elementary::<T>(angle, true));
    cpu::for_chunks(&mut sin, CHUNK * channels, work, |_, angle| elementary::<T>(angle, false));
    (cos, sin)
}

vectorised! {
    /// `angle = y * table[0] + x * table[1]`, each product rounded as the tensor form rounds it.
    fn angles / angles_at<T, ISA>(coords: &[T], table: &[T], angle: &mut [T]) {
        let (rows, columns) = table.split_at(table.len() / 2);
        for (angle, coords) in angle.chunks_exact_mut(rows.len().max(1)).zip(coords.chunks_exact(2)) {
            for ((angle, row), column) in angle.iter_mut().zip(rows).zip(columns) {
                *angle = coords[0] * *row + coords[1] * *column;
            }
        }
    }
}

vectorised! {
    /// Replaces angles by their cosines or sines.
    fn elementary / elementary_at<T, ISA>(angles: &mut [T], cosine: bool) {
        let limit = T::of(SINE_LIMIT);
        // Far beyond any frequency table in use; written so that NaN takes the short way and stays NaN.
        if angles.iter().any(|angle| angle.magnitude() > limit) {
            for angle in angles {
                let (sine, other) = angle.wide().sin_cos();
                *angle = T::of(if cosine { other } else { sine });
            }
        } else {
            for angle in angles {
                let (sine, other) = angle.sine_cosine::<ISA>();
                *angle = if cosine { other } else { sine };
            }
        }
    }
}

pub(crate) struct Encode {
    pub(crate) angles: Angles,
}

impl Encode {
    /// The map, or its transpose: what the gradient goes through.
    pub(crate) fn apply<T: Real>(&self, x: &[T], dims: &[usize], transposed: bool) -> Result<Vec<T>> {
        let (cos, sin) = (Values::<T>::of(&self.angles.cos)?, Values::<T>::of(&self.angles.sin)?);
        let (cos, sin): (&[T], &[T]) = (&cos, &sin);
        let (size, dim) = (self.angles.head_size(), dims.last().copied().unwrap_or(0));
        let tokens = cos.len() / size.max(1);
        Ok(cpu::fill_chunks(x.len(), CHUNK * dim, x.len(), |chunk, y: &mut [T]| {
            let x = &x[chunk * CHUNK * dim..][..y.len()];
            for (i, (x, y)) in x.chunks_exact(dim).zip(y.chunks_exact_mut(dim)).enumerate() {
                // A table of one image serves the whole batch.
                let token = (chunk * CHUNK + i) % tokens;
                let (cos, sin) = (&cos[token * size..][..size], &sin[token * size..][..size]);
                if transposed { pull(x, y, cos, sin) } else { push(x, y, cos, sin) }
            }
        }))
    }
}

vectorised! {
    /// One token, all heads: the forward map.
    fn push / push_at<T, ISA>(x: &[T], y: &mut [T], cos: &[T], sin: &[T]) {
        let half = cos.len() / 2;
        let ((cos_low, cos_high), (sin_low, sin_high)) = (cos.split_at(half), sin.split_at(half));
        for (x, y) in x.chunks_exact(2 * half).zip(y.chunks_exact_mut(2 * half)) {
            let ((x_low, x_high), (y_low, y_high)) = (x.split_at(half), y.split_at_mut(half));
            for c in 0..half {
                y_low[c] = x_low[c] * cos_low[c] - x_high[c] * sin_low[c];
                y_high[c] = x_high[c] * cos_high[c] + x_low[c] * sin_high[c];
            }
        }
    }
}

vectorised! {
    /// One token, all heads: the transposed map.
    fn pull / pull_at<T, ISA>(y: &[T], x: &mut [T], cos: &[T], sin: &[T]) {
        let half = cos.len() / 2;
        let ((cos_low, cos_high), (sin_low, sin_high)) = (cos.split_at(half), sin.split_at(half));
        for (y, x) in y.chunks_exact(2 * half).zip(x.chunks_exact_mut(2 * half)) {
            let ((y_low, y_high), (x_low, x_high)) = (y.split_at(half), x.split_at_mut(half));
            for c in 0..half {
                x_low[c] = y_low[c] * cos_low[c] + y_high[c] * sin_high[c];
                x_high[c] = y_high[c] * cos_high[c] - y_low[c] * sin_low[c];
            }
        }
    }
}

impl CustomOp1 for Encode {
    fn name(&self) -> &'static str {
        OP
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        by_dtype!(OP, cpu::dtype(storage), T => {
            let y = self.apply(cpu::slice::<T>(storage, layout)?, layout.dims(), false)?;
            Ok((cpu::storage(y), layout.shape().clone()))
        })
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, gradient: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let gradient = gradient.contiguous()?;
        by_dtype!(OP, x.dtype(), T => {
            let dx = self.apply(&Values::<T>::of(&gradient)?, x.dims(), true)?;
            cpu::tensor(dx, x.shape()).map(Some)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{Angles, frequency_table, position_encode};
    use crate::check::{check_op_with, output_and_gradients, same, same_for_any_threads, sample};
    use crate::reference;
    use candle_core::{DType, Device, Tensor};
    use occlude_golden::assert_close;

    fn table(head_size: usize, dtype: DType) -> Tensor {
        let values = frequency_table(head_size).unwrap();
        Tensor::from_vec(values, (2, head_size), &Device::Cpu).unwrap().to_dtype(dtype).unwrap()
    }

    #[test]
    fn golden_capi_frequency_tables() {
        let Some(tensors) = occlude_golden::set("capi").tensors("rope") else { return };
        let tables: Vec<_> = tensors.iter().filter(|(name, _)| name.ends_with(".freqs")).collect();
        assert!(!tables.is_empty());
        for (name, expected) in tables {
            assert_close(name, &table(expected.dim(1).unwrap(), DType::F64), expected, 1e-6);
        }
    }

    #[test]
    fn golden_capi_angles_of_grids() {
        let Some(tensors) = occlude_golden::set("capi").tensors("rope") else { return };
        let mut seen = 0;
        for (name, expected) in &tensors {
            let Some((grid, head)) = name.strip_suffix(".cos").and_then(|name| name.split_once('.')) else { continue };
            let coords = tensors[&format!("{grid}.coords")].unsqueeze(0).unwrap();
            let angles = Angles::new(&coords, &tensors[&format!("{head}.freqs")]).unwrap();
            assert_close(name, &angles.cos().squeeze(0).unwrap(), expected, 2e-5);
            let sin = format!("{grid}.{head}.sin");
            assert_close(&sin, &angles.sin().squeeze(0).unwrap(), &tensors[&sin], 2e-5);
            seen += 1;
        }
        assert!(seen > 0);
    }

    #[test]
    fn golden_capi_application() {
        let Some(tensors) = occlude_golden::set("capi").tensors("rope") else { return };
        let mut seen = 0;
        for (name, x) in &tensors {
            let Some(head) = name.strip_suffix(".apply_in") else { continue };
            let tensor = |part: &str| &tensors[&format!("{head}.{part}")];
            let heads = x.dim(1).unwrap(); // x: [batch, heads, n, head_size]
            let joined = |x: &Tensor| x.transpose(1, 2).unwrap().flatten_from(2).unwrap(); // [batch, n, dim]
            let coords = tensor("apply_coords").get_on_dim(1, 0).unwrap(); // [batch, n, 2]
            let y = position_encode(&joined(x), &Angles::new(&coords, tensor("freqs")).unwrap(), heads).unwrap();
            assert_close(name, &y, &joined(tensor("apply_out")), 2e-5);
            seen += 1;
        }
        assert!(seen > 0);
    }

    #[test]
    fn matches_its_reference_and_its_gradient() {
        for (images, batch, n, heads, size) in [(2, 2, 3, 2, 8), (1, 2, 5, 1, 4), (1, 1, 1, 3, 2), (2, 2, 40, 1, 12)] {
            let coords = sample(1, (images, n, 2)).unwrap();
            let frequencies = (sample(2, (2, size)).unwrap() * 9.0).unwrap();
            let x = sample(3, (batch, n, heads * size)).unwrap();
            check_op_with(
                &[x],
                &[coords, frequencies],
                |v, c| position_encode(&v[0], &Angles::new(&c[0], &c[1])?, heads),
                |v, c| {
                    let (cos, sin) = reference::position_angles(&c[0], &c[1])?;
                    reference::position_encode(&v[0], &Angles { cos, sin }, heads)
                },
            )
            .unwrap();
        }
    }

    #[test]
    fn large_angles_keep_their_precision() {
        let coords = (sample(1, (1, 9, 2)).unwrap() * 3e4).unwrap().to_dtype(DType::F32).unwrap();
        let frequencies = sample(2, (2, 8)).unwrap().to_dtype(DType::F32).unwrap();
        let angles = Angles::new(&coords, &frequencies).unwrap();
        let (cos, sin) = reference::position_angles(&coords, &frequencies).unwrap();
        same("cos", angles.cos(), &cos, 1e-6).unwrap();
        same("sin", angles.sin(), &sin, 1e-6).unwrap();
    }

    #[test]
    fn nan_stays_in_its_pair() {
        let angles = Angles::new(&Tensor::zeros((1, 1, 2), DType::F32, &Device::Cpu).unwrap(), &table(4, DType::F32));
        let x = Tensor::new(&[[[f32::NAN, 1.0, 2.0, 3.0]]], &Device::Cpu).unwrap();
        let y = position_encode(&x, &angles.unwrap(), 1).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert!(y[0].is_nan() && y[2].is_nan() && (y[1], y[3]) == (1.0, 3.0));
    }

    #[test]
    fn nothing_gives_nothing_and_what_does_not_fit_is_refused() {
        let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
        let angles = |images, n| Angles::new(&zeros(&[images, n, 2]), &table(4, DType::F32)).unwrap();
        assert_eq!(position_encode(&zeros(&[2, 0, 8]), &angles(2, 0), 2).unwrap().dims(), [2, 0, 8]);
        assert_eq!(position_encode(&zeros(&[0, 3, 8]), &angles(1, 3), 2).unwrap().dims(), [0, 3, 8]);
        let refusal = |x: &Tensor, heads| position_encode(x, &angles(2, 3), heads).unwrap_err().to_string();
        let expected = "position_encode: expected x of shape [2, 3, 2 * 4], got shape [2, 3, 4]";
        assert_eq!(refusal(&zeros(&[2, 3, 4]), 2), expected);
        assert!(refusal(&zeros(&[3, 3, 8]), 2).contains("shape"));
        assert!(refusal(&zeros(&[2, 3, 8]).to_dtype(DType::F64).unwrap(), 2).contains("dtype"));
        assert!(Angles::new(&zeros(&[2, 3, 3]), &table(4, DType::F32)).is_err());
        assert!(Angles::new(&zeros(&[2, 3, 2]), &zeros(&[2, 3])).is_err());
        assert!(Angles::new(&zeros(&[2, 3, 2]), &zeros(&[3, 4])).is_err());
        for size in [0, 2, 6] {
            assert!(frequency_table(size).is_err());
        }
        assert_eq!(frequency_table(4).unwrap()[0], 14.0 * std::f64::consts::PI);
    }

    #[test]
    fn threads_do_not_change_a_bit() {
        let coords = sample(1, (5, 50, 2)).unwrap().to_dtype(DType::F32).unwrap();
        let run = || {
            let angles = Angles::new(&coords, &table(32, DType::F32))?;
            let run = |v: &[Tensor]| position_encode(&v[0], &angles, 4);
            output_and_gradients(&[sample(2, (5, 50, 128))?], DType::F32, run)
        };
        same_for_any_threads(run).unwrap();
    }
}
