//! Groups of parameters.

use crate::Schedule;
use candle_core::{DType, Storage, Tensor};
use occlude_kernels::{Error, Param, Result};

/// Parameters that share a schedule and settings.
#[derive(Clone, Debug)]
pub struct ParamGroup {
    /// Short name, unique within an optimizer: the prefix of its state.
    pub name: &'static str,
    /// What is trained. Constants may be among them: they have no gradient, and are averaged with the rest.
    pub params: Vec<Param>,
    /// Learning rate before the factor of each parameter.
    pub lr: Schedule,
    /// Weight decay before the factor of each parameter; decoupled, multiplied by the learning rate.
    pub weight_decay: Schedule,
    /// Decays of the first and second moment.
    pub betas: (f64, f64),
    /// Added to the root of the second moment, outside the root.
    pub eps: f64,
    /// Averages updated in the same pass, right after the parameters.
    pub ema: Option<Ema>,
}

/// The moving average of a group: a teacher.
#[derive(Clone, Debug)]
pub struct Ema {
    /// One for each of the group's `params`, in their order; same shapes, dtypes and devices, memory of their own.
    pub averages: Vec<Param>,
    /// `average = m * average + (1 - m) * parameter`.
    pub momentum: Schedule,
}

impl ParamGroup {
    /// AdamW as CAPI sets it: betas (0.9, 0.95), eps 1e-8, weight decay 0.1, no averages.
    #[must_use]
    pub fn adamw(name: &'static str, params: &[Param], lr: Schedule) -> Self {
        let weight_decay = Schedule::constant(0.1);
        Self { name, params: params.to_vec(), lr, weight_decay, betas: (0.9, 0.95), eps: 1e-8, ema: None }
    }

    /// The average of parameter `index`.
    pub(crate) fn average(&self, index: usize) -> Option<&Param> {
        self.ema.as_ref().and_then(|ema| ema.averages.get(index))
    }

    /// Refuses settings outside their range, and averages that do not pair with the parameters.
    pub(crate) fn check(&self) -> Result<()> {
        self.check_decay(0)?;
        let numbers = [
            ("first beta", self.betas.0, (0.0..1.0).contains(&self.betas.0)),
            ("second beta", self.betas.1, (0.0..1.0).contains(&self.betas.1)),
            ("eps", self.eps, self.eps >= 0.0 && self.eps.is_finite()),
        ];
        if let Some((what, value, _)) = numbers.iter().find(|(_, _, holds)| !holds) {
            return Err(refused(format!("group {}: {what} {value} is out of range", self.name)));
        }
        // What follows is refused here, so that a step cannot fail halfway.
        for param in &self.params {
            if !matches!(param.tensor.dtype(), DType::F32 | DType::F64) {
                let message = format!("{} holds {:?}; f32 or f64 is needed", param.name, param.tensor.dtype());
                return Err(refused(message));
            }
        }
        let averages = self.ema.iter().flat_map(|ema| &ema.averages);
        if let Some(param) = self.params.iter().chain(averages).find(|param| !param.tensor.is_contiguous()) {
            return Err(refused(format!("{} has gaps: a contiguous tensor is needed", param.name)));
        }
        self.ema.as_ref().map_or(Ok(()), |ema| self.check_averages(ema))
    }

    /// Refuses a weight decay outside its range.
    pub(crate) fn check_decay(&self, step: u64) -> Result<()> {
        match self.weight_decay.at(step) {
            decay if decay >= 0.0 && decay.is_finite() => Ok(()),
            decay => Err(refused(format!("group {}: weight decay {decay} is out of range", self.name))),
        }
    }

    fn check_averages(&self, ema: &Ema) -> Result<()> {
        let (params, averages) = (self.params.len(), ema.averages.len());
        if params != averages {
            return Err(refused(format!("group {}: {averages} averages for {params} parameters", self.name)));
        }
        for (param, average) in self.params.iter().zip(&ema.averages) {
            let (source, target) = (&param.tensor, &average.tensor);
            if !alike(source, target) {
                let (from, to) = (described(source), described(target));
                return Err(refused(format!("{} ({from}) cannot be averaged in {} ({to})", param.name, average.name)));
            }
        }
        Ok(())
    }
}

/// Whether two tensors have one shape, dtype and device.
pub(crate) fn alike(a: &Tensor, b: &Tensor) -> bool {
    a.dims() == b.dims() && a.dtype() == b.dtype() && a.device().same_device(b.device())
}

/// Shape, dtype and device of a tensor in words.
pub(crate) fn described(tensor: &Tensor) -> String {
    format!("{:?} {:?} on {:?}", tensor.dims(), tensor.dtype(), tensor.device().location())
}

/// Identity of the memory behind a tensor.
pub(crate) fn memory(tensor: &Tensor) -> *const Storage {
    let (storage, _) = tensor.storage_and_layout();
    std::ptr::from_ref(&*storage)
}

pub(crate) fn refused(message: impl Into<String>) -> Error {
    Error::argument("optimizer", message)
}
