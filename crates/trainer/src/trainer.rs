//! The loop.

use crate::clock::{Clock, Spent};
use crate::config::Training;
use crate::event::{Event, MatrixRow, Named, ProbeRow, StepRow};
use crate::probe::Probe;
use crate::replay::{Suspect, instructions, not_finite};
use crate::sinks::Sink;
use crate::state::{RunState, differences};
use crate::stop::Stop;
use crate::summary::Summary;
use crate::total::Total;
use crate::{Error, Result};
use candle_core::{Device, Tensor};
use occlude_checkpoint::{Checkpoint, Checkpoints, CommitError, RunDir};
use occlude_data::{Batch, Loader};
use occlude_distributed::{Collective, SingleProcess};
use occlude_kernels::StateDict;
use occlude_methods::{Matrix, Method, StepContext, StepOutput, ViewBatch};
use occlude_optim::{Optimizer, StepReport};
use occlude_random::Streams;
use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Where micro-batches come from, in order: those of a step one after the other. Each must depend on the seed and its
/// number alone.
pub trait Batches {
    /// The next micro-batch; waits until it is made.
    ///
    /// # Errors
    /// It cannot be made; the run ends.
    fn next(&mut self) -> occlude_data::Result<Batch>;
}

impl Batches for Loader {
    fn next(&mut self) -> occlude_data::Result<Batch> {
        Loader::next(self)
    }
}

/// A run to be trained. Make one with [`Trainer::new`] and fill in what else is wanted.
pub struct Trainer<'a> {
    /// The folder of the run; hold its lock while training.
    pub run: &'a RunDir,
    /// Length, logging and saving.
    pub training: Training,
    /// Random streams of the run.
    pub streams: Streams,
    /// Where batches are put; the device of the method.
    pub device: Device,
    /// Settings that decide what is computed, flattened (`method.dim` -> `192`), without those that may change between
    /// starts. A checkpoint with others is refused. The seed is added.
    pub identity: BTreeMap<String, String>,
    /// Start over: existing checkpoints and stored steps of the run are removed.
    pub fresh: bool,
    /// The checkpoints of the run.
    pub checkpoints: Checkpoints,
    /// Where numbers go.
    pub sinks: Vec<Box<dyn Sink + 'a>>,
    /// What measures the method while it trains.
    pub probes: Vec<Box<dyn Probe + 'a>>,
    /// A wish to stop.
    pub stop: Stop,
    /// The ranks that train one model, each in a run of its own; a single process by default.
    ///
    /// All ranks begin with the state of rank 0 and step by the mean of their gradients, so they stay equal. Rank 0 alone
    /// uses the folder of the run, its sinks and its probes; a wish to stop on any rank stops all. An error on one rank
    /// ends the run there, and on the others as a lost rank.
    ///
    /// Each rank brings its own share of the data: its micro-batch `i` is number `i * size + rank` of all. Not there yet
    /// for several ranks: what starts them, lengths in epochs (they count the images of one rank), and stored steps.
    pub collective: Box<dyn Collective + 'a>,
}

/// Which way a run ended well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// All steps are done.
    Finished,
    /// A signal came; the run is saved and goes on when it is started again.
    Interrupted,
}

/// A run that ended well.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Which way.
    pub end: End,
    /// Steps done.
    pub step: u64,
    /// Steps that were done before this start.
    pub resumed: Option<u64>,
    /// The newest checkpoint; none on a rank other than 0, which keeps none.
    pub checkpoint: PathBuf,
    /// The numbers of the run so far, with every score that a probe gave. Not written yet.
    pub summary: Summary,
}

impl<'a> Trainer<'a> {
    /// A run in one process, without sinks and probes, stopped by nothing.
    #[must_use]
    pub fn new(run: &'a RunDir, training: Training, streams: Streams, device: Device) -> Self {
        let checkpoints = run.checkpoints(training.retention());
        Self {
            run,
            training,
            streams,
            device,
            identity: BTreeMap::new(),
            fresh: false,
            checkpoints,
            sinks: Vec::new(),
            probes: Vec::new(),
            stop: Stop::new(),
            collective: Box::new(SingleProcess),
        }
    }

    /// Trains `method` to the end of the run, from the newest checkpoint if there is one. `batches` is asked for a
    /// source that begins with the given micro-batch: the first of the next step, where each takes
    /// `train.accumulate` of them.
    ///
    /// # Errors
    /// See [`Error`]. Where the first micro-batch of a step cannot be made, the steps done are saved before the error is
    /// returned; in every other case the newest checkpoint stands.
    pub fn run<B: Batches>(
        mut self,
        method: &mut dyn Method,
        batches: impl FnOnce(u64) -> occlude_data::Result<B>,
    ) -> Result<Outcome> {
        self.identity.insert("seed".to_owned(), self.streams.seed().to_string());
        if self.collective.size() > 1 {
            self.identity.insert("ranks".to_owned(), self.collective.size().to_string());
        }
        if !self.leads() {
            self.sinks.clear();
            self.probes.clear();
        }
        let optimizer = Optimizer::new(method.groups(), self.training.clip())?;
        let mut running = Running::begin(self, method, optimizer)?;
        if running.done < running.setup.training.steps() {
            let micros = running.setup.training.batch().accumulate as u64;
            let mut batches = batches(running.done.saturating_mul(micros))?;
            running.go(&mut batches)?;
        }
        running.end()
    }

    /// Whether this rank uses the folder of the run.
    fn leads(&self) -> bool {
        self.collective.rank() == 0
    }

    fn context(&self, step: u64, micro: usize) -> StepContext<'_> {
        let micros = self.training.batch().accumulate;
        StepContext { step, micro, micros, streams: self.streams, collective: &*self.collective }
    }

    /// The newest checkpoint, in a folder that was tidied up.
    fn newest(&self) -> Result<Option<Checkpoint>> {
        self.checkpoints.recover()?;
        if self.fresh {
            self.checkpoints.clear()?;
            Checkpoints::new(self.run.replay_dir(), self.training.retention()).clear()?;
        }
        newest(&self.checkpoints)
    }

    /// Whether any rank wishes to stop.
    fn stops(&self) -> Result<bool> {
        if self.collective.size() == 1 {
            return Ok(self.stop.requested());
        }
        let wish = Tensor::new(u32::from(self.stop.requested()), &Device::Cpu)?;
        Ok(self.collective.all_reduce(&wish)?.to_scalar::<u32>()? > 0)
    }
}

/// A run between its start and its end.
struct Running<'a, 'm> {
    setup: Trainer<'a>,
    method: &'m mut dyn Method,
    optimizer: Optimizer,
    clock: Clock,
    /// Steps done.
    done: u64,
    /// Whether micro-batches of the next step have been run: running statistics may have moved.
    within: bool,
    resumed: Option<u64>,
    /// The newest checkpoint and the steps done when it was written.
    saved: Option<(u64, PathBuf)>,
    saved_at: Instant,
    losses: Named,
    scores: BTreeMap<String, f64>,
    corrupt: HashSet<String>,
}

impl<'a, 'm> Running<'a, 'm> {
    /// Finds out where the run stands and brings everything there: weights, moments, files.
    fn begin(setup: Trainer<'a>, method: &'m mut dyn Method, optimizer: Optimizer) -> Result<Self> {
        let checkpoint = if setup.leads() { setup.newest()? } else { None };
        let mut running = Self {
            setup,
            method,
            optimizer,
            clock: Clock::start(Spent::default()),
            done: 0,
            within: false,
            resumed: None,
            saved: None,
            saved_at: Instant::now(),
            losses: Named::default(),
            scores: BTreeMap::new(),
            corrupt: HashSet::new(),
        };
        match checkpoint {
            Some(checkpoint) => running.resume(&checkpoint)?,
            None => running.rewind(&BTreeMap::new())?,
        }
        running.follow_first_rank()?;
        running.tell_start()?;
        // A run resumed after 0 steps has these scores already.
        if running.resumed.is_none() {
            running.probe()?;
            running.show()?;
        }
        Ok(running)
    }

    fn resume(&mut self, checkpoint: &Checkpoint) -> Result<()> {
        let state: RunState = checkpoint.state()?;
        let path = checkpoint.path().to_owned();
        if let Some(differences) = differences(&state.identity, &self.setup.identity) {
            return Err(Error::OtherConfig { path, differences });
        }
        let method = checkpoint.load("method", &self.setup.device)?;
        let optimizer = checkpoint.load("optimizer", &self.setup.device)?;
        self.optimizer.load(&optimizer)?;
        self.method.load(&method)?;
        self.rewind(&state.files)?;
        self.clock = Clock::start(state.spent);
        self.done = state.next_step;
        self.resumed = Some(state.next_step);
        self.saved = Some((state.next_step, path));
        self.losses = state.losses;
        self.scores = state.scores;
        Ok(())
    }

    /// Brings every rank to where rank 0 stands.
    fn follow_first_rank(&mut self) -> Result<()> {
        let collective = &*self.setup.collective;
        if collective.size() == 1 {
            return Ok(());
        }
        let stand = Tensor::new(&[self.done, self.resumed.is_some().into()].map(|n: u64| n as i64), &Device::Cpu)?;
        let stand = collective.broadcast(&stand, 0)?.to_vec1::<i64>()?;
        let method = of_first_rank(collective, &self.method.state())?;
        let optimizer = of_first_rank(collective, &self.optimizer.state())?;
        if !self.setup.leads() {
            self.method.load(&method)?;
            self.optimizer.load(&optimizer)?;
            self.done = stand[0] as u64;
            self.resumed = (stand[1] != 0).then_some(self.done);
        }
        Ok(())
    }

    /// Cuts every file back; a file that the checkpoint does not know starts anew.
    fn rewind(&mut self, files: &BTreeMap<String, u64>) -> Result<()> {
        self.setup.sinks.iter_mut().try_for_each(|sink| {
            let position = files.get(sink.name()).copied().unwrap_or(0);
            sink.rewind(position).map_err(|source| Error::Sink { name: sink.name().to_owned(), source })
        })
    }

    fn tell_start(&mut self) -> Result<()> {
        let (step, total) = (self.done, self.setup.training.steps());
        let resumed = self.saved.as_ref().map(|(_, path)| path.clone());
        tell(&mut self.setup.sinks, &Event::Started { step, total, resumed: resumed.as_deref() })
    }

    /// Steps until the end or a wish to stop.
    fn go(&mut self, batches: &mut dyn Batches) -> Result<()> {
        while self.done < self.setup.training.steps() && !self.setup.stops()? {
            if let Err(error) = self.advance(batches) {
                return Err(self.saved_if_sound(error));
            }
            self.probe()?;
            if self.ends_epoch() {
                self.show()?;
            }
            let due = self.setup.training.saves(self.done, self.saved_at.elapsed().as_secs_f64());
            if due && self.setup.leads() {
                self.save()?;
            }
        }
        Ok(())
    }

    /// One step of the run.
    fn advance(&mut self, batches: &mut dyn Batches) -> Result<()> {
        let (began, mut waited, mut images) = (Instant::now(), Duration::ZERO, 0);
        let micros = self.setup.training.batch().accumulate;
        let mut total = Total::new(micros);
        for micro in 0..micros {
            let asked = Instant::now();
            let batch = batches.next()?;
            waited += asked.elapsed();
            self.note_corrupt(&batch);
            let batch = to_views(batch, &self.setup.device)?;
            images += batch.ids.len();
            total.add(self.micro_batch(&batch, micro)?, &self.optimizer)?;
        }
        let output = total.over_ranks(&*self.setup.collective, &self.optimizer)?;
        let report = self.optimizer.step(&output.gradients, self.done)?;
        self.method.after_step(&self.setup.context(self.done, micros - 1))?;
        self.done += 1;
        self.within = false;
        self.record(&output, &report, images * self.setup.collective.size(), (began.elapsed(), waited))
    }

    /// Losses and gradients of one micro-batch; all are finite.
    fn micro_batch(&mut self, batch: &ViewBatch, micro: usize) -> Result<StepOutput> {
        self.within = true;
        let ctx = self.setup.context(self.done, micro);
        if ctx.is_last_micro() {
            self.method.before_update(&ctx)?;
        }
        let output = {
            // Scores and the optimizer are outside: they are f32 in every precision.
            let _scope = self.setup.training.precision().scope();
            self.method.step(batch, &ctx)?
        };
        self.refuse_not_finite(batch, &output, &ctx)?;
        Ok(output)
    }

    /// Ends the run if a loss or gradient is not finite, before the optimizer has moved.
    fn refuse_not_finite(&self, batch: &ViewBatch, output: &StepOutput, ctx: &StepContext<'_>) -> Result<()> {
        let Some(mut what) = not_finite(output, &self.optimizer)? else { return Ok(()) };
        if ctx.micros > 1 {
            what = format!("{what} in micro-batch {} of {}", ctx.micro + 1, ctx.micros);
        }
        let bundle = self.stored(&what, batch, output, ctx);
        let checkpoint = match &self.saved {
            Some((step, _)) => format!("the checkpoint after step {step} stands"),
            None => "there was no checkpoint yet".to_owned(),
        };
        Err(Error::NonFinite { step: ctx.step, what, checkpoint, bundle })
    }

    /// Stores a micro-batch that went wrong, and says where and how to run it again.
    fn stored(&self, what: &str, batch: &ViewBatch, output: &StepOutput, ctx: &StepContext<'_>) -> String {
        if ctx.collective.size() > 1 {
            return "A step of several ranks is not stored".to_owned();
        }
        let suspect = Suspect {
            folder: &self.setup.run.replay_dir(),
            method: self.method,
            optimizer: &self.optimizer,
            batch,
            output,
            ctx,
            identity: &self.setup.identity,
            precision: self.setup.training.precision(),
        };
        instructions(suspect.store(what))
    }

    fn note_corrupt(&mut self, batch: &Batch) {
        for file in &batch.corrupt {
            self.corrupt.insert(file.clone());
        }
    }

    fn record(
        &mut self,
        output: &StepOutput,
        report: &StepReport,
        images: usize,
        (whole, waited): (Duration, Duration),
    ) -> Result<()> {
        self.clock.step(images, whole, waited);
        self.losses = Named::of(&output.losses);
        let row = StepRow {
            step: self.done,
            epoch: self.epoch(self.done),
            losses: self.losses.clone(),
            metrics: Named::of(&output.metrics),
            lr: Named::of(&report.lrs),
            momentum: Named::of(&report.momenta),
            grad_norm: report.grad_norm,
        };
        let timing = self.clock.row(self.done, self.corrupt.len() as u64);
        let logged = self.setup.training.logs(self.done);
        tell(&mut self.setup.sinks, &Event::Step { row: &row, timing: &timing, logged })
    }

    /// Runs the probes that are due and records their scores together.
    fn probe(&mut self) -> Result<()> {
        let (step, total) = (self.done, self.setup.training.steps());
        let mut scores = Vec::new();
        for probe in self.setup.probes.iter_mut().filter(|probe| probe.due(step, total)) {
            scores.extend(probe.run(&*self.method, step).map_err(|source| Error::Probe { step, source })?);
        }
        if scores.is_empty() {
            return Ok(());
        }
        self.scores.extend(scores.iter().cloned());
        tell(&mut self.setup.sinks, &Event::Probed(&ProbeRow { step, scores: Named(scores) }))
    }

    /// Passes over the training set after `steps`.
    fn epoch(&self, steps: u64) -> f64 {
        steps as f64 / self.setup.training.ruler().steps_per_epoch
    }

    /// Whether the last step was the end of an epoch, or of the run.
    fn ends_epoch(&self) -> bool {
        let ends = self.epoch(self.done).floor() > self.epoch(self.done.saturating_sub(1)).floor();
        ends || self.done == self.setup.training.steps()
    }

    /// Records the weights that the method has to show.
    fn show(&mut self) -> Result<()> {
        if !self.setup.leads() {
            return Ok(());
        }
        for Matrix { name, rows, cols, values } in self.method.matrices()? {
            let (step, epoch) = (self.done, self.epoch(self.done));
            let row = MatrixRow { step, epoch, matrix: name.to_owned(), rows, cols, values };
            tell(&mut self.setup.sinks, &Event::Shown(&row))?;
        }
        Ok(())
    }

    /// Writes a checkpoint. Files are brought to disk first: it relies on their lengths.
    fn save(&mut self) -> Result<()> {
        let mut files = BTreeMap::new();
        for sink in &mut self.setup.sinks {
            let position = sink.position().map_err(|source| Error::Sink { name: sink.name().to_owned(), source })?;
            files.extend(position.map(|position| (sink.name().to_owned(), position)));
        }
        let state = self.state(files);
        let (method, optimizer) = (self.method.state(), self.optimizer.state());
        let parts = [("method", &method), ("optimizer", &optimizer)];
        let path = match self.setup.checkpoints.commit(self.done, &parts, &state) {
            Ok(path) => path,
            Err(CommitError::Unconfirmed { path, source }) => {
                tracing::warn!(path = %path.display(), error = %source, "checkpoint in place, durability unconfirmed");
                path
            }
            Err(error) => return Err(error.into()),
        };
        tell(&mut self.setup.sinks, &Event::Saved { step: self.done, path: &path })?;
        self.saved = Some((self.done, path));
        self.saved_at = Instant::now();
        Ok(())
    }

    fn is_saved(&self) -> bool {
        self.saved.as_ref().is_some_and(|(step, _)| *step == self.done)
    }

    /// Saves before a run ends by an error from outside: a batch that cannot be made is no reason to lose steps.
    fn saved_if_sound(&mut self, error: Error) -> Error {
        if matches!(error, Error::Data(_))
            && !self.within
            && self.setup.leads()
            && !self.is_saved()
            && self.done > 0
            && let Err(second) = self.save()
        {
            tracing::warn!(error = %second, "the run could not be saved");
        }
        error
    }

    fn end(mut self) -> Result<Outcome> {
        if self.setup.leads() && !self.is_saved() {
            self.save()?;
        }
        tell(&mut self.setup.sinks, &Event::Ended { step: self.done })?;
        let end = if self.done < self.setup.training.steps() { End::Interrupted } else { End::Finished };
        let summary = Summary { finished: end == End::Finished, ..self.state(BTreeMap::new()).summary() };
        let checkpoint = self.saved.map(|(_, path)| path).unwrap_or_default();
        Ok(Outcome { end, step: self.done, resumed: self.resumed, checkpoint, summary })
    }

    /// Where the run stands, with the lengths of its files.
    fn state(&self, files: BTreeMap<String, u64>) -> RunState {
        RunState {
            next_step: self.done,
            seed: self.setup.streams.seed(),
            identity: self.setup.identity.clone(),
            files,
            spent: self.clock.spent(),
            losses: self.losses.clone(),
            scores: self.scores.clone(),
        }
    }
}

/// Rank 0's tensors under the names of this rank's.
fn of_first_rank(collective: &dyn Collective, state: &StateDict) -> Result<StateDict> {
    state.iter().map(|(name, tensor)| Ok((name.clone(), collective.broadcast(tensor, 0)?))).collect()
}

/// The newest whole checkpoint. Where all are damaged, starting over must be asked for: it would cost the run.
fn newest(checkpoints: &Checkpoints) -> Result<Option<Checkpoint>> {
    let newest = checkpoints.newest()?;
    match (newest.checkpoint, newest.skipped.first()) {
        (None, Some((_, first))) => Err(Error::NoWholeCheckpoint {
            path: checkpoints.root().to_owned(),
            count: newest.skipped.len(),
            first: first.to_string(),
        }),
        (found, _) => Ok(found),
    }
}

fn tell(sinks: &mut [Box<dyn Sink + '_>], event: &Event<'_>) -> Result<()> {
    sinks
        .iter_mut()
        .try_for_each(|sink| sink.record(event).map_err(|source| Error::Sink { name: sink.name().to_owned(), source }))
}

/// The views as tensors.  [batch, 3, height, width] each
fn to_views(batch: Batch, device: &Device) -> Result<ViewBatch> {
    let shape = batch.shape;
    let views = batch
        .views
        .into_iter()
        .map(|view| Tensor::from_vec(view, &shape, device))
        .collect::<candle_core::Result<Vec<_>>>()?;
    Ok(ViewBatch { views, ids: batch.ids })
}
