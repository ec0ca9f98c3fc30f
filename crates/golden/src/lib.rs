//! Tests only: finds reference tensors and images, and compares with them.
//!
//! Reference sets lie where `OCCLUDE_GOLDEN` says, else in `../shared/golden` beside the checkout; the small files are
//! also committed under `tests/golden`, so that a lone clone proves what it can. Images lie where `OCCLUDE_DATA` says,
//! else in `../shared/data`. A folder that is named must exist; a relative name starts at the root of the checkout, since
//! tests run in the folder of their package. What is missing otherwise is skipped with a message; with `CI=true` it is a
//! failure.
//!
//! Not here: anything a product uses. This crate is a dev-dependency and panics like a test does.
#![allow(clippy::panic, clippy::print_stderr, clippy::unwrap_used, clippy::expect_used)]

use candle_core::safetensors::Load;
use candle_core::{DType, Device, Tensor};
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

/// The reference set of one method: a folder of safetensors files and a `config.json` with every size.
#[derive(Clone, Debug)]
pub struct Set {
    name: String,
    folders: Vec<PathBuf>,
}

/// Tensors of one reference file by name.
pub type Tensors = BTreeMap<String, Tensor>;

/// The reference set `name` (such as `capi`).
#[must_use]
pub fn set(name: &str) -> Set {
    // A set that was named is the only one: falling back to the fixtures would prove something else.
    let roots = named("OCCLUDE_GOLDEN")
        .map_or_else(|| vec![beside_checkout("shared/golden"), checkout().join("tests/golden")], |root| vec![root]);
    Set { name: name.to_owned(), folders: roots.into_iter().map(|root| root.join(name)).collect() }
}

impl Set {
    /// The path of a file of the set, or `None` (after saying so) where it is absent.
    #[must_use]
    pub fn path(&self, file: &str) -> Option<PathBuf> {
        let found = self.folders.iter().map(|folder| folder.join(file)).find(|path| path.is_file());
        if found.is_none() {
            skip(&format!("reference file {}/{file}", self.name));
        }
        found
    }

    /// The tensors of `file.safetensors` in their own dtypes, on the CPU; booleans as bytes.
    #[must_use]
    pub fn tensors(&self, file: &str) -> Option<Tensors> {
        let path = self.path(&format!("{file}.safetensors"))?;
        let bytes = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let file = SafeTensors::deserialize(&bytes).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let tensor = |(name, view): (String, TensorView<'_>)| {
            let tensor = match view.dtype() {
                safetensors::Dtype::BOOL => Tensor::from_slice(view.data(), view.shape(), &Device::Cpu),
                _ => view.load(&Device::Cpu),
            };
            (name, tensor.unwrap_or_else(|e| panic!("{}: {e}", path.display())))
        };
        Some(file.tensors().into_iter().map(tensor).collect())
    }

    /// The notes in the head of `file.safetensors`: texts by name.
    #[must_use]
    pub fn notes(&self, file: &str) -> Option<BTreeMap<String, String>> {
        let path = self.path(&format!("{file}.safetensors"))?;
        let bytes = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let (_, head) = SafeTensors::read_metadata(&bytes).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        Some(head.metadata().clone().unwrap_or_default().into_iter().collect())
    }

    /// `config.json` of the set: every size a test needs.
    #[must_use]
    pub fn config(&self) -> Option<serde_json::Value> {
        self.json("config.json")
    }

    /// A JSON file of the set.
    #[must_use]
    pub fn json(&self, file: &str) -> Option<serde_json::Value> {
        let path = self.path(file)?;
        let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        Some(serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display())))
    }
}

/// The values of an integer or boolean tensor, row-major.
#[must_use]
pub fn integers(tensor: &Tensor) -> Vec<i64> {
    tensor.flatten_all().and_then(|flat| flat.to_dtype(DType::I64)?.to_vec1()).unwrap()
}

/// The path of a data pack (such as `cifar10/test.tar`), or `None` (after saying so) where it is absent.
#[must_use]
pub fn data(pack: &str) -> Option<PathBuf> {
    let root = named("OCCLUDE_DATA").unwrap_or_else(|| beside_checkout("shared/data"));
    let path = root.join(pack);
    if path.exists() {
        return Some(path);
    }
    skip(&format!("data pack {pack}"));
    None
}

/// The root of the checkout.
#[must_use]
pub fn checkout() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).expect("crates/golden lies two levels down").to_path_buf()
}

/// The folder that an environment variable names; none where it is unset or empty.
fn named(variable: &str) -> Option<PathBuf> {
    std::env::var_os(variable).filter(|value| !value.is_empty()).map(|value| folder(variable, &value))
}

/// A folder named by `variable`. One that is not there is a failure: a slip of the pen must not skip every test.
fn folder(variable: &str, value: &OsStr) -> PathBuf {
    let folder = checkout().join(value);
    assert!(folder.is_dir(), "{variable}: {} is not a folder", folder.display());
    folder
}

fn beside_checkout(path: &str) -> PathBuf {
    checkout().parent().map_or_else(PathBuf::new, |parent| parent.join(path))
}

fn skip(what: &str) {
    assert!(std::env::var("CI").as_deref() != Ok("true"), "{what} is missing");
    eprintln!("skipped: {what} is missing");
}

/// The tensors with every fused matrix or vector of queries, keys and values (`*.qkv.*`) as three (`*.q.*`, `*.k.*`,
/// `*.v.*`): the names of this project.
#[must_use]
pub fn with_split_attention(tensors: Tensors) -> Tensors {
    let split = |(name, tensor): (String, Tensor)| match name.split_once(".qkv.") {
        None => vec![(name, tensor)],
        Some((block, rest)) => {
            let thirds = tensor.chunk(3, 0).expect("three equal parts");
            let third = |(letter, third): (&str, Tensor)| {
                (format!("{block}.{letter}.{rest}"), third.contiguous().expect("a copy"))
            };
            ["q", "k", "v"].into_iter().zip(thirds).map(third).collect()
        }
    };
    tensors.into_iter().flat_map(split).collect()
}

/// Largest absolute difference over the largest absolute reference value, in f64; the difference itself where the
/// reference is all zeros. Infinite where the shapes differ or either side holds a value that is not finite.
#[must_use]
pub fn relative_difference(got: &Tensor, reference: &Tensor) -> f64 {
    if got.dims() != reference.dims() {
        return f64::INFINITY;
    }
    let values = |tensor: &Tensor| -> Vec<f64> {
        tensor.flatten_all().and_then(|t| t.to_dtype(DType::F64)).and_then(|t| t.to_vec1()).expect("a float tensor")
    };
    let (got, reference) = (values(got), values(reference));
    let scale = reference.iter().fold(0.0_f64, |most, value| most.max(value.abs()));
    let mut worst = 0.0_f64;
    for (a, b) in got.iter().zip(&reference) {
        let difference = (a - b).abs();
        if !difference.is_finite() {
            return f64::INFINITY;
        }
        worst = worst.max(difference);
    }
    if scale > 0.0 { worst / scale } else { worst }
}

/// Fails unless [`relative_difference`] is at most `bound`, naming the tensor.
pub fn assert_close(name: &str, got: &Tensor, reference: &Tensor, bound: f64) {
    let difference = relative_difference(got, reference);
    assert!(
        difference <= bound,
        "{name}: relative difference {difference:.3e} exceeds {bound:.1e} (shapes {:?}, reference {:?})",
        got.dims(),
        reference.dims()
    );
}

#[cfg(test)]
mod tests {
    use super::{checkout, folder, relative_difference, with_split_attention};
    use candle_core::{Device, Tensor};

    #[test]
    fn a_relative_folder_starts_at_the_checkout() {
        assert_eq!(folder("OCCLUDE_GOLDEN", "crates/golden".as_ref()), checkout().join("crates/golden"));
        assert_eq!(folder("OCCLUDE_GOLDEN", checkout().as_os_str()), checkout());
    }

    #[test]
    #[should_panic(expected = "OCCLUDE_GOLDEN")]
    fn a_folder_that_is_not_there_is_a_failure() {
        folder("OCCLUDE_GOLDEN", "tests/goldne".as_ref());
    }

    #[test]
    fn what_is_not_finite_is_infinitely_far() {
        let of = |value: f32| Tensor::new(&[1.0, value], &Device::Cpu).unwrap();
        for (got, reference) in [(f32::NAN, 1.0), (1.0, f32::NAN), (1.0, f32::INFINITY), (f32::INFINITY, 1.0)] {
            assert_eq!(relative_difference(&of(got), &of(reference)), f64::INFINITY);
        }
        assert_eq!(relative_difference(&of(1.5), &of(2.0)), 0.25);
    }

    #[test]
    fn a_fused_attention_is_split_by_rows() {
        let fused = Tensor::arange(0_f32, 6.0, &Device::Cpu).unwrap();
        let tensors = [("a.qkv.bias".to_owned(), fused.clone()), ("a.proj.bias".to_owned(), fused)];
        let split = with_split_attention(tensors.into());
        let values: Vec<_> = split.iter().map(|(name, t)| (name.as_str(), t.to_vec1::<f32>().unwrap())).collect();
        let all = vec![0.0, 1.0, 2.0, 3.0, 4.0, 5.0];
        let third = |name, at: usize| (name, all[at..at + 2].to_vec());
        let expected = [third("a.k.bias", 2), ("a.proj.bias", all.clone()), third("a.q.bias", 0), third("a.v.bias", 4)];
        assert_eq!(values, expected);
    }
}
