//! A method small enough to run thousands of steps in a test: linear regression with an average and a counter.

use candle_core::{DType, Device, Tensor};
use occlude_checkpoint::{Checkpoint, Retention, RunDir};
use occlude_data::Batch;
use occlude_kernels::{Factors, Init, ParamStore, Precision, Result, StateDict, assign, backward};
use occlude_methods::{Matrix, Method, StepContext, StepOutput, ViewBatch, Weights};
use occlude_optim::{Ema, ParamGroup, Schedule};
use occlude_random::Streams;
use occlude_settings::Span;
use occlude_trainer::{
    Batches, CheckpointConfig, Event, MetricsSink, Outcome, Probe, Sink, Stop, TimingSink, TrainConfig, Trainer,
};
use occlude_vit::{Extractor, Extras, Features};
use rand::Rng;
use std::collections::BTreeMap;
use std::io;
use std::path::Path;

pub(crate) const BATCH: usize = 4;
pub(crate) const PIXELS: usize = 12;
pub(crate) const SEED: u64 = 11;

/// loss = mean (x w + noise - sum x)^2, noise drawn anew for each batch.
pub(crate) struct Line {
    student: ParamStore,
    average: ParamStore,
    /// The batch whose gradient holds an infinity, though its loss is finite.
    pub(crate) poisoned: Option<u64>,
    /// The precision that held in each micro-batch.
    pub(crate) precisions: Vec<Precision>,
    /// How much of the teacher that moves at the start of a step is in the target.
    pub(crate) lead: f64,
    /// The loss of the last micro-batch.
    pub(crate) loss: Option<f64>,
    /// What was called: `(hook, step, micro-batch)`.
    pub(crate) calls: Vec<(&'static str, u64, usize)>,
}

impl Line {
    pub(crate) fn new() -> Self {
        let mut student = ParamStore::trainable(Streams::new(SEED), DType::F32, &Device::Cpu);
        student.root().trained("student.w", &[PIXELS, 1], &Init::Normal { std: 0.5 }, Factors::ONE).unwrap();
        let mut average = ParamStore::frozen(Streams::new(SEED), DType::F32, &Device::Cpu);
        average.root().trained("student_ema.w", &[PIXELS, 1], &Init::Constant(0.0), Factors::ONE).unwrap();
        average.root().constant("teacher.walk", &[1], &Init::Constant(0.0)).unwrap();
        average.root().constant("teacher.seen", &[1], &Init::Constant(0.0)).unwrap();
        average.root().constant("teacher.start", &[1], &Init::Constant(0.0)).unwrap();
        Self { student, average, poisoned: None, precisions: Vec::new(), lead: 1.0, loss: None, calls: Vec::new() }
    }

    pub(crate) fn weights(&self) -> Vec<f32> {
        self.student.get("student.w").unwrap().flatten_all().unwrap().to_vec1().unwrap()
    }
}

impl Method for Line {
    fn name(&self) -> &'static str {
        "line"
    }

    /// A teacher that moves at the start of a step, and is read in the last micro-batch.
    fn before_update(&mut self, ctx: &StepContext<'_>) -> Result<()> {
        assert_eq!(Precision::current(), Precision::F32, "a step alone has another precision");
        self.calls.push(("before_update", ctx.step, ctx.micro));
        let start = self.average.get("teacher.start").unwrap();
        let weight = self.student.get("student.w").unwrap().detach().get(0)?; // [1]
        assign(start, &((start + weight)? * 0.5)?)
    }

    fn step(&mut self, batch: &ViewBatch, ctx: &StepContext<'_>) -> Result<StepOutput> {
        self.calls.push(("step", ctx.step, ctx.micro));
        self.precisions.push(Precision::current());
        // A running statistic: it moves in every micro-batch and is not read.
        let seen = self.average.get("teacher.seen").unwrap();
        let mean = ctx.collective.all_reduce_mean(&batch.views[0].mean_all()?.reshape(1)?)?;
        assign(seen, &((seen * 0.75)? + mean)?)?;
        let x = batch.views[0].flatten_from(1)?; // [batch, pixels]
        let noise: f64 = ctx.streams.stream("noise", 0, ctx.batch_index()).random();
        let start = (self.average.get("teacher.start").unwrap() * self.lead)?;
        let target = (x.sum_keepdim(1)?.broadcast_add(&start)? + noise)?;
        let loss = (x.matmul(self.student.get("student.w").unwrap())? - target)?.sqr()?.mean_all()?;
        let value = f64::from(loss.to_scalar::<f32>()?);
        self.loss = Some(value);
        let mut gradients = backward(&loss)?;
        if self.poisoned == Some(ctx.batch_index()) {
            let weight = self.student.get("student.w").unwrap();
            gradients.accumulate(weight.id(), Tensor::full(f32::INFINITY, weight.dims(), &Device::Cpu)?)?;
        }
        Ok(StepOutput { losses: vec![("square", value)], metrics: vec![("noise", noise)], gradients })
    }

    fn after_step(&mut self, ctx: &StepContext<'_>) -> Result<()> {
        self.calls.push(("after_step", ctx.step, ctx.micro));
        assert_eq!(Precision::current(), Precision::F32, "a step alone has another precision");
        let walk = self.average.get("teacher.walk").unwrap();
        let stride: f64 = ctx.streams.stream("walk", 0, ctx.step).random();
        assign(walk, &(walk + stride)?)
    }

    fn groups(&self) -> Vec<ParamGroup> {
        let mut group = ParamGroup::adamw("student", self.student.params(), Schedule::constant(0.02));
        let averages = vec![self.average.params()[0].clone()];
        group.ema = Some(Ema { averages, momentum: Schedule::constant(0.9) });
        vec![group]
    }

    fn state(&self) -> StateDict {
        let mut state = self.student.state();
        state.extend(self.average.state());
        state
    }

    fn load(&mut self, state: &StateDict) -> Result<()> {
        let (student, average) = state.clone().into_iter().partition(|(name, _)| name.starts_with("student."));
        self.student.load(&student)?;
        self.average.load(&average)
    }

    fn extractor(&self, _: Weights) -> Box<dyn Extractor + '_> {
        Box::new(Nothing)
    }

    fn matrices(&self) -> Result<Vec<Matrix>> {
        let values = self.weights().into_iter().map(f64::from).collect();
        Ok(vec![Matrix { name: "line", rows: 2, cols: PIXELS / 2, values }])
    }
}

struct Nothing;

impl Extractor for Nothing {
    fn features_with(&self, _: &Tensor, _: Extras) -> Result<Features> {
        Err(occlude_kernels::Error::argument("line", "has no features"))
    }

    fn patch_size(&self) -> usize {
        1
    }
}

/// Random images; `bad` makes one batch hold a NaN, `ends` makes one impossible.
#[derive(Clone, Copy, Default)]
pub(crate) struct Noise {
    /// Number of the next batch.
    pub(crate) step: u64,
    /// Batches of other ranks between two of this one.
    pub(crate) others: u64,
    pub(crate) bad: Option<u64>,
    pub(crate) ends: Option<u64>,
}

impl Batches for Noise {
    fn next(&mut self) -> occlude_data::Result<Batch> {
        let step = self.step;
        if self.ends == Some(step) {
            return Err(occlude_data::Error::Missing { path: "images".into() });
        }
        self.step += 1 + self.others;
        let mut stream = Streams::new(SEED).stream("batch", 0, step);
        let mut view: Vec<f32> = (0..BATCH * PIXELS).map(|_| stream.random()).collect();
        if self.bad == Some(step) {
            view[3] = f32::NAN;
        }
        let ids = (0..BATCH as u64).map(|index| step * BATCH as u64 + index).collect();
        Ok(Batch { step, ids, views: vec![view], shape: [BATCH, 3, 2, 2], corrupt: vec![] })
    }
}

/// Scores the weights after 0, 4, 8, ... steps.
pub(crate) struct Sum;

impl Probe for Sum {
    fn due(&self, done: u64, _: u64) -> bool {
        done.is_multiple_of(4)
    }

    fn run(
        &mut self,
        method: &dyn Method,
        done: u64,
    ) -> std::result::Result<Vec<(String, f64)>, Box<dyn std::error::Error + Send + Sync>> {
        assert_eq!(Precision::current(), Precision::F32, "scores are f32");
        let sum = method.state()["student.w"].sum_all()?.to_scalar::<f32>()?;
        let name = if done == 0 { "knn_random_weights" } else { "knn" };
        Ok(vec![(name.to_owned(), f64::from(sum))])
    }
}

/// Breaks off after some steps, without a word to the trainer: what a kill leaves is what lies on disk.
pub(crate) struct Breaker(pub(crate) u64);

impl Sink for Breaker {
    fn name(&self) -> &str {
        "breaker"
    }

    fn record(&mut self, event: &Event<'_>) -> io::Result<()> {
        match event {
            Event::Step { row, .. } if row.step == self.0 => Err(io::Error::other("broken off")),
            _ => Ok(()),
        }
    }
}

/// Wishes to stop after some steps.
pub(crate) struct Stopper(pub(crate) u64, pub(crate) Stop);

impl Sink for Stopper {
    fn name(&self) -> &str {
        "stopper"
    }

    fn record(&mut self, event: &Event<'_>) -> io::Result<()> {
        if let Event::Step { row, .. } = event
            && row.step == self.0
        {
            self.1.request();
        }
        Ok(())
    }
}

/// 20 steps, a checkpoint every 5, a row every 3.
pub(crate) fn trainer(run: &RunDir) -> Trainer<'_> {
    trainer_in("f32", run)
}

/// [`trainer`] in another precision.
pub(crate) fn trainer_in<'a>(precision: &str, run: &'a RunDir) -> Trainer<'a> {
    trainer_of(TrainConfig { precision: precision.to_owned(), ..TrainConfig::default() }, run)
}

/// [`trainer`] with several micro-batches in a step.
pub(crate) fn trainer_of_micros(accumulate: usize, run: &RunDir) -> Trainer<'_> {
    trainer_of(TrainConfig { accumulate, ..TrainConfig::default() }, run)
}

fn trainer_of(config: TrainConfig, run: &RunDir) -> Trainer<'_> {
    let config = TrainConfig {
        length: Span::Steps(20),
        batch: BATCH,
        clip: Some(1.0),
        log_every: 3,
        checkpoint: CheckpointConfig { every: Some(Span::Steps(5)), minutes: None, keep_last: 3, keep_every: None },
        ..config
    };
    let training = config.check(40).unwrap();
    assert_eq!(training.retention(), Retention { keep_last: 3, keep_every: None });
    let mut trainer = Trainer::new(run, training, Streams::new(SEED), Device::Cpu);
    trainer.identity = BTreeMap::from([("method.dim".to_owned(), PIXELS.to_string())]);
    trainer.sinks.push(Box::new(MetricsSink::open(&run.metrics_file()).unwrap()));
    trainer.sinks.push(Box::new(TimingSink::open(&run.timing_file()).unwrap()));
    trainer.probes.push(Box::new(Sum));
    trainer
}

pub(crate) fn train(trainer: Trainer<'_>) -> occlude_trainer::Result<Outcome> {
    trainer.run(&mut Line::new(), |step| Ok(Noise { step, ..Noise::default() }))
}

/// The bytes that a resumed run must reproduce.
#[derive(Debug, PartialEq)]
pub(crate) struct Trace {
    pub(crate) method: Vec<u8>,
    pub(crate) optimizer: Vec<u8>,
    pub(crate) metrics: String,
}

pub(crate) fn trace(run: &RunDir, checkpoint: &Path) -> Trace {
    Checkpoint::open(checkpoint).unwrap();
    Trace {
        method: std::fs::read(checkpoint.join("method.safetensors")).unwrap(),
        optimizer: std::fs::read(checkpoint.join("optimizer.safetensors")).unwrap(),
        metrics: std::fs::read_to_string(run.metrics_file()).unwrap(),
    }
}

/// A run in one go.
pub(crate) fn straight() -> Trace {
    let folder = tempfile::tempdir().unwrap();
    let run = RunDir::create(folder.path()).unwrap();
    let outcome = train(trainer(&run)).unwrap();
    trace(&run, &outcome.checkpoint)
}
