//! Scores of a frozen model beside those it has to beat, all on the same images.

use crate::open::{Images, choose_labelled, fresh, weights};
use anyhow::{Result, bail};
use candle_core::Device;
use occlude_config::Run;
use occlude_data::Dataset;
use occlude_eval::{
    FeatureRequest, FeatureSet, KnnReport, LinearReport, PixelForm, Pooling, Vote, WeightsChoice, features_of, knn,
    linear_probe, pixel_features,
};
use occlude_methods::Method;
use occlude_random::Streams;
use occlude_trainer::Summary;
use occlude_vit::Extractor;

/// Scores of one model.
#[derive(Debug)]
pub(crate) struct Scores {
    pub(crate) weights: WeightsChoice,
    /// One entry a pooling, in the order of the settings.
    pub(crate) knn: Vec<(Pooling, KnnReport)>,
    pub(crate) linear: LinearReport,
    pub(crate) random: KnnReport,
    pub(crate) pixels: KnnReport,
}

/// A line of the table: what, percent, how.
pub(crate) struct Row {
    pub(crate) name: String,
    pub(crate) percent: f64,
    pub(crate) note: String,
}

/// What is scored, on which images.
pub(crate) struct Scoring<'a> {
    pub(crate) run: &'a Run,
    pub(crate) images: &'a Images,
    pub(crate) device: &'a Device,
    pub(crate) weights: WeightsChoice,
}

impl Scoring<'_> {
    /// k-NN and linear probe of `method`, k-NN of the same model with random weights and of raw pixels. `progress` is told
    /// what is being done.
    pub(crate) fn of(&self, method: &dyn Method, progress: &dyn Fn(&str)) -> Result<Scores> {
        if let Some(why) = self.images.unfit_for_scores(self.run) {
            bail!("nothing to score on: {why}");
        }
        let Some(test_images) = self.images.test.as_deref() else { bail!("nothing is held out") };
        let train_images = &*self.images.train;
        let settings = &self.run.eval;
        let streams = self.streams();
        progress("features");
        let extractor = method.extractor(weights(self.weights));
        let banks = self.features(&*extractor, train_images, settings.bank, "eval/bank", &settings.poolings)?;
        let tests = self.features(&*extractor, test_images, settings.test, "eval/test", &settings.poolings)?;
        progress("k-NN");
        let scored = settings.poolings.iter().zip(banks.iter().zip(&tests));
        let scored = scored.map(|(pooling, (bank, test))| Ok((*pooling, knn(bank, test, &settings.knn)?)));
        let scored = scored.collect::<Result<Vec<_>>>()?;
        progress("linear probe");
        let (Some(bank), Some(test)) = (banks.first(), tests.first()) else { bail!("eval.poolings is empty") };
        let linear = linear_probe(bank, test, &settings.linear, &streams, &mut |_, _| {})?;
        progress("random weights and raw pixels");
        Ok(Scores { weights: self.weights, knn: scored, linear, random: self.random()?, pixels: self.pixels()? })
    }

    /// k-NN of the same model with random weights, by the first pooling of the settings: the one of `knn`.
    fn random(&self) -> Result<KnnReport> {
        let Some(test) = &self.images.test else { bail!("nothing is held out") };
        let method = fresh(self.run, self.device)?;
        let extractor = method.extractor(weights(self.weights));
        let settings = &self.run.eval;
        let one = &settings.poolings[..1];
        let bank = self.features(&*extractor, &*self.images.train, settings.bank, "eval/bank", one)?;
        let test = self.features(&*extractor, &**test, settings.test, "eval/test", one)?;
        Ok(knn(&bank[0], &test[0], &settings.knn)?)
    }

    fn pixels(&self) -> Result<KnnReport> {
        let Some(test) = &self.images.test else { bail!("nothing is held out") };
        let pixels = |dataset: &dyn Dataset, limit, purpose| {
            let indices = choose_labelled(dataset, limit, &self.streams(), purpose);
            pixel_features(dataset, &self.images.transform, &indices, self.pixel_form())
        };
        let bank = pixels(&*self.images.train, self.run.eval.bank, "eval/bank")?;
        let test = pixels(&**test, self.run.eval.test, "eval/test")?;
        Ok(knn(&bank, &test, &self.run.eval.knn)?)
    }

    /// Every pixel of a small image; of a larger one the means of areas, which is the stronger baseline and fits memory.
    fn pixel_form(&self) -> PixelForm {
        const SMALL: usize = 32;
        let size = self.images.transform.size();
        match (SMALL / 2..=SMALL).rev().find(|side| size.is_multiple_of(*side)) {
            Some(side) if size > SMALL => PixelForm::Averaged { side },
            _ => PixelForm::Plain,
        }
    }

    fn features(
        &self,
        extractor: &dyn Extractor,
        dataset: &dyn Dataset,
        limit: Option<usize>,
        purpose: &str,
        poolings: &[Pooling],
    ) -> Result<Vec<FeatureSet>> {
        let indices = choose_labelled(dataset, limit, &self.streams(), purpose);
        let (batch, poolings, device) = (self.run.eval.batch, poolings.to_vec(), self.device.clone());
        let request = FeatureRequest { indices, batch, poolings, device };
        Ok(features_of(extractor, dataset, &self.images.transform, &request, &mut |_, _| {})?)
    }

    /// Which images are scored: not a matter of the run's seed, so that runs of several seeds see the same ones.
    fn streams(&self) -> Streams {
        Streams::new(0)
    }
}

impl Scores {
    /// The table, the run's own scores first.
    pub(crate) fn rows(&self) -> Vec<Row> {
        let which = if self.weights == WeightsChoice::Teacher { "teacher" } else { "student" };
        let own = self.knn.iter().map(|(pooling, report)| Row {
            name: format!("k-NN, {} pooling", pooling_name(*pooling)),
            percent: report.canonical.accuracy,
            note: format!("{which}, {}; best {}", setting(report), best(report)),
        });
        let linear = &self.linear;
        let linear = Row {
            name: "linear probe".into(),
            percent: linear.accuracy,
            note: format!("{which}, lr {}, weight decay {}", linear.best.lr, linear.best.weight_decay),
        };
        let level = |name: &str, report: &KnnReport| Row {
            name: format!("k-NN, {name}"),
            percent: report.canonical.accuracy,
            note: format!("{}; best {}", setting(report), best(report)),
        };
        let levels = [level("random weights", &self.random), level("raw pixels", &self.pixels)];
        own.chain([linear]).chain(levels).collect()
    }

    /// Enters the scores into a summary; the first pooling of the settings is the run's `knn`.
    pub(crate) fn enter(&self, summary: &mut Summary) {
        for (index, (pooling, report)) in self.knn.iter().enumerate() {
            let accuracy = report.canonical.accuracy;
            if index == 0 {
                summary.set_score("knn", accuracy);
            }
            summary.set_score(&format!("knn_{}", pooling.name()), accuracy);
        }
        summary.set_score("linear", self.linear.accuracy);
        summary.set_score("knn_random_weights", self.random.canonical.accuracy);
        summary.set_score("knn_pixels", self.pixels.canonical.accuracy);
    }
}

/// What people call it.
pub(crate) fn pooling_name(pooling: Pooling) -> &'static str {
    match pooling {
        Pooling::Average => "average",
        Pooling::Global => "predictor",
        Pooling::Both => "average and predictor",
    }
}

fn setting(report: &KnnReport) -> String {
    let vote = if report.canonical.vote == Vote::Weighted { "weighted" } else { "majority" };
    format!("k = {}, {vote}, {} against {} images", report.canonical.k, report.test, report.bank)
}

fn best(report: &KnnReport) -> String {
    format!("{:.1} with k = {}", report.best.accuracy, report.best.k)
}

/// Prints the table.
pub(crate) fn print(rows: &[Row]) {
    let width = rows.iter().map(|row| row.name.len()).max().unwrap_or(0);
    for row in rows {
        println!("  {:width$}  {:5.1} %   {}", row.name, row.percent, row.note);
    }
}
