//! One method, or its encoder alone, at one size, ready to be stepped.

use crate::encoder::EncoderSubject;
use crate::mae::MaeSubject;
use crate::moca::MocaSubject;
use crate::protocol::Losses;
use crate::randsac::RandsacSubject;
use crate::{Precision, Preset};
use anyhow::{Context, Result, bail};
use candle_core::{DType, Device, Shape, Tensor};
use occlude_checkpoint::write_tensors;
use occlude_kernels::{Role, StateDict};
use occlude_masking::BatchMask;
use occlude_methods::capi::{Capi, CapiConfig};
use occlude_methods::{Method, StepContext, StepOutput, ViewBatch};
use occlude_optim::{Optimizer, Schedule};
use occlude_random::Streams;
use occlude_settings::Ruler;
use occlude_vit::DropPath;
use rand::Rng;
use serde_json::{Value, json};
use std::path::Path;

/// Length of the run that the schedules belong to; steps beyond it use their final values.
pub(crate) const RUN: u64 = 1000;
/// Its epochs, where a schedule counts in them.
pub(crate) const EPOCHS: f64 = 200.0;
/// The same run, for settings.
pub(crate) const RULER: Ruler = Ruler { steps_per_epoch: RUN as f64 / EPOCHS, total_steps: RUN };

/// What is measured: a method with its optimizer and one batch of images made beforehand.
pub(crate) trait Subject {
    /// Forward, backward, optimizer, moving average. -> losses
    fn step(&mut self) -> Result<Losses>;

    /// Losses of the present weights for the exported batch, without stochastic depth; nothing moves.
    fn losses(&mut self) -> Result<Losses>;

    /// Writes what the peer needs to do the same step: `weights.safetensors`, `batch.safetensors`, `step.json`.
    fn export(&self, folder: &Path) -> Result<()>;

    /// Numbers that are trained.
    fn parameters(&self) -> usize;
}

/// The method called `method` at a size.
pub(crate) fn subject(method: &str, preset: Preset, precision: Precision) -> Result<Box<dyn Subject>> {
    preset.check(method)?;
    match method {
        "capi" => Ok(Box::new(CapiSubject::new(preset, precision)?)),
        "moca" => Ok(Box::new(MocaSubject::new(preset, precision)?)),
        "randsac" => Ok(Box::new(RandsacSubject::new(preset, precision)?)),
        "mae" => Ok(Box::new(MaeSubject::new(preset, precision)?)),
        "encoder" => Ok(Box::new(EncoderSubject::new(preset, precision)?)),
        _ => bail!("--method {method}: there are `capi`, `moca`, `randsac`, `mae` and `encoder`"),
    }
}

struct CapiSubject {
    config: CapiConfig,
    method: Capi,
    optimizer: Optimizer,
    batch: ViewBatch,
    precision: Precision,
    streams: Streams,
    step: u64,
}

impl CapiSubject {
    fn new(preset: Preset, precision: Precision) -> Result<Self> {
        let (device, streams, config) = (Device::Cpu, Streams::new(0), preset.capi());
        let ruler = Ruler { steps_per_epoch: RUN as f64, total_steps: RUN };
        let settings = config.check(preset.side(), preset.batch(), ruler)?;
        let method = Capi::new(&settings, streams, DType::F32, &device)?;
        let optimizer = Optimizer::new(method.groups(), None)?;
        let batch = images(preset, 1, streams, &device)?;
        Ok(Self { config, method, optimizer, batch, precision, streams, step: 0 })
    }

    /// The mask that is exported, and that `losses` uses: the one of the first step.
    fn mask(&self) -> Result<BatchMask> {
        let ctx = StepContext::single(0, self.streams);
        Ok(self.method.masks(self.batch.ids.len(), &ctx)?)
    }

    /// Everything the peer cannot see from shapes; schedules as tables.
    fn peer_settings(&self) -> Result<Value> {
        let (capi, groups) = (&self.config, self.method.groups());
        let group = |name: &str| groups.iter().find(|group| group.name == name).context("CAPI has this group");
        let (student, clustering) = (group("student")?, group("clustering")?);
        let momentum = &student.ema.as_ref().context("the student has an average")?.momentum;
        Ok(json!({
            "patch": capi.encoder.patch,
            "heads": capi.encoder.heads,
            "predictor_heads": capi.predictor.heads,
            "drop_path": capi.encoder.drop_path,
            "student_temp": capi.student_temp,
            "target_temp": capi.clustering.target_temp,
            "pred_temp": capi.clustering.pred_temp,
            "iterations": capi.clustering.iterations,
            "weight_decay": student.weight_decay.at(0),
            "clustering_weight_decay": clustering.weight_decay.at(0),
            "betas": student.betas,
            "eps": student.eps,
            "patch_embed_lr": capi.optimizer.patch_embed_lr,
            "norm_wd": capi.optimizer.norm_wd,
            "lr": table(&student.lr),
            "clustering_lr": table(&clustering.lr),
            "momentum": table(momentum),
        }))
    }
}

impl Subject for CapiSubject {
    fn step(&mut self) -> Result<Losses> {
        let ctx = StepContext::single(self.step, self.streams);
        let step = |method: &mut Capi| method.step(&self.batch, &ctx);
        let losses = whole_step(&mut self.method, &mut self.optimizer, &ctx, self.precision, step)?;
        self.step += 1;
        Ok(losses)
    }

    fn losses(&mut self) -> Result<Losses> {
        let output = self.method.step_with(&self.batch.views[0], &self.mask()?, &mut DropPath::off())?;
        Ok(by_name(&output))
    }

    fn export(&self, folder: &Path) -> Result<()> {
        let batch = batch_tensors(&self.batch.views[0], &self.mask()?)?;
        write_exported(folder, &self.method.state(), &batch, &self.peer_settings()?)
    }

    fn parameters(&self) -> usize {
        trained_numbers(&self.optimizer)
    }
}

/// What the trainer does in a step of one micro-batch, with `step` for [`Method::step`]. -> losses
pub(crate) fn whole_step<M: Method>(
    method: &mut M,
    optimizer: &mut Optimizer,
    ctx: &StepContext<'_>,
    precision: Precision,
    step: impl FnOnce(&mut M) -> occlude_kernels::Result<StepOutput>,
) -> Result<Losses> {
    method.before_update(ctx)?;
    let output = {
        let _scope = precision.kernels().scope();
        step(method)?
    };
    optimizer.step(&output.gradients, ctx.step).with_context(|| format!("step {}", ctx.step))?;
    method.after_step(ctx)?;
    Ok(by_name(&output))
}

/// Numbers that an optimizer moves by their gradient.
pub(crate) fn trained_numbers(optimizer: &Optimizer) -> usize {
    let params = optimizer.groups().flat_map(|group| &group.params);
    let trained = params.filter(|param| matches!(param.role, Role::Trained(_)));
    trained.map(|param| param.tensor.elem_count()).sum()
}

/// A schedule as the peer reads it: its values, step by step.
pub(crate) fn table(schedule: &Schedule) -> Vec<f64> {
    (0..RUN).map(|step| schedule.at(step)).collect()
}

/// The three files of [`Subject::export`].
pub(crate) fn write_exported(folder: &Path, weights: &StateDict, batch: &StateDict, settings: &Value) -> Result<()> {
    write_tensors(&folder.join("weights.safetensors"), weights)?;
    write_tensors(&folder.join("batch.safetensors"), batch)?;
    let path = folder.join("step.json");
    std::fs::write(&path, serde_json::to_string_pretty(settings)?).with_context(|| path.display().to_string())
}

pub(crate) fn by_name(output: &StepOutput) -> Losses {
    output.losses.iter().map(|(name, loss)| ((*name).to_owned(), *loss)).collect()
}

/// Views of noise: what a step costs does not depend on what they show.  [batch, 3, side, side] each
pub(crate) fn images(preset: Preset, views: u64, streams: Streams, device: &Device) -> Result<ViewBatch> {
    let (batch, side) = (preset.batch(), preset.side());
    let view = |view: u64| -> Result<Tensor> {
        let mut stream = streams.stream("bench/images", 0, view);
        let values: Vec<f32> = (0..batch * 3 * side * side).map(|_| stream.random::<f32>() * 4.0 - 2.0).collect();
        Ok(Tensor::from_vec(values, (batch, 3, side, side), device)?)
    };
    Ok(ViewBatch { views: (0..views).map(view).collect::<Result<_>>()?, ids: (0..batch as u64).collect() })
}

/// Indices as the peer reads them.
pub(crate) fn indices(list: &[u32], shape: impl Into<Shape>, device: &Device) -> Result<Tensor> {
    let list: Vec<i64> = list.iter().map(|index| i64::from(*index)).collect();
    Ok(Tensor::from_vec(list, shape.into(), device)?)
}

/// `images`, `mask` [batch, patches] (1: hidden), `visible` and `predict` (flat indices).
fn batch_tensors(images: &Tensor, mask: &BatchMask) -> Result<StateDict> {
    let device = images.device();
    let mut hidden = vec![1_u8; mask.batch * mask.grid.count()];
    mask.visible.iter().for_each(|index| hidden[*index as usize] = 0);
    let hidden = Tensor::from_vec(hidden, (mask.batch, mask.grid.count()), device)?;
    let named = [
        ("images", images.clone()),
        ("mask", hidden),
        ("visible", indices(&mask.visible, mask.visible.len(), device)?),
        ("predict", indices(&mask.predict, mask.predict.len(), device)?),
    ];
    Ok(named.into_iter().map(|(name, tensor)| (name.to_owned(), tensor)).collect())
}

#[cfg(test)]
mod tests {
    use super::{Subject, subject};
    use crate::{Precision, Preset};
    use candle_core::Device;
    use occlude_checkpoint::read_tensors;

    fn tiny() -> Box<dyn Subject> {
        subject("capi", Preset::Tiny, Precision::F32).unwrap()
    }

    #[test]
    fn losses_move_nothing_and_steps_do() {
        let mut subject = tiny();
        let first = subject.losses().unwrap();
        assert_eq!(subject.losses().unwrap(), first);
        assert_eq!(first.keys().collect::<Vec<_>>(), ["clustering", "prediction"]);
        // The learning rate of the very first step is 0.
        (0..3).for_each(|_| assert!(subject.step().unwrap().values().all(|loss| loss.is_finite())));
        assert_ne!(subject.losses().unwrap(), first);
    }

    #[test]
    fn what_is_exported_fits_together() {
        let folder = tempfile::tempdir().unwrap();
        tiny().export(folder.path()).unwrap();
        let batch = read_tensors(&folder.path().join("batch.safetensors"), &Device::Cpu).unwrap();
        let mask = batch["mask"].flatten_all().unwrap().to_vec1::<u8>().unwrap();
        let list = |name: &str| batch[name].to_vec1::<i64>().unwrap();
        assert_eq!(list("visible").len(), mask.iter().filter(|hidden| **hidden == 0).count());
        assert!(list("visible").iter().all(|index| mask[*index as usize] == 0));
        assert_eq!(list("predict").len(), 8 * 3);
        assert!(list("predict").iter().all(|index| mask[*index as usize] == 1));
        let weights = read_tensors(&folder.path().join("weights.safetensors"), &Device::Cpu).unwrap();
        for prefix in ["student.backbone.", "student_ema.head.", "teacher.head.layer."] {
            assert!(weights.keys().any(|name| name.starts_with(prefix)), "{prefix}");
        }
        let text = std::fs::read_to_string(folder.path().join("step.json")).unwrap();
        let settings: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!((settings["patch"].as_u64(), settings["drop_path"].as_f64()), (Some(8), Some(0.2)));
        assert_eq!(settings["lr"].as_array().unwrap().len(), 1000);
    }

    #[test]
    fn an_unknown_method_is_named() {
        let error = subject("abacus", Preset::Tiny, Precision::F32).err().unwrap().to_string();
        for name in ["abacus", "capi", "moca", "randsac", "mae", "encoder"] {
            assert!(error.contains(name), "{error}");
        }
    }

    #[test]
    fn a_preset_of_another_method_is_refused() {
        for method in ["capi", "encoder", "mae"] {
            let error = subject(method, Preset::VitTinyDense, Precision::F32).err().unwrap().to_string();
            assert!(error.contains("vit-tiny-dense") && error.contains("randsac"), "{error}");
        }
    }
}
