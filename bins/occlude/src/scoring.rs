//! Scores a frozen model, beside what it has to beat, all on the same images.

use crate::open::{Images, choose_labelled, fresh, weights};
use crate::scores::{Of, Scores, pooling_name};
use crate::stages::Stages;
use anyhow::{Result, bail};
use candle_core::Device;
use occlude_config::Run;
use occlude_data::{Dataset, EvalTransform, Interpolation};
use occlude_eval::{
    FeatureRequest, FeatureSet, KnnReport, LowShotReport, PixelForm, Pooling, Protocol, WeightsChoice, features_of,
    knn, linear_probe, low_shot, low_shot_splits, pixel_features,
};
use occlude_methods::Method;
use occlude_random::Streams;
use occlude_vit::Extractor;
use std::collections::BTreeSet;

/// What is scored, on which images.
pub(crate) struct Scoring<'a> {
    pub(crate) run: &'a Run,
    pub(crate) images: &'a Images,
    pub(crate) device: &'a Device,
    pub(crate) weights: WeightsChoice,
    /// Steps the weights have seen.
    pub(crate) step: u64,
}

impl Scoring<'_> {
    /// The protocols of the settings on `method`; beside k-NN, that of the same model with random weights and of raw
    /// pixels.
    pub(crate) fn of(&self, method: &dyn Method, stages: &Stages) -> Result<Scores> {
        if let Some(why) = self.images.unfit_for_scores(self.run, &self.run.eval.protocols) {
            bail!("nothing to score on: {why}");
        }
        let settings = &self.run.eval;
        let extractor = method.extractor(weights(self.weights));
        let several = self.run.method.has_teacher();
        let mut scores = Scores::empty(self.step, several.then_some(self.weights));
        if settings.scores(Protocol::Knn) || settings.scores(Protocol::Linear) {
            self.classify(&*extractor, stages, &mut scores)?;
        }
        if settings.scores(Protocol::LowShot) {
            scores.lowshot = Some(self.low_shot(&*extractor, stages)?);
        }
        if settings.scores(Protocol::Knn) {
            stages.begin("k-NN of random weights and raw pixels");
            scores.random = Some(self.random(stages)?);
            scores.pixels = Some(self.pixels()?);
        }
        Ok(scores)
    }

    /// k-NN and linear probes, on features of one pass.
    fn classify(&self, extractor: &dyn Extractor, stages: &Stages, scores: &mut Scores) -> Result<()> {
        let settings = &self.run.eval;
        let (knns, linears) = (settings.scores(Protocol::Knn), settings.scores(Protocol::Linear));
        let voting = if knns { &settings.poolings[..] } else { &[] };
        let learning = if linears { settings.linear_poolings() } else { &[] };
        let mut poolings = voting.to_vec();
        poolings.extend(learning.iter().filter(|pooling| !voting.contains(pooling)));
        stages.begin("features of training images");
        let banks = self.bank(extractor, &poolings, stages)?;
        stages.begin("features of test images");
        let tests = self.tests(extractor, &poolings, stages)?;
        let sets: Vec<_> = poolings.iter().zip(banks.iter().zip(&tests)).collect();
        for &(pooling, (bank, test)) in sets.iter().filter(|(pooling, _)| voting.contains(pooling)) {
            stages.begin(&format!("k-NN, {} pooling", pooling_name(*pooling)));
            scores.knn.push(Of { pooling: *pooling, report: knn(bank, test, &settings.knn)? });
        }
        for &(pooling, (bank, test)) in sets.iter().filter(|(pooling, _)| learning.contains(pooling)) {
            stages.begin(&format!("linear probe, {} pooling", pooling_name(*pooling)));
            let mut at = |done, of| stages.at(done, of);
            let report = linear_probe(bank, test, &settings.linear, &self.streams(), &mut at)?;
            scores.linear.push(Of { pooling: *pooling, report });
        }
        // As the settings name them, whatever k-NN asked for first.
        let place = |of: &Of<_>| learning.iter().position(|pooling| *pooling == of.pooling);
        scores.linear.sort_by_key(place);
        Ok(())
    }

    /// Features only of the images the subsets need, resized bilinearly (MOCA, low-shot classification).
    fn low_shot(&self, extractor: &dyn Extractor, stages: &Stages) -> Result<LowShotReport> {
        let settings = &self.run.eval.lowshot;
        let train_images = &*self.images.train;
        let splits = low_shot_splits(train_images, settings)?;
        let needed = splits.iter().flat_map(|split| &split.subsets).flatten().copied();
        let needed: Vec<usize> = needed.collect::<BTreeSet<usize>>().into_iter().collect();
        let transform = self.run.crop.eval_transform(self.run.eval_mode)?.with_interpolation(Interpolation::Bilinear);
        let features = |what: &str, dataset: &dyn Dataset, indices| {
            stages.begin(what);
            let mut sets = self.features(extractor, dataset, &transform, indices, &[Pooling::BeforeNorm], stages)?;
            Ok::<_, anyhow::Error>(sets.swap_remove(0))
        };
        let train = features("low-shot features of training images", train_images, needed)?;
        let (test_images, chosen) = self.test_images()?;
        let test = features("low-shot features of test images", test_images, chosen)?;
        stages.begin("low-shot classification");
        Ok(low_shot(&train, &test, &splits, settings, &mut |done, of| stages.at(done, of))?)
    }

    /// k-NN of the same model with random weights, by the first pooling of the settings: the one of `knn`.
    fn random(&self, stages: &Stages) -> Result<KnnReport> {
        let method = fresh(self.run, self.device)?;
        let extractor = method.extractor(weights(self.weights));
        let one = &self.run.eval.poolings[..1];
        let (bank, test) = (self.bank(&*extractor, one, stages)?, self.tests(&*extractor, one, stages)?);
        Ok(knn(&bank[0], &test[0], &self.run.eval.knn)?)
    }

    fn pixels(&self) -> Result<KnnReport> {
        let pixels = |dataset: &dyn Dataset, indices: &[usize]| {
            pixel_features(dataset, &self.images.transform, indices, self.pixel_form())
        };
        let (test_images, chosen) = self.test_images()?;
        let bank = pixels(&*self.images.train, &self.bank_images())?;
        Ok(knn(&bank, &pixels(test_images, &chosen)?, &self.run.eval.knn)?)
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

    fn bank(&self, extractor: &dyn Extractor, poolings: &[Pooling], stages: &Stages) -> Result<Vec<FeatureSet>> {
        let (dataset, transform) = (&*self.images.train, &self.images.transform);
        self.features(extractor, dataset, transform, self.bank_images(), poolings, stages)
    }

    fn tests(&self, extractor: &dyn Extractor, poolings: &[Pooling], stages: &Stages) -> Result<Vec<FeatureSet>> {
        let (dataset, chosen) = self.test_images()?;
        self.features(extractor, dataset, &self.images.transform, chosen, poolings, stages)
    }

    fn features(
        &self,
        extractor: &dyn Extractor,
        dataset: &dyn Dataset,
        transform: &EvalTransform,
        indices: Vec<usize>,
        poolings: &[Pooling],
        stages: &Stages,
    ) -> Result<Vec<FeatureSet>> {
        let settings = &self.run.eval;
        let request = FeatureRequest {
            batch: settings.batch,
            poolings: poolings.to_vec(),
            class_blocks: settings.class_blocks,
            device: self.device.clone(),
            ..FeatureRequest::new(indices)
        };
        Ok(features_of(extractor, dataset, transform, &request, &mut |done, of| stages.at(done, of))?)
    }

    fn bank_images(&self) -> Vec<usize> {
        choose_labelled(&*self.images.train, self.run.eval.bank, &self.streams(), "eval/bank")
    }

    fn test_images(&self) -> Result<(&dyn Dataset, Vec<usize>)> {
        let Some(test) = self.images.test.as_deref() else { bail!("nothing is held out") };
        Ok((test, choose_labelled(test, self.run.eval.test, &self.streams(), "eval/test")))
    }

    /// Which images are scored: not a matter of the run's seed, so that runs of several seeds see the same ones.
    fn streams(&self) -> Streams {
        Streams::new(0)
    }
}
