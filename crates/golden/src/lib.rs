//! Tests only: finds reference tensors and images, and compares with them.
//!
//! Reference sets lie where `OCCLUDE_GOLDEN` says, else in `../shared/golden` beside the checkout; the small files are
//! also committed under `tests/golden`, so that a lone clone proves what it can. Images lie where `OCCLUDE_DATA` says,
//! else in `../shared/data`. What is missing is skipped with a message; with `CI=true` it is a failure.
//!
//! Not here: anything a product uses. This crate is a dev-dependency and panics like a test does.
#![allow(clippy::panic, clippy::print_stderr, clippy::unwrap_used, clippy::expect_used)]

use candle_core::{DType, Device, Tensor};
use std::collections::BTreeMap;
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
    let given = std::env::var_os("OCCLUDE_GOLDEN").map(PathBuf::from);
    // A set that was named is the only one: falling back to the fixtures would prove something else.
    let roots = given
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

    /// The tensors of `file.safetensors` in their own dtypes, on the CPU.
    #[must_use]
    pub fn tensors(&self, file: &str) -> Option<Tensors> {
        let path = self.path(&format!("{file}.safetensors"))?;
        let map =
            candle_core::safetensors::load(&path, &Device::Cpu).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        Some(map.into_iter().collect())
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

/// The path of a data pack (such as `cifar10/test.tar`), or `None` (after saying so) where it is absent.
#[must_use]
pub fn data(pack: &str) -> Option<PathBuf> {
    let root = std::env::var_os("OCCLUDE_DATA").map_or_else(|| beside_checkout("shared/data"), PathBuf::from);
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

fn beside_checkout(path: &str) -> PathBuf {
    checkout().parent().map_or_else(PathBuf::new, |parent| parent.join(path))
}

fn skip(what: &str) {
    assert!(std::env::var("CI").as_deref() != Ok("true"), "{what} is missing");
    eprintln!("skipped: {what} is missing");
}

/// Largest absolute difference over the largest absolute reference value, in f64. Infinite where a shape differs or a
/// value is not finite on one side only.
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
        if difference.is_nan() {
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
