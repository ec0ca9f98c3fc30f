//! The masked autoencoder at one size, ready to be stepped.

use crate::protocol::Losses;
use crate::subject::{RULER, Subject, by_name, images, trained_numbers, whole_step};
use crate::{Precision, Preset};
use anyhow::{Result, bail};
use candle_core::{DType, Device};
use occlude_methods::mae::Mae;
use occlude_methods::{BatchSize, Method, StepContext, ViewBatch};
use occlude_optim::Optimizer;
use occlude_random::Streams;
use std::path::Path;

/// One step of MAE on fixed images of noise.
pub(crate) struct MaeSubject {
    method: Mae,
    optimizer: Optimizer,
    batch: ViewBatch,
    precision: Precision,
    streams: Streams,
    step: u64,
}

impl MaeSubject {
    pub(crate) fn new(preset: Preset, precision: Precision) -> Result<Self> {
        let (device, streams) = (Device::Cpu, Streams::new(0));
        let batch = BatchSize { micro: preset.batch(), accumulate: 1 };
        let method = Mae::new(&preset.mae().check(preset.side(), batch, RULER)?, streams, DType::F32, &device)?;
        let optimizer = Optimizer::new(method.groups(), None)?;
        let batch = images(preset, 1, streams, &device)?;
        Ok(Self { method, optimizer, batch, precision, streams, step: 0 })
    }
}

impl Subject for MaeSubject {
    fn step(&mut self) -> Result<Losses> {
        let ctx = StepContext::single(self.step, self.streams);
        let step = |method: &mut Mae| method.step(&self.batch, &ctx);
        let losses = whole_step(&mut self.method, &mut self.optimizer, &ctx, self.precision, step)?;
        self.step += 1;
        Ok(losses)
    }

    /// With the mask of the first step.
    fn losses(&mut self) -> Result<Losses> {
        Ok(by_name(&self.method.step(&self.batch, &StepContext::single(0, self.streams))?))
    }

    fn export(&self, _folder: &Path) -> Result<()> {
        bail!("there is no PyTorch program for `mae`, so nothing is exported")
    }

    fn parameters(&self) -> usize {
        trained_numbers(&self.optimizer)
    }
}

#[cfg(test)]
mod tests {
    use super::MaeSubject;
    use crate::subject::Subject;
    use crate::{Precision, Preset};
    use std::path::Path;

    #[test]
    fn losses_move_nothing_and_steps_do() {
        let mut subject = MaeSubject::new(Preset::Tiny, Precision::F32).unwrap();
        let first = subject.losses().unwrap();
        assert_eq!(subject.losses().unwrap(), first);
        assert_eq!(first.keys().collect::<Vec<_>>(), ["pixels"]);
        assert_eq!(subject.step().unwrap(), first, "of the same draw");
        (0..2).for_each(|_| assert!(subject.step().unwrap().values().all(|loss| loss.is_finite())));
        assert_ne!(subject.losses().unwrap(), first);
        assert!(subject.parameters() > 0);
    }

    #[test]
    fn nothing_is_exported() {
        let subject = MaeSubject::new(Preset::Tiny, Precision::F32).unwrap();
        assert!(subject.export(Path::new("nowhere")).unwrap_err().to_string().contains("mae"));
    }
}
