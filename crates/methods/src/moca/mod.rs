//! MOCA: masked prediction of online codebook assignments.
//!
//! Paper: "MOCA: Self-supervised Representation Learning by Predicting Masked Online Codebook Assignments" (2024). A
//! teacher, the moving average of the student's encoder, sees two whole views of an image; its patches are assigned softly
//! to the words of a codebook, a queue of its own recent tokens. The student sees a part of each view, in several rounds,
//! and predicts the mean assignment of the other view (image loss) and the assignments of patches of the same view, hidden
//! and visible (local loss). What it says is compared with prototypes that small networks generate from the words.
//!
//! As in the public code where it differs from the paper: the temperature of the assignments follows the mean similarity
//! distance one step late, losses are divergences averaged over rounds and doubled, the second of two rounds complements the
//! first, new words come from inside the border of one view. Ablations the public code lacks (pixels and embeddings as
//! targets, two decoders, a plain decoder, farthest point sampling) are built from the paper's description. Queries, keys and
//! values have matrices of their own; other names are those of the public code.
//! The tests named `golden_moca_*` compare every intermediate value, gradient and updated parameter with the public code's.

mod config;
mod optimizer;
mod student;
mod targets;

#[cfg(test)]
mod tests;

pub use config::{LocTarget, MocaConfig, MocaSettings};
pub use optimizer::MocaOptimizerConfig;
pub use student::{Prototypes, RoundLosses, Said, Student};
pub use targets::Goal;

pub use crate::GlobalToken;
use crate::recipe::is_decayed;
use crate::{Method, PlainExtractor, StepContext, StepOutput, ViewBatch, Weights, stores};
use candle_core::{DType, Device, Tensor};
use occlude_kernels::{Error, Gradients, Param, ParamStore, Result, StateDict, assign, move_average};
use occlude_masking::Round;
use occlude_optim::{ParamGroup, Schedule};
use occlude_random::Streams;
use occlude_tokenizers::{Choice, OnlineCodebook};
use occlude_vit::{DropPath, Extractor, PlainVit};
use student::Statistics;

/// Stream of the masks: keyed by the batch and the row among both views.
const MASK_STREAM: &str = "moca/mask";
/// Stream of the new words: keyed by the batch.
const WORD_STREAM: &str = "moca/words";
/// A mean over the rows of both views, doubled, is the sum of the views' means.
const VIEWS: f64 = 2.0;

/// The method.
#[derive(Debug)]
pub struct Moca {
    settings: MocaSettings,
    teacher: PlainVit,
    codebook: OnlineCodebook,
    student: Student,
    /// Parameters of the teacher (`encoder_teacher.*`), in the order of the student's encoder.
    averaged: ParamStore,
    /// The words and their statistics (`bow_extractor.bow_extractor.0.*`).
    words: ParamStore,
    /// Parameters of the student.
    trained: ParamStore,
    seen: Seen,
}

/// What the micro-batches of a step have seen, until [`Method::after_step`] makes it count.
#[derive(Debug, Default)]
struct Seen {
    /// Mean similarity distances, two a micro-batch.
    distances: Vec<f64>,
    /// Those of the words as the generators' norms have seen them, one a micro-batch.
    statistics: Vec<Statistics>,
    /// The new words of the step.
    words: Option<Tensor>,
}

impl Moca {
    /// The method with freshly drawn parameters; the teacher starts as a copy of the student's encoder.
    ///
    /// # Errors
    /// A device that refuses an allocation.
    pub fn new(settings: &MocaSettings, streams: Streams, dtype: DType, device: &Device) -> Result<Self> {
        let mut averaged = ParamStore::frozen(streams, dtype, device);
        let mut words = ParamStore::frozen(streams, dtype, device);
        let mut trained = ParamStore::trainable(streams, dtype, device);
        let teacher = PlainVit::new(&mut averaged.root().sub("encoder_teacher"), &settings.encoder)?;
        let mut scope = words.root();
        let mut scope = scope.sub("bow_extractor.bow_extractor.0");
        let codebook = OnlineCodebook::new(&mut scope, &settings.codebook, settings.encoder.dim())?;
        let student = Student::new(&mut trained.root(), settings)?;
        let moca = Self {
            settings: settings.clone(),
            teacher,
            codebook,
            student,
            averaged,
            words,
            trained,
            seen: Seen::default(),
        };
        for (average, param) in moca.averages() {
            assign(&average.tensor, &param.tensor)?;
        }
        Ok(moca)
    }

    /// The step with given rounds and, in the last micro-batch, the given choice of new words: tests, and repeating a recorded
    /// step.  views: [batch, 3, side, side] each; rounds: of both views' rows
    ///
    /// # Errors
    /// Views, rounds or a choice that do not fit.
    pub fn step_with(&mut self, views: [&Tensor; 2], rounds: &[Round], choice: Option<&Choice>) -> Result<StepOutput> {
        // Teacher: whole views, no gradient. Targets come from the words as they are before the step's update.
        let images = Tensor::cat(&views, 0)?; // [2 * batch, 3, side, side]
        let tokens = self.tokens(&images)?; // [2 * batch, patches, dim]
        let target = self.settings.local.as_ref().map(|local| local.target);
        let goal = Goal::new(&self.codebook, &tokens, target)?; // [2 * batch, words], [2 * batch * patches, words]
        let words = choice.map(|choice| self.new_words(choice, &tokens)).transpose()?;
        // Student: prototypes once a step, the visible part of both views once a round; one graph at a time. The generators
        // are gone through backward once, with what all rounds handed to their prototypes.
        let prototypes = self.student.prototypes(&self.codebook.words()?)?; // [words, dim], [words, decoder dim]
        let leaves = prototypes.leaves()?;
        let (mut losses, mut gradients) = ([0.0; 2], Gradients::default());
        for round in rounds {
            let said = self.student.say(&images, round)?; // [2 * batch, dim], [2 * batch * decode, decoder dim]
            let of = self.student.losses(&said, (&images, round), &goal, &leaves)?;
            gradients.add(&self.weighted(&of, rounds.len())?)?;
            losses[0] += number(&of.image)?;
            losses[1] += of.local.as_ref().map_or(Ok(0.0), number)?;
        }
        prototypes.backward(&leaves, &mut gradients)?;
        let output = self.output(losses.map(|sum| VIEWS * sum / rounds.len() as f64), gradients, &goal)?;
        self.seen.distances.extend(goal.distances);
        self.seen.statistics.push(prototypes.statistics());
        self.seen.words = words;
        Ok(output)
    }

    /// The rounds of a batch of `batch` images.
    #[must_use]
    pub fn rounds(&self, batch: usize, ctx: &StepContext<'_>) -> Vec<Round> {
        let stream = |row: usize| ctx.streams.stream(MASK_STREAM, ctx.batch_index(), row as u64);
        self.settings.rounds.draw(2 * batch, stream)
    }

    /// Which tokens of a batch of `batch` images become words.
    #[must_use]
    pub fn choice(&self, batch: usize, ctx: &StepContext<'_>) -> Choice {
        self.settings.codebook.draw(batch, &mut ctx.streams.stream(WORD_STREAM, ctx.batch_index(), 0))
    }

    /// The student.
    #[must_use]
    pub fn student(&self) -> &Student {
        &self.student
    }

    /// The teacher.
    #[must_use]
    pub fn teacher(&self) -> &PlainVit {
        &self.teacher
    }

    /// The codebook.
    #[must_use]
    pub fn codebook(&self) -> &OnlineCodebook {
        &self.codebook
    }

    /// The teacher's patches of whole images.  [rows, 3, side, side] -> [rows, patches, dim]
    fn tokens(&self, images: &Tensor) -> Result<Tensor> {
        self.teacher.forward(images, None, &[], &mut DropPath::off())?.patches()
    }

    /// The new words among the tokens of both views.  tokens: [2 * batch, patches, dim]
    fn new_words(&self, choice: &Choice, tokens: &Tensor) -> Result<Tensor> {
        if choice.view > 1 {
            return Err(Error::argument("moca", format!("words of view {} of two", choice.view)));
        }
        let batch = tokens.dim(0)? / 2;
        self.codebook.new_words(choice, &tokens.narrow(0, choice.view * batch, batch)?)
    }

    /// What a round adds to the loss.
    fn weighted(&self, of: &RoundLosses, rounds: usize) -> Result<Tensor> {
        let (lambda, share) = (self.settings.lambda, VIEWS / rounds as f64);
        let image = times(&of.image, lambda * share)?;
        of.local
            .as_ref()
            .map_or_else(|| Ok(image.clone()), |local| Ok((&image + times(local, (1.0 - lambda) * share)?)?))
    }

    fn output(&self, [image, local]: [f64; 2], gradients: Gradients, goal: &Goal) -> Result<StepOutput> {
        let lambda = self.settings.lambda;
        let mut losses = vec![("total", lambda * image + (1.0 - lambda) * local), ("image", image)];
        losses.extend(self.settings.local.as_ref().map(|_| ("local", local)));
        let metrics = vec![
            ("similarity_distance", 0.5 * (goal.distances[0] + goal.distances[1])),
            ("inverse_temperature", self.codebook.inverse_temperature()?),
            ("target_entropy", goal.entropy(None)),
        ];
        Ok(StepOutput { losses, metrics, gradients })
    }

    /// The teacher's trained parameters, each with that of the student which it follows.
    fn averages(&self) -> impl Iterator<Item = (&Param, &Param)> {
        let encoder = self.trained.trained().filter(|param| param.name.starts_with("encoder."));
        self.averaged.trained().zip(encoder)
    }

    fn stores(&self) -> [&ParamStore; 3] {
        [&self.averaged, &self.words, &self.trained]
    }
}

impl Method for Moca {
    fn name(&self) -> &'static str {
        "moca"
    }

    /// The teacher follows the student as the previous step left it.
    fn before_update(&mut self, ctx: &StepContext<'_>) -> Result<()> {
        let momentum = self.settings.recipe.momentum.at(ctx.step);
        if momentum >= 1.0 {
            return Ok(());
        }
        self.averages().try_for_each(|(average, param)| move_average(&average.tensor, &param.tensor, momentum))
    }

    fn step(&mut self, batch: &ViewBatch, ctx: &StepContext<'_>) -> Result<StepOutput> {
        let [first, second] = batch.views.as_slice() else {
            return Err(Error::argument("moca", format!("takes two views of an image, got {}", batch.views.len())));
        };
        if ctx.micro == 0 {
            self.seen = Seen::default(); // Of a step that was not finished.
        }
        let images = first.dim(0)?;
        let choice = ctx.is_last_micro().then(|| self.choice(images, ctx));
        let mut output = self.step_with([first, second], &self.rounds(images, ctx), choice.as_ref())?;
        output.metrics.push(("teacher_momentum", self.settings.recipe.momentum.at(ctx.step)));
        Ok(output)
    }

    /// What all micro-batches have seen comes to count; the codebook takes the words of the first process.
    fn after_step(&mut self, ctx: &StepContext<'_>) -> Result<()> {
        let Seen { distances, statistics, words } = std::mem::take(&mut self.seen);
        let distances = Tensor::new(distances, &Device::Cpu)?;
        for distance in ctx.collective.all_reduce_mean(&distances)?.to_vec1::<f64>()? {
            self.codebook.observe(distance)?;
        }
        statistics.iter().try_for_each(|of| self.student.observe(of))?;
        words.map_or(Ok(()), |words| self.codebook.push(&ctx.collective.broadcast(&words, 0)?))
    }

    fn groups(&self) -> Vec<ParamGroup> {
        let recipe = &self.settings.recipe;
        let group = |name, generators: bool, decayed: bool| {
            let own = |param: &&Param| is_generator(param) == generators && is_decayed(param) == decayed;
            let (lr, weight_decay) = match generators {
                true => (&recipe.generator_lr, &recipe.generator_weight_decay),
                false => (&recipe.lr, &recipe.weight_decay),
            };
            ParamGroup {
                name,
                params: self.trained.trained().filter(own).cloned().collect(),
                lr: lr.clone(),
                weight_decay: if decayed { weight_decay.clone() } else { Schedule::constant(0.0) },
                betas: recipe.betas,
                eps: recipe.eps,
                ema: None,
            }
        };
        vec![
            group("no_decay", false, false),
            group("decay", false, true),
            group("generators_no_decay", true, false),
            group("generators", true, true),
        ]
    }

    fn state(&self) -> StateDict {
        self.stores().into_iter().flat_map(ParamStore::state).collect()
    }

    fn load(&mut self, state: &StateDict) -> Result<()> {
        stores::load(&self.stores(), state)
    }

    fn extractor(&self, weights: Weights) -> Box<dyn Extractor + '_> {
        let encoder = match weights {
            Weights::Student => self.student.encoder(),
            Weights::Teacher => &self.teacher,
        };
        Box::new(PlainExtractor::new(encoder, self.settings.global_token).with_words(&self.codebook))
    }
}

fn is_generator(param: &Param) -> bool {
    ["encoder_pred.", "decoder_pred."].iter().any(|prefix| param.name.starts_with(prefix))
}

/// A scalar times a factor, as a tensor: at a factor that is the number 0 candle cuts the graph, but a generator whose loss
/// does not count still has a gradient, of zeros.
fn times(scalar: &Tensor, factor: f64) -> Result<Tensor> {
    Ok((scalar * Tensor::new(factor, scalar.device())?.to_dtype(scalar.dtype())?)?)
}

/// A scalar as f64.
fn number(scalar: &Tensor) -> Result<f64> {
    Ok(scalar.detach().to_dtype(DType::F64)?.to_scalar()?)
}
