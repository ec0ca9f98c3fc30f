//! Loading a state that is spread over several stores.

use occlude_kernels::{Error, ParamStore, Result, StateDict};

/// Overwrites every tensor of `stores`. Nothing changes on error.
///
/// # Errors
/// A name is missing or in no store, or a shape or kind of number differs.
pub(crate) fn load(stores: &[&ParamStore], state: &StateDict) -> Result<()> {
    let params = || stores.iter().flat_map(|store| store.params());
    for param in params() {
        let (name, tensor) = (&param.name, &param.tensor);
        let given = state.get(name).ok_or_else(|| Error::State(format!("{name} is missing")))?;
        if given.dims() != tensor.dims() || given.dtype().is_float() != tensor.dtype().is_float() {
            let (got, expected) = ((given.dims(), given.dtype()), (tensor.dims(), tensor.dtype()));
            return Err(Error::State(format!("{name} is {got:?}, expected {expected:?}")));
        }
    }
    if let Some(name) = state.keys().find(|name| stores.iter().all(|store| store.get(name).is_none())) {
        return Err(Error::State(format!("{name} is not a parameter of these settings")));
    }
    for store in stores {
        let own = store.params().iter().map(|param| (param.name.clone(), state[&param.name].clone()));
        store.load(&own.collect())?;
    }
    Ok(())
}
