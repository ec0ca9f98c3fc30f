//! Where tensors live.

use anyhow::{Result, anyhow, bail};
use candle_core::Device;

/// The device a config names: `cpu`, or `cuda` in a build that has it.
pub(crate) fn open(name: &str) -> Result<Device> {
    match name {
        "cpu" => Ok(Device::Cpu),
        "cuda" if cfg!(feature = "cuda") => Device::new_cuda(0).map_err(|error| {
            // A backtrace follows the first line where the environment asks for one.
            let reason = error.to_string();
            anyhow!("device = cuda: {}; use `cpu`, or look at `nvidia-smi`", reason.lines().next().unwrap_or_default())
        }),
        "cuda" => {
            bail!("device = cuda: this build has no CUDA; build it with `cargo xtask train --cuda`, or use `cpu`")
        }
        other => bail!("device = {other}: must be `cpu` or `cuda`"),
    }
}
