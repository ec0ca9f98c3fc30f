//! The encoder alone: what the transformer blocks of any method cost, without its targets, predictor and teacher.

use crate::protocol::Losses;
use crate::subject::{Subject, images, write_exported};
use crate::{Precision, Preset};
use anyhow::Result;
use candle_core::{DType, Device, Tensor};
use occlude_kernels::{Factors, Init, ParamStore, Scope, StateDict, backward, linear, soft_cross_entropy};
use occlude_optim::{Optimizer, ParamGroup, Schedule};
use occlude_random::Streams;
use occlude_vit::{DropPath, GroupFactors, Vit, VitConfig, VitSettings};
use serde_json::json;
use std::path::Path;

/// Classes of the linear head that the loss needs.
const CLASSES: usize = 100;
/// Learning rate of every step.
const LR: f64 = 1e-3;

/// One step of a plain pre-norm encoder: all patches of a fixed batch of noise, learned positions, no registers, no
/// stochastic depth; the mean of the normed tokens through a linear head into cross-entropy with fixed labels; AdamW.
/// RMS norms and no biases in the blocks, as everywhere here.
pub(crate) struct EncoderSubject {
    store: ParamStore,
    model: Model,
    optimizer: Optimizer,
    config: VitConfig,
    images: Tensor,  // [batch, 3, side, side]
    targets: Tensor, // [batch, classes], one-hot
    precision: Precision,
    step: u64,
}

struct Model {
    vit: Vit,
    weight: Tensor, // [classes, dim]
    bias: Tensor,   // [classes]
}

impl Model {
    fn new(scope: &mut Scope<'_>, settings: &VitSettings) -> Result<Self> {
        let vit = Vit::new(&mut scope.sub("encoder"), settings, GroupFactors { patch_embed_lr: 1.0, norm_wd: 1.0 })?;
        let (mut head, dim) = (scope.sub("head"), settings.dim());
        let weight = head.trained("weight", &[CLASSES, dim], &Init::xavier_uniform(dim, CLASSES), Factors::ONE)?;
        let bias = head.trained("bias", &[CLASSES], &Init::Constant(0.0), Factors::NO_DECAY)?;
        Ok(Self { vit, weight, bias })
    }

    /// images: [batch, 3, side, side], targets: [batch, classes] -> scalar
    fn loss(&self, images: &Tensor, targets: &Tensor) -> Result<Tensor> {
        let tokens = self.vit.forward(images, None, &mut DropPath::off())?.patches()?; // [batch, patches, dim]
        let scores = linear(&tokens.mean(1)?, &self.weight, Some(&self.bias))?;
        Ok(soft_cross_entropy(&scores, targets, 1.0)?)
    }
}

impl EncoderSubject {
    pub(crate) fn new(preset: Preset, precision: Precision) -> Result<Self> {
        let (device, streams, config) = (Device::Cpu, Streams::new(0), preset.encoder());
        let mut store = ParamStore::trainable(streams, DType::F32, &device);
        let model = Model::new(&mut store.root(), &config.check(preset.side())?)?;
        let optimizer =
            Optimizer::new(vec![ParamGroup::adamw("encoder", store.params(), Schedule::constant(LR))], None)?;
        let images = images(preset, 1, streams, &device)?.views.remove(0);
        let targets = one_hot(&labels(preset.batch()), &device)?;
        Ok(Self { store, model, optimizer, config, images, targets, precision, step: 0 })
    }
}

impl Subject for EncoderSubject {
    fn step(&mut self) -> Result<Losses> {
        // The block ends the precision and, with the loss, the graph that keeps activations alive.
        let (losses, gradients) = {
            let _scope = self.precision.kernels().scope();
            let loss = self.model.loss(&self.images, &self.targets)?;
            (named(&loss)?, backward(&loss)?)
        };
        self.optimizer.step(&gradients, self.step)?;
        self.step += 1;
        Ok(losses)
    }

    fn losses(&mut self) -> Result<Losses> {
        named(&self.model.loss(&self.images, &self.targets)?)
    }

    fn export(&self, folder: &Path) -> Result<()> {
        let batch = self.images.dim(0)?;
        let labels = Tensor::from_vec(labels(batch), batch, self.images.device())?;
        let batch: StateDict = [("images".to_owned(), self.images.clone()), ("labels".to_owned(), labels)].into();
        let group = ParamGroup::adamw("encoder", &[], Schedule::constant(LR));
        let settings = json!({
            "patch": self.config.patch,
            "heads": self.config.heads,
            "lr": LR,
            "betas": group.betas,
            "eps": group.eps,
            "weight_decay": group.weight_decay.at(0),
        });
        write_exported(folder, &self.store.state(), &batch, &settings)
    }

    fn parameters(&self) -> usize {
        self.store.trained().map(|param| param.tensor.elem_count()).sum()
    }
}

/// One label an image, all different where there are enough classes.
fn labels(batch: usize) -> Vec<i64> {
    (0..batch).map(|image| (image * 37 % CLASSES) as i64).collect()
}

/// [labels.len(), classes]
fn one_hot(labels: &[i64], device: &Device) -> Result<Tensor> {
    let mut values = vec![0_f32; labels.len() * CLASSES];
    labels.iter().enumerate().for_each(|(row, label)| values[row * CLASSES + *label as usize] = 1.0);
    Ok(Tensor::from_vec(values, (labels.len(), CLASSES), device)?)
}

fn named(loss: &Tensor) -> Result<Losses> {
    Ok([("cross_entropy".to_owned(), f64::from(loss.to_scalar::<f32>()?))].into())
}

#[cfg(test)]
mod tests {
    use super::{CLASSES, EncoderSubject, labels, one_hot};
    use crate::subject::Subject;
    use crate::{Precision, Preset};
    use candle_core::Device;
    use occlude_checkpoint::read_tensors;
    use occlude_kernels::backward;

    fn tiny() -> EncoderSubject {
        EncoderSubject::new(Preset::Tiny, Precision::F32).unwrap()
    }

    #[test]
    fn steps_lower_the_loss_and_looking_moves_nothing() {
        let mut subject = tiny();
        let first = subject.losses().unwrap();
        assert_eq!(subject.losses().unwrap(), first);
        assert_eq!(subject.step().unwrap(), first, "a step tells the loss before it moves");
        (0..4).for_each(|_| assert!(subject.step().is_ok()));
        // Eight images of noise are learned by heart quickly.
        let last = subject.losses().unwrap()["cross_entropy"];
        assert!(last < 0.9 * first["cross_entropy"], "{first:?} to {last}");
    }

    #[test]
    fn every_parameter_is_trained() {
        let subject = tiny();
        let gradients = backward(&subject.model.loss(&subject.images, &subject.targets).unwrap()).unwrap();
        for param in subject.store.trained() {
            let gradient = gradients.get(&param.tensor).unwrap_or_else(|| panic!("{} has no gradient", param.name));
            let size = gradient.abs().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap();
            assert!(size > 0.0 && size.is_finite(), "{}: {size}", param.name);
        }
    }

    #[test]
    fn what_is_exported_is_what_is_trained() {
        let (folder, subject) = (tempfile::tempdir().unwrap(), tiny());
        subject.export(folder.path()).unwrap();
        let read = |name: &str| read_tensors(&folder.path().join(name), &Device::Cpu).unwrap();
        let weights = read("weights.safetensors");
        assert_eq!(weights.values().map(|tensor| tensor.elem_count()).sum::<usize>(), subject.parameters());
        for name in ["encoder.pos_embed", "encoder.encoder.blocks.1.residual2.fn.fc2.weight", "head.bias"] {
            assert!(weights.contains_key(name), "{name}: {:?}", weights.keys());
        }
        let labels = read("batch.safetensors")["labels"].to_vec1::<i64>().unwrap();
        let hot: Vec<i64> =
            subject.targets.argmax(1).unwrap().to_vec1::<u32>().unwrap().iter().map(|c| i64::from(*c)).collect();
        assert_eq!(labels, hot);
        let text = std::fs::read_to_string(folder.path().join("step.json")).unwrap();
        let settings: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!((settings["patch"].as_u64(), settings["heads"].as_u64()), (Some(8), Some(2)));
    }

    #[test]
    fn labels_are_classes() {
        let all = labels(64);
        assert!(all.iter().all(|label| (0..CLASSES as i64).contains(label)));
        let distinct: std::collections::BTreeSet<i64> = all.iter().copied().collect();
        assert_eq!(distinct.len(), 64);
        let rows = one_hot(&all, &Device::Cpu).unwrap().sum(1).unwrap().to_vec1::<f32>().unwrap();
        assert!(rows.iter().all(|sum| *sum == 1.0));
    }
}
