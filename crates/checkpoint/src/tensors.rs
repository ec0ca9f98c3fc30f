//! State dictionaries as safetensors files, written as a stream: one tensor is held at a time.

use crate::files::write_whole_with;
use crate::{CommitError, Error, Result};
use candle_core::{DType, Device, Tensor, WithDType};
use occlude_kernels::StateDict;
use std::collections::BTreeMap;
use std::fs;
use std::io::{self, BufWriter, Write};
use std::path::Path;

/// Largest tensor file that is read: 64 GiB.
pub const MAX_TENSOR_FILE_BYTES: u64 = 64 << 30;

/// Writes `tensors` to one safetensors file, whole.
///
/// # Errors
/// As [`crate::write_whole`]; also a dtype that the format does not have.
pub fn write_tensors(path: &Path, tensors: &StateDict) -> Result<(), CommitError> {
    write_whole_with(path, |file| {
        let mut buffered = BufWriter::new(file);
        serialize(tensors, &mut buffered)?;
        buffered.flush()
    })
}

/// Reads a safetensors file. The dtypes are those of the file.
///
/// # Errors
/// The file cannot be read, is larger than [`MAX_TENSOR_FILE_BYTES`], or is not well formed.
pub fn read_tensors(path: &Path, device: &Device) -> Result<StateDict> {
    let size = fs::metadata(path).map_err(Error::io(path))?.len();
    within(path, size, MAX_TENSOR_FILE_BYTES)?;
    parse(path, &fs::read(path).map_err(Error::io(path))?, device)
}

/// Refuses a file of `size` bytes before any of it is read.
pub(crate) fn within(path: &Path, size: u64, limit: u64) -> Result<()> {
    if size <= limit { Ok(()) } else { Err(Error::TooLarge { path: path.to_owned(), size, limit }) }
}

/// The tensors of a safetensors file given as bytes; `path` is for messages. Offsets and sizes are checked against
/// the bytes at hand before any tensor is made.
pub(crate) fn parse(path: &Path, bytes: &[u8], device: &Device) -> Result<StateDict> {
    let tensors = candle_core::safetensors::load_buffer(bytes, device)
        .map_err(|error| Error::damaged(path, error.to_string()))?;
    Ok(tensors.into_iter().collect())
}

/// Writes the safetensors form: header length, header, then the bytes of the tensors.
pub(crate) fn serialize(tensors: &StateDict, out: &mut impl Write) -> io::Result<()> {
    // Wide types first, so that every tensor is aligned to its own size.
    let mut order: Vec<(&String, &Tensor)> = tensors.iter().collect();
    order.sort_by_key(|(_, tensor)| std::cmp::Reverse(tensor.dtype().size_in_bytes()));
    let header = header(&order)?;
    out.write_all(&(header.len() as u64).to_le_bytes())?;
    out.write_all(&header)?;
    order.into_iter().try_for_each(|(_, tensor)| write_bytes(tensor, out))
}

fn header(order: &[(&String, &Tensor)]) -> io::Result<Vec<u8>> {
    let mut entries = BTreeMap::new();
    // What Python loaders look for before they accept a file.
    entries.insert("__metadata__".to_owned(), serde_json::json!({ "format": "pt" }));
    let mut start = 0_usize;
    for (name, tensor) in order {
        let end = start + tensor.elem_count() * tensor.dtype().size_in_bytes();
        let entry = serde_json::json!({
            "dtype": dtype_name(tensor.dtype())?,
            "shape": tensor.dims(),
            "data_offsets": [start, end],
        });
        entries.insert((*name).clone(), entry);
        start = end;
    }
    let mut header = serde_json::to_vec(&entries)?;
    header.resize(header.len().next_multiple_of(8), b' ');
    Ok(header)
}

fn dtype_name(dtype: DType) -> io::Result<&'static str> {
    match dtype {
        DType::U8 => Ok("U8"),
        DType::U32 => Ok("U32"),
        DType::I64 => Ok("I64"),
        DType::BF16 => Ok("BF16"),
        DType::F16 => Ok("F16"),
        DType::F32 => Ok("F32"),
        DType::F64 => Ok("F64"),
        other => Err(io::Error::other(format!("tensors of type {other:?} cannot be stored"))),
    }
}

fn write_bytes(tensor: &Tensor, out: &mut impl Write) -> io::Result<()> {
    match tensor.dtype() {
        DType::U8 => write_values::<u8, 1>(tensor, out, |v| [v]),
        DType::U32 => write_values::<u32, 4>(tensor, out, u32::to_le_bytes),
        DType::I64 => write_values::<i64, 8>(tensor, out, i64::to_le_bytes),
        DType::BF16 => write_values::<half::bf16, 2>(tensor, out, half::bf16::to_le_bytes),
        DType::F16 => write_values::<half::f16, 2>(tensor, out, half::f16::to_le_bytes),
        DType::F32 => write_values::<f32, 4>(tensor, out, f32::to_le_bytes),
        DType::F64 => write_values::<f64, 8>(tensor, out, f64::to_le_bytes),
        other => Err(io::Error::other(format!("tensors of type {other:?} cannot be stored"))),
    }
}

/// Little-endian bytes of every value, in pieces: the copy on the host is the only one of the tensor's size.
fn write_values<T: WithDType, const N: usize>(
    tensor: &Tensor,
    out: &mut impl Write,
    bytes: impl Fn(T) -> [u8; N],
) -> io::Result<()> {
    const PIECE: usize = 1 << 16;
    let values = tensor.flatten_all().and_then(|flat| flat.to_vec1::<T>()).map_err(io::Error::other)?;
    let mut piece = Vec::with_capacity(PIECE.min(values.len()) * N);
    for chunk in values.chunks(PIECE) {
        piece.clear();
        chunk.iter().for_each(|value| piece.extend_from_slice(&bytes(*value)));
        out.write_all(&piece)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{read_tensors, write_tensors};
    use crate::Error;
    use candle_core::{DType, Device, Tensor};
    use occlude_kernels::StateDict;
    use std::fs;

    fn sample() -> StateDict {
        let ramp = Tensor::arange(0_f32, 12.0, &Device::Cpu).unwrap().reshape((3, 4)).unwrap();
        let types = [DType::F32, DType::F64, DType::BF16, DType::F16, DType::U8, DType::U32, DType::I64];
        let mut tensors: StateDict =
            types.iter().map(|dtype| (format!("{dtype:?}"), ramp.to_dtype(*dtype).unwrap())).collect();
        tensors.insert("turned".into(), ramp.t().unwrap());
        tensors.insert("empty".into(), Tensor::zeros((0, 5), DType::F32, &Device::Cpu).unwrap());
        tensors.insert("scalar".into(), Tensor::new(-3.25_f64, &Device::Cpu).unwrap());
        tensors
    }

    #[test]
    fn every_type_and_layout_comes_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.safetensors");
        let written = sample();
        write_tensors(&path, &written).unwrap();
        let read = read_tensors(&path, &Device::Cpu).unwrap();
        assert_eq!(read.keys().collect::<Vec<_>>(), written.keys().collect::<Vec<_>>());
        for (name, tensor) in &written {
            assert_eq!((read[name].dtype(), read[name].dims()), (tensor.dtype(), tensor.dims()), "{name}");
            let values = |t: &Tensor| t.flatten_all().unwrap().to_dtype(DType::F64).unwrap().to_vec1::<f64>().unwrap();
            assert_eq!(values(&read[name]), values(tensor), "{name}");
        }
    }

    #[test]
    fn a_header_that_promises_more_than_the_file_holds_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.safetensors");
        let header = br#"{"a":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4000000000000]}}"#;
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(header);
        fs::write(&path, &bytes).unwrap();
        assert!(matches!(read_tensors(&path, &Device::Cpu), Err(Error::Damaged { .. })));
        // A header length near 2^64 must not be allocated.
        bytes[..8].copy_from_slice(&u64::MAX.to_le_bytes());
        fs::write(&path, &bytes).unwrap();
        assert!(matches!(read_tensors(&path, &Device::Cpu), Err(Error::Damaged { .. })));
    }

    #[test]
    fn a_file_over_the_limit_is_refused_unread() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("huge.safetensors");
        // Sparse: it has the length, not the bytes.
        fs::File::create(&path).unwrap().set_len(super::MAX_TENSOR_FILE_BYTES + 1).unwrap();
        assert!(matches!(read_tensors(&path, &Device::Cpu), Err(Error::TooLarge { .. })));
    }
}
