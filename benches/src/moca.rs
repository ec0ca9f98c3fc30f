//! MOCA at one size, ready to be stepped.

use crate::protocol::Losses;
use crate::subject::{
    EPOCHS, RULER, Subject, by_name, images, indices, table, trained_numbers, whole_step, write_exported,
};
use crate::{Precision, Preset};
use anyhow::{Context, Result, bail};
use candle_core::{DType, Device, Tensor};
use occlude_checkpoint::layouts::moca;
use occlude_kernels::StateDict;
use occlude_masking::Round;
use occlude_methods::moca::{Moca, MocaConfig};
use occlude_methods::{BatchSize, Method, StepContext, ViewBatch};
use occlude_optim::{Optimizer, Schedule};
use occlude_random::Streams;
use occlude_tokenizers::Chosen;
use serde_json::{Value, json};
use std::path::Path;

/// Largest norm of all gradients together.
const CLIP: f64 = 0.1;

/// One step of MOCA on two fixed views of noise.
pub(crate) struct MocaSubject {
    config: MocaConfig,
    method: Moca,
    optimizer: Optimizer,
    batch: ViewBatch,
    precision: Precision,
    streams: Streams,
    step: u64,
}

impl MocaSubject {
    pub(crate) fn new(preset: Preset, precision: Precision) -> Result<Self> {
        let (device, streams, config) = (Device::Cpu, Streams::new(0), preset.moca());
        let batch = BatchSize { micro: preset.batch(), accumulate: 1 };
        let method = Moca::new(&config.check(preset.side(), batch, RULER)?, streams, DType::F32, &device)?;
        let optimizer = Optimizer::new(method.groups(), Some(CLIP))?;
        let batch = images(preset, 2, streams, &device)?;
        Ok(Self { config, method, optimizer, batch, precision, streams, step: 0 })
    }

    /// The context of the draws that are exported, and that `losses` uses: the first step's.
    fn first(&self) -> StepContext<'static> {
        StepContext::single(0, self.streams)
    }

    fn rounds(&self) -> Vec<Round> {
        self.method.rounds(self.batch.ids.len(), &self.first())
    }

    /// Flat indices of the tokens, of both views, that become words.
    fn new_words(&self, patches: usize) -> Result<Vec<u32>> {
        let images = self.batch.ids.len();
        let choice = self.method.choice(images, &self.first());
        let Chosen::Tokens(places) = choice.words else { bail!("the peer's words are tokens, not {:?}", choice.words) };
        let (images, patches) = (u32::try_from(choice.view * images)?, u32::try_from(patches)?);
        Ok(places.iter().map(|place| (images + place.image) * patches + place.patch).collect())
    }

    /// `images` [2 * batch, 3, side, side], `decoded_r` [2 * batch, decode] of every round, `words` [new words].
    fn batch_tensors(&self, rounds: &[Round]) -> Result<StateDict> {
        let images = Tensor::cat(&self.batch.views, 0)?;
        let device = images.device();
        let mut tensors = StateDict::new();
        for (round, number) in rounds.iter().zip(1..) {
            let shape = (round.rows(), round.counts().decode);
            tensors.insert(format!("decoded_{number}"), indices(&round.decoded(), shape, device)?);
        }
        let words = self.new_words(rounds.first().context("there is a round")?.patches())?;
        tensors.insert("words".to_owned(), indices(&words, words.len(), device)?);
        tensors.insert("images".to_owned(), images);
        Ok(tensors)
    }

    /// Everything the peer cannot see from shapes; schedules as tables.
    fn peer_settings(&self, rounds: &[Round]) -> Result<Value> {
        let (moca, groups) = (&self.config, self.method.groups());
        let group = |name: &str| groups.iter().find(|group| group.name == name).context("MOCA has this group");
        let (student, generators) = (group("decay")?, group("generators")?);
        let recipe = &moca.optimizer;
        Ok(json!({
            "patch": moca.encoder.patch,
            "heads": moca.encoder.heads,
            "decoder_heads": moca.decoder.heads,
            "intermediate": moca.intermediate.context("every preset names the block")?,
            "keep": rounds.iter().map(|round| round.counts().keep).collect::<Vec<_>>(),
            "border": moca.codebook.border,
            "inverse_temperature": moca.codebook.inverse_temperature,
            "lambda": moca.lambda,
            "clip": CLIP,
            "betas": student.betas,
            "eps": student.eps,
            "lr": table(&student.lr),
            "weight_decay": table(&student.weight_decay),
            "generator_lr": table(&generators.lr),
            "generator_weight_decay": table(&generators.weight_decay),
            "momentum": table(&Schedule::cosine(recipe.momentum, recipe.momentum_end, EPOCHS, RULER)),
        }))
    }
}

impl Subject for MocaSubject {
    fn step(&mut self) -> Result<Losses> {
        let ctx = StepContext::single(self.step, self.streams);
        let step = |method: &mut Moca| method.step(&self.batch, &ctx);
        let losses = whole_step(&mut self.method, &mut self.optimizer, &ctx, self.precision, step)?;
        self.step += 1;
        Ok(losses)
    }

    fn losses(&mut self) -> Result<Losses> {
        let rounds = self.rounds();
        let [first, second] = self.batch.views.as_slice() else { bail!("MOCA takes two views of an image") };
        Ok(by_name(&self.method.step_with([first, second], &rounds, None)?))
    }

    fn export(&self, folder: &Path) -> Result<()> {
        let rounds = self.rounds();
        let weights = moca::export_all(&self.method.state())?;
        write_exported(folder, &weights, &self.batch_tensors(&rounds)?, &self.peer_settings(&rounds)?)
    }

    fn parameters(&self) -> usize {
        trained_numbers(&self.optimizer)
    }
}

#[cfg(test)]
mod tests {
    use super::MocaSubject;
    use crate::subject::Subject;
    use crate::{Precision, Preset};
    use candle_core::Device;
    use occlude_checkpoint::read_tensors;
    use occlude_methods::Method;

    fn tiny() -> MocaSubject {
        MocaSubject::new(Preset::Tiny, Precision::F32).unwrap()
    }

    #[test]
    fn losses_move_nothing_and_steps_do() {
        let mut subject = tiny();
        let first = subject.losses().unwrap();
        assert_eq!(subject.losses().unwrap(), first);
        assert_eq!(first.keys().collect::<Vec<_>>(), ["image", "local", "total"]);
        // Of the same draws. The teacher is moved towards itself, which rounds.
        for (name, loss) in subject.step().unwrap() {
            assert!((loss - first[&name]).abs() <= 1e-5 * loss.abs(), "{name}: {loss} and {}", first[&name]);
        }
        (0..2).for_each(|_| assert!(subject.step().unwrap().values().all(|loss| loss.is_finite())));
        assert_ne!(subject.losses().unwrap(), first);
    }

    #[test]
    fn looking_in_between_changes_no_step() {
        let (mut plain, mut looked_at) = (tiny(), tiny());
        for _ in 0..3 {
            looked_at.losses().unwrap();
            assert_eq!(plain.step().unwrap(), looked_at.step().unwrap());
        }
        let (plain, looked_at) = (plain.method.state(), looked_at.method.state());
        for (name, tensor) in &plain {
            let differs = tensor.ne(&looked_at[name]).unwrap().flatten_all().unwrap().to_vec1::<u8>().unwrap();
            assert!(differs.iter().all(|differs| *differs == 0), "{name}");
        }
    }

    #[test]
    fn what_is_exported_fits_together() {
        let (folder, subject) = (tempfile::tempdir().unwrap(), tiny());
        subject.export(folder.path()).unwrap();
        let read = |name: &str| read_tensors(&folder.path().join(name), &Device::Cpu).unwrap();
        let (batch, weights) = (read("batch.safetensors"), read("weights.safetensors"));
        let (images, patches) = (Preset::Tiny.batch(), 16);
        assert_eq!(batch["images"].dims(), [2 * images, 3, 32, 32]);

        let text = std::fs::read_to_string(folder.path().join("step.json")).unwrap();
        let settings: serde_json::Value = serde_json::from_str(&text).unwrap();
        let keep = settings["keep"].as_array().unwrap();
        assert_eq!((keep.len(), settings["lr"].as_array().unwrap().len()), (2, 1000));
        assert_eq!((settings["lr"][0].as_f64(), settings["momentum"][0].as_f64()), (Some(0.0), Some(0.99)));
        for (keep, number) in keep.iter().zip(1..) {
            let rows = batch[&format!("decoded_{number}")].to_vec2::<i64>().unwrap();
            assert_eq!(rows.len(), 2 * images);
            for (row, decoded) in rows.iter().enumerate() {
                assert!(decoded.iter().all(|index| index / patches == row as i64), "row {row}: {decoded:?}");
                assert!((keep.as_u64().unwrap() as usize) < decoded.len());
            }
        }
        let words = batch["words"].to_vec1::<i64>().unwrap();
        let view = |word: &i64| word / (images as i64 * patches);
        assert_eq!(words.len(), 4);
        assert!(words.iter().all(|word| view(word) == view(&words[0]) && view(word) < 2), "of one view: {words:?}");

        let trained = |name: &&String| {
            let fixed = ["_teacher.", "bow_extractor.", "pos_embed", ".scale", ".running_", ".num_batches_tracked"];
            !fixed.iter().any(|part| name.contains(part))
        };
        let numbers = weights.keys().filter(trained).map(|name| weights[name].elem_count()).sum::<usize>();
        assert_eq!(numbers, subject.parameters());
        assert_eq!(weights["encoder.blocks.1.attn.qkv.weight"].dims(), [3 * 64, 64]);
        assert_eq!(weights["decoder_blocks_cls_pt.0.attn.qkv.bias"].dims(), [3 * 32]);
        assert!(weights.keys().all(|name| !name.contains(".attn.q.") && !name.contains(".attn.k.")));
    }
}
