//! Where tensors live.

use anyhow::{Result, bail};
use candle_core::Device;

/// The device a config names: `cpu`, or `cuda` in a build that has it.
pub(crate) fn open(name: &str) -> Result<Device> {
    match name {
        "cpu" => Ok(Device::Cpu),
        "cuda" if cfg!(feature = "cuda") => Ok(Device::new_cuda(0)?),
        "cuda" => {
            bail!("device = cuda: this build has no CUDA; build it with `cargo xtask train --cuda`, or use `cpu`")
        }
        other => bail!("device = {other}: must be `cpu` or `cuda`"),
    }
}
