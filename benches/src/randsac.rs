//! RandSAC at one size, ready to be stepped: told who sees whom by ranks, or by tables of pairs.

use crate::protocol::Losses;
use crate::subject::{RULER, Subject, by_name, images, indices, table, trained_numbers, whole_step, write_exported};
use crate::{Precision, Preset};
use anyhow::{Context, Result};
use candle_core::{DType, Device, Tensor};
use occlude_kernels::{Result as KernelResult, StateDict, Visibility};
use occlude_masking::{sees_content, sees_memory};
use occlude_methods::randsac::{Randsac, RandsacConfig};
use occlude_methods::{BatchSize, Method, StepContext, StepOutput, ViewBatch};
use occlude_optim::Optimizer;
use occlude_random::Streams;
use occlude_vit::Sights;
use serde_json::{Value, json};
use std::path::Path;

/// One step of RandSAC on fixed images of noise, segments drawn anew in each.
pub(crate) struct RandsacSubject {
    config: RandsacConfig,
    method: Randsac,
    optimizer: Optimizer,
    batch: ViewBatch,
    form: Form,
    precision: Precision,
    streams: Streams,
    step: u64,
}

/// How a step is told who sees whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// As the method has it.
    Ranks,
    /// The straightforward way: a table for the encoder and one for the predictions, made in every step.
    Tables,
}

impl RandsacSubject {
    pub(crate) fn new(preset: Preset, precision: Precision) -> Result<Self> {
        Self::of(preset.randsac(), preset, Form::of(preset), precision)
    }

    /// With settings that may differ from those of the preset.
    fn of(config: RandsacConfig, preset: Preset, form: Form, precision: Precision) -> Result<Self> {
        let (device, streams) = (Device::Cpu, Streams::new(0));
        let batch = BatchSize { micro: preset.batch(), accumulate: 1 };
        let method = Randsac::new(&config.check(preset.side(), batch, RULER)?, streams, DType::F32, &device)?;
        let optimizer = Optimizer::new(method.groups(), None)?;
        let batch = images(preset, 1, streams, &device)?;
        Ok(Self { config, method, optimizer, batch, form, precision, streams, step: 0 })
    }

    /// The ranks that are exported, and that `losses` uses: the first step's.  [batch * patches]
    fn first_ranks(&self) -> Vec<u32> {
        self.method.ranks(self.batch.ids.len(), &StepContext::single(0, self.streams))
    }

    /// Everything the peer cannot see from shapes; schedules as tables.
    fn peer_settings(&self) -> Result<Value> {
        let (randsac, groups) = (&self.config, self.method.groups());
        let decayed = groups.iter().find(|group| group.name == "decay").context("RandSAC has this group")?;
        Ok(json!({
            "architecture": randsac.architecture.name(),
            "norm_pix": randsac.norm_pix,
            "loss_on_first": randsac.loss_on_first,
            "patch": randsac.encoder.patch,
            "heads": randsac.encoder.heads,
            "decoder_heads": randsac.decoder.heads,
            "betas": decayed.betas,
            "eps": decayed.eps,
            "weight_decay": decayed.weight_decay.at(0),
            "lr": table(&decayed.lr),
        }))
    }
}

impl Form {
    fn of(preset: Preset) -> Self {
        if preset.by_ranks() == preset { Self::Ranks } else { Self::Tables }
    }

    /// Who sees whom among tokens of these ranks, `tokens` an image.
    fn sights(self, ranks: &[u32], tokens: usize, device: &Device) -> KernelResult<Sights> {
        if self == Self::Ranks {
            return Ok(Sights::of(ranks, tokens));
        }
        let content = pairs(ranks, tokens, sees_content, device)?;
        let memory = pairs(ranks, tokens, sees_memory, device)?;
        // Only two streams read this one, and no preset of theirs has tables: none is made for it.
        let both = Sights::of(ranks, tokens).both;
        Ok(Sights { content, memory, both })
    }
}

/// The table of a rule.  [batch, tokens, tokens]
fn pairs(ranks: &[u32], tokens: usize, sees: impl Fn(u32, u32) -> bool, device: &Device) -> KernelResult<Visibility> {
    let mut visible = Vec::with_capacity(ranks.len() * tokens);
    for image in ranks.chunks(tokens) {
        for query in image {
            visible.extend(image.iter().map(|key| u8::from(sees(*query, *key))));
        }
    }
    Ok(Visibility::Mask(Tensor::from_vec(visible, (ranks.len() / tokens, tokens, tokens), device)?))
}

/// Forward and backward with the ranks of one draw.
fn step_of(method: &Randsac, batch: &ViewBatch, form: Form, ranks: &[u32]) -> KernelResult<StepOutput> {
    let images = &batch.views[0];
    let sights = form.sights(ranks, ranks.len() / batch.ids.len(), images.device())?;
    method.step_seeing(images, ranks, &sights)
}

impl Subject for RandsacSubject {
    fn step(&mut self) -> Result<Losses> {
        let ctx = StepContext::single(self.step, self.streams);
        let (batch, form) = (&self.batch, self.form);
        let step = |method: &mut Randsac| step_of(method, batch, form, &method.ranks(batch.ids.len(), &ctx));
        let losses = whole_step(&mut self.method, &mut self.optimizer, &ctx, self.precision, step)?;
        self.step += 1;
        Ok(losses)
    }

    fn losses(&mut self) -> Result<Losses> {
        Ok(by_name(&step_of(&self.method, &self.batch, self.form, &self.first_ranks())?))
    }

    /// `images` [batch, 3, side, side], `ranks` [batch, patches].
    fn export(&self, folder: &Path) -> Result<()> {
        let (images, ranks) = (&self.batch.views[0], self.first_ranks());
        let shape = (self.batch.ids.len(), ranks.len() / self.batch.ids.len());
        let named = [("images", images.clone()), ("ranks", indices(&ranks, shape, images.device())?)];
        let batch: StateDict = named.into_iter().map(|(name, tensor)| (name.to_owned(), tensor)).collect();
        write_exported(folder, &self.method.state(), &batch, &self.peer_settings()?)
    }

    fn parameters(&self) -> usize {
        trained_numbers(&self.optimizer)
    }
}

#[cfg(test)]
mod tests {
    use super::{Form, RandsacSubject};
    use crate::protocol::Losses;
    use crate::subject::Subject;
    use crate::{Precision, Preset};
    use candle_core::Device;
    use occlude_checkpoint::read_tensors;
    use occlude_kernels::Visibility;
    use occlude_methods::randsac::{Architecture, RandsacConfig};

    fn tiny(architecture: Architecture, form: Form) -> RandsacSubject {
        let config = RandsacConfig { architecture, ..Preset::Tiny.randsac() };
        RandsacSubject::of(config, Preset::Tiny, form, Precision::F32).unwrap()
    }

    #[test]
    fn losses_move_nothing_and_steps_do() {
        let mut subject = RandsacSubject::new(Preset::Tiny, Precision::F32).unwrap();
        let first = subject.losses().unwrap();
        assert_eq!(subject.losses().unwrap(), first);
        assert_eq!(first.keys().collect::<Vec<_>>(), ["pixels"]);
        assert_eq!(subject.step().unwrap(), first, "of the same draw");
        (0..2).for_each(|_| assert!(subject.step().unwrap().values().all(|loss| loss.is_finite())));
        assert_ne!(subject.losses().unwrap(), first);
    }

    #[test]
    fn tables_say_what_ranks_say() {
        for architecture in [Architecture::Plain, Architecture::Skip] {
            let (mut ranks, mut tables) = (tiny(architecture, Form::Ranks), tiny(architecture, Form::Tables));
            // Up to rounding of f32: by ranks, the sums of attention come in another order.
            let same = |ranks: &Losses, tables: &Losses| {
                assert!(ranks.keys().eq(tables.keys()));
                for (ranks, tables) in ranks.values().zip(tables.values()) {
                    assert!((ranks / tables - 1.0).abs() < 2e-6, "{architecture:?}: {ranks} and {tables}");
                }
            };
            same(&ranks.losses().unwrap(), &tables.losses().unwrap());
            (0..3).for_each(|_| same(&ranks.step().unwrap(), &tables.step().unwrap()));
        }
    }

    #[test]
    fn presets_have_the_form_of_their_name() {
        assert_eq!((Form::of(Preset::VitTiny), Form::of(Preset::VitTinyDense)), (Form::Ranks, Form::Tables));
        assert_eq!((Form::of(Preset::Pixels), Form::of(Preset::PixelsDense)), (Form::Ranks, Form::Tables));
    }

    #[test]
    fn a_table_has_a_row_for_every_query() {
        let sights = Form::Tables.sights(&[0, 1, 1, 0, 2, 1], 3, &Device::Cpu).unwrap();
        let table = |visibility: &Visibility| match visibility {
            Visibility::Mask(table) => table.to_vec3::<u8>().unwrap(),
            other => panic!("{other:?}"),
        };
        let content = [[[1, 0, 0], [1, 1, 1], [1, 1, 1]], [[1, 0, 0], [1, 1, 1], [1, 0, 1]]];
        assert_eq!(table(&sights.content), content.map(|rows| rows.map(|row| row.to_vec()).to_vec()));
        let memory = [[[1, 0, 0], [1, 0, 0], [1, 0, 0]], [[1, 0, 0], [1, 0, 1], [1, 0, 0]]];
        assert_eq!(table(&sights.memory), memory.map(|rows| rows.map(|row| row.to_vec()).to_vec()));
    }

    #[test]
    fn what_is_exported_fits_together() {
        for architecture in [Architecture::Plain, Architecture::Skip, Architecture::TwoStream] {
            let (folder, subject) = (tempfile::tempdir().unwrap(), tiny(architecture, Form::Ranks));
            subject.export(folder.path()).unwrap();
            let read = |name: &str| read_tensors(&folder.path().join(name), &Device::Cpu).unwrap();
            let (batch, weights) = (read("batch.safetensors"), read("weights.safetensors"));
            assert_eq!(batch["images"].dims(), [Preset::Tiny.batch(), 3, 32, 32]);
            let ranks = batch["ranks"].to_vec2::<i64>().unwrap();
            assert_eq!((ranks.len(), ranks[0].len()), (Preset::Tiny.batch(), 16));
            assert!(ranks.iter().all(|ranks| ranks.contains(&0) && ranks.iter().all(|rank| (0..11).contains(rank))));

            let trained = weights.keys().filter(|name| !name.ends_with("pos_embed"));
            assert_eq!(trained.map(|name| weights[name].elem_count()).sum::<usize>(), subject.parameters());
            assert_eq!(weights["blocks.1.attn.k.weight"].dims(), [64, 64]);
            let (decoder, skips) = match architecture {
                Architecture::Plain => (true, false),
                Architecture::Skip => (true, true),
                Architecture::TwoStream => (false, false),
            };
            for name in ["decoder_embed.weight", "decoder_blocks.0.cross_attn.v.bias", "decoder_pos_embed"] {
                assert_eq!(weights.contains_key(name), decoder, "{name}");
            }
            assert_eq!(weights.contains_key("skip.weight"), skips);

            let text = std::fs::read_to_string(folder.path().join("step.json")).unwrap();
            let settings: serde_json::Value = serde_json::from_str(&text).unwrap();
            assert_eq!(settings["architecture"], architecture.name());
            assert_eq!((settings["lr"].as_array().unwrap().len(), settings["lr"][0].as_f64()), (1000, Some(0.0)));
        }
    }
}
