//! Parameters: an ordered, named store in place of candle's `VarMap` (whose order is a hash map's).
//!
//! A block asks its [`Scope`] for parameters and keeps the tensors; the store keeps the same storage under the full
//! name, with the factors the optimizer needs. Order is the order of construction, the same in every run.

use crate::{Error, Result};
use candle_core::{DType, Device, Tensor, Var};
use occlude_random::{Stream, Streams, normal, unit};
use std::collections::BTreeMap;

/// Tensors by full name, as written to a checkpoint.
pub type StateDict = BTreeMap<String, Tensor>;

/// Multipliers of a parameter on the learning rate and weight decay of its group.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Factors {
    /// On the learning rate.
    pub lr: f64,
    /// On the weight decay.
    pub wd: f64,
}

impl Factors {
    /// The plain case: both 1.
    pub const ONE: Self = Self { lr: 1.0, wd: 1.0 };
    /// Full learning rate, no decay: biases.
    pub const NO_DECAY: Self = Self { lr: 1.0, wd: 0.0 };
}

/// What happens to a tensor of the store after it was made.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Role {
    /// Trained by gradient.
    Trained(Factors),
    /// Stored and loaded with the rest, never changed by an optimizer: frequency tables.
    Constant,
}

/// One named tensor. Clones share storage.
#[derive(Clone, Debug)]
pub struct Param {
    /// Full name, dots between levels.
    pub name: String,
    /// The tensor; tracked by autograd if the store trains and the role is `Trained`.
    pub tensor: Tensor,
    /// What happens to it.
    pub role: Role,
}

/// How a parameter is first filled. Draws come from the stream `init/<name>`, whatever the order of construction.
#[derive(Clone, Debug)]
pub enum Init {
    /// All equal.
    Constant(f64),
    /// N(0, std^2).
    Normal {
        /// Standard deviation.
        std: f64,
    },
    /// N(0, std^2), redrawn until within +-bound.
    TruncatedNormal {
        /// Standard deviation before truncation.
        std: f64,
        /// Largest magnitude.
        bound: f64,
    },
    /// U(-bound, bound).
    Uniform {
        /// Largest magnitude.
        bound: f64,
    },
    /// Given values, row-major.
    Values(Vec<f64>),
}

impl Init {
    /// Xavier uniform: U(-b, b) with b = sqrt(6 / (fan_in + fan_out)).
    #[must_use]
    pub fn xavier_uniform(fan_in: usize, fan_out: usize) -> Self {
        Self::Uniform { bound: (6.0 / (fan_in + fan_out) as f64).sqrt() }
    }

    /// Refuses what could not be drawn in any time.
    fn check(&self, name: &str) -> Result<()> {
        match self {
            Self::TruncatedNormal { std, bound } if !(*std >= 0.0 && *bound > 0.0 && *bound >= 1e-3 * std) => {
                let allowed = "std must be at least 0, bound above 0 and at least std / 1000";
                Err(Error::argument("truncated normal", format!("{name}: std = {std}, bound = {bound}: {allowed}")))
            }
            _ => Ok(()),
        }
    }

    fn draw(&self, count: usize, stream: &mut Stream) -> Vec<f64> {
        match self {
            Self::Constant(value) => vec![*value; count],
            Self::Normal { std } => (0..count).map(|_| std * normal(stream)).collect(),
            Self::TruncatedNormal { std, bound } => {
                (0..count).map(|_| truncated_normal(*std, *bound, stream)).collect()
            }
            Self::Uniform { bound } => (0..count).map(|_| bound * (2.0 * unit(stream) - 1.0)).collect(),
            Self::Values(values) => values.clone(),
        }
    }
}

fn truncated_normal(std: f64, bound: f64, stream: &mut Stream) -> f64 {
    loop {
        let value = std * normal(stream);
        if value.abs() <= bound {
            return value;
        }
    }
}

/// All parameters of one model, in order.
#[derive(Debug)]
pub struct ParamStore {
    params: Vec<Param>,
    trains: bool,
    dtype: DType,
    device: Device,
    streams: Streams,
}

impl ParamStore {
    /// A store whose `Trained` tensors are tracked by autograd.
    #[must_use]
    pub fn trainable(streams: Streams, dtype: DType, device: &Device) -> Self {
        Self { params: Vec::new(), trains: true, dtype, device: device.clone(), streams }
    }

    /// A store of which nothing is tracked: a teacher, or a frozen model. Its forward pass records no graph.
    #[must_use]
    pub fn frozen(streams: Streams, dtype: DType, device: &Device) -> Self {
        Self { trains: false, ..Self::trainable(streams, dtype, device) }
    }

    /// The root scope: names are used as given.
    pub fn root(&mut self) -> Scope<'_> {
        Scope { store: self, prefix: String::new() }
    }

    /// Every tensor, in order of construction.
    #[must_use]
    pub fn params(&self) -> &[Param] {
        &self.params
    }

    /// The tensors an optimizer may change, in order of construction.
    pub fn trained(&self) -> impl Iterator<Item = &Param> {
        self.params.iter().filter(|param| matches!(param.role, Role::Trained(_)))
    }

    /// The tensor of this full name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Tensor> {
        self.params.iter().find(|param| param.name == name).map(|param| &param.tensor)
    }

    /// All tensors by name. They share storage with the store: write or copy them before the next step.
    #[must_use]
    pub fn state(&self) -> StateDict {
        self.params.iter().map(|param| (param.name.clone(), param.tensor.detach())).collect()
    }

    /// Overwrites every tensor from `state` (any float dtype, same shapes; counts from integers).
    ///
    /// # Errors
    /// A missing name, a name the store does not have, another shape, or integers for floats and floats for counts;
    /// nothing is changed then.
    pub fn load(&self, state: &StateDict) -> Result<()> {
        for param in &self.params {
            let given = state.get(&param.name).ok_or_else(|| Error::State(format!("{} is missing", param.name)))?;
            if given.dims() != param.tensor.dims() {
                return Err(Error::State(format!(
                    "{} has shape {:?}, expected {:?}",
                    param.name,
                    given.dims(),
                    param.tensor.dims()
                )));
            }
            let float = param.tensor.dtype().is_float();
            if given.dtype().is_float() != float {
                let expected = if float { "a float" } else { "an integer" };
                return Err(Error::State(format!("{} is {:?}, expected {expected}", param.name, given.dtype())));
            }
        }
        if let Some(name) = state.keys().find(|name| self.get(name).is_none()) {
            return Err(Error::State(format!("{name} is not a parameter here")));
        }
        for param in &self.params {
            assign(&param.tensor, &state[&param.name])?;
        }
        Ok(())
    }

    fn unused(&self, name: &str) -> Result<()> {
        match self.get(name) {
            Some(_) => Err(Error::State(format!("{name} is defined twice"))),
            None => Ok(()),
        }
    }

    fn add(&mut self, name: String, shape: &[usize], init: &Init, role: Role) -> Result<Tensor> {
        self.unused(&name)?;
        init.check(&name)?;
        let count = shape.iter().product();
        let values = init.draw(count, &mut self.streams.stream(&format!("init/{name}"), 0, 0));
        if values.len() != count {
            return Err(Error::State(format!("{name}: {} initial values for shape {shape:?}", values.len())));
        }
        let tensor = Tensor::from_vec(values, shape, &Device::Cpu)?.to_dtype(self.dtype)?.to_device(&self.device)?;
        let tensor = match role {
            Role::Trained(_) if self.trains => Var::from_tensor(&tensor)?.into_inner(),
            _ => tensor,
        };
        self.params.push(Param { name, tensor: tensor.clone(), role });
        Ok(tensor)
    }
}

/// A place in the store where a block makes its parameters.
#[derive(Debug)]
pub struct Scope<'a> {
    store: &'a mut ParamStore,
    prefix: String,
}

impl Scope<'_> {
    /// The scope `name` inside this one.
    pub fn sub(&mut self, name: impl std::fmt::Display) -> Scope<'_> {
        let prefix = self.join(&name.to_string());
        Scope { store: self.store, prefix }
    }

    /// A trained tensor of this shape.
    ///
    /// # Errors
    /// The name exists already, given values do not fill the shape, or a truncated normal has no room.
    pub fn trained(&mut self, name: &str, shape: &[usize], init: &Init, factors: Factors) -> Result<Tensor> {
        self.store.add(self.join(name), shape, init, Role::Trained(factors))
    }

    /// A stored tensor that no optimizer changes.
    ///
    /// # Errors
    /// As [`Scope::trained`].
    pub fn constant(&mut self, name: &str, shape: &[usize], init: &Init) -> Result<Tensor> {
        self.store.add(self.join(name), shape, init, Role::Constant)
    }

    /// A stored count that no optimizer changes: int64 whatever the dtype of the store, zero at first.
    ///
    /// # Errors
    /// The name exists already.
    pub fn count(&mut self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let name = self.join(name);
        self.store.unused(&name)?;
        let tensor = Tensor::zeros(shape, DType::I64, &self.store.device)?;
        self.store.params.push(Param { name, tensor: tensor.clone(), role: Role::Constant });
        Ok(tensor)
    }

    /// The dtype of the store.
    #[must_use]
    pub fn dtype(&self) -> DType {
        self.store.dtype
    }

    /// The device of the store.
    #[must_use]
    pub fn device(&self) -> &Device {
        &self.store.device
    }

    fn join(&self, name: &str) -> String {
        if self.prefix.is_empty() { name.to_owned() } else { format!("{}.{name}", self.prefix) }
    }
}

/// Overwrites the storage of `target` with the values of `source` (same shape; cast and moved as needed).
/// Only safe between steps: a graph that still holds `target` would see the new values.
///
/// # Errors
/// Another shape, or a failed cast.
pub fn assign(target: &Tensor, source: &Tensor) -> Result<()> {
    if target.dims() != source.dims() {
        return Err(Error::shape("assign", format!("shape {:?}", target.dims()), source.dims()));
    }
    crate::precision::forget();
    // A copy: source and target may share storage, which `slice_set` refuses.
    let source = source.detach().to_dtype(target.dtype())?.to_device(target.device())?.copy()?;
    if target.elem_count() > 0 {
        target.flatten_all()?.slice_set(&source.flatten_all()?, 0, 0)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{Factors, Init, ParamStore, StateDict};
    use candle_core::{DType, Device, Tensor};
    use occlude_random::Streams;

    fn store() -> ParamStore {
        let mut store = ParamStore::trainable(Streams::new(1), DType::F32, &Device::Cpu);
        let mut root = store.root();
        let mut blocks = root.sub("blocks");
        let mut norm = blocks.sub(0);
        norm.constant("table", &[2], &Init::Values(vec![1.0, 2.0])).unwrap();
        norm.trained("weight", &[4, 3], &Init::xavier_uniform(3, 4), Factors::ONE).unwrap();
        store
    }

    #[test]
    fn names_are_full_and_ordered() {
        let names: Vec<_> = store().params().iter().map(|param| param.name.clone()).collect();
        assert_eq!(names, ["blocks.0.table", "blocks.0.weight"]);
    }

    #[test]
    fn only_trained_tensors_of_a_training_store_are_variables() {
        let tracked: Vec<bool> = store().params().iter().map(|param| param.tensor.is_variable()).collect();
        assert_eq!(tracked, [false, true]);
    }

    #[test]
    fn loading_writes_into_the_tensor_a_block_holds() {
        let store = store();
        let held = store.get("blocks.0.weight").unwrap().clone();
        let mut state: StateDict = store.state();
        state.insert("blocks.0.weight".into(), Tensor::full(5_f64, (4, 3), &Device::Cpu).unwrap());
        store.load(&state).unwrap();
        assert_eq!(held.sum_all().unwrap().to_scalar::<f32>().unwrap(), 60.0);
    }

    #[test]
    fn counts_are_integers_in_and_out() {
        let mut store = store();
        let held = store.root().sub("norm").count("tracked", &[]).unwrap();
        assert!(store.root().count("norm.tracked", &[1]).unwrap_err().to_string().contains("defined twice"));
        let mut state = store.state();
        assert_eq!(state["norm.tracked"].dtype(), DType::I64);
        state.insert("norm.tracked".into(), Tensor::new(5.0_f32, &Device::Cpu).unwrap());
        let message = store.load(&state).unwrap_err().to_string();
        assert!(message.contains("norm.tracked is F32, expected an integer"), "{message}");
        assert_eq!(held.to_scalar::<i64>().unwrap(), 0);
        state.insert("norm.tracked".into(), Tensor::new(5_u32, &Device::Cpu).unwrap());
        store.load(&state).unwrap();
        assert_eq!(held.to_scalar::<i64>().unwrap(), 5);
    }

    #[test]
    fn a_truncation_without_room_is_refused() {
        let mut store = store();
        for (std, bound) in [(1.0, 0.0), (1.0, -1.0), (1.0, f64::NAN), (f64::NAN, 1.0), (-1.0, 1.0), (1.0, 1e-9)] {
            let init = Init::TruncatedNormal { std, bound };
            let message = store.root().trained("w", &[2], &init, Factors::ONE).unwrap_err().to_string();
            assert!(message.starts_with("truncated normal: w: std ="), "{message}");
        }
        let init = Init::TruncatedNormal { std: 0.0, bound: 1.0 };
        let still = store.root().trained("w", &[2], &init, Factors::ONE).unwrap();
        assert_eq!(still.to_vec1::<f32>().unwrap(), [0.0; 2]);
    }

    #[test]
    fn a_state_that_does_not_fit_changes_nothing() {
        let store = store();
        let before = store.get("blocks.0.weight").unwrap().to_vec2::<f32>().unwrap();
        let mut missing = store.state();
        missing.remove("blocks.0.table");
        let mut unknown = store.state();
        unknown.insert("blocks.1.weight".into(), Tensor::zeros(1, DType::F32, &Device::Cpu).unwrap());
        let mut reshaped = store.state();
        reshaped.insert("blocks.0.weight".into(), Tensor::zeros((3, 4), DType::F32, &Device::Cpu).unwrap());
        let mut counted = store.state();
        counted.insert("blocks.0.weight".into(), Tensor::zeros((4, 3), DType::U8, &Device::Cpu).unwrap());
        for (state, named) in [
            (missing, "0.table"),
            (unknown, "blocks.1.weight"),
            (reshaped, "0.weight"),
            (counted, "0.weight is U8, expected a float"),
        ] {
            let message = store.load(&state).unwrap_err().to_string();
            assert!(message.contains(named), "{message}");
        }
        assert_eq!(store.get("blocks.0.weight").unwrap().to_vec2::<f32>().unwrap(), before);
    }
}
