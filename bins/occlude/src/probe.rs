//! k-NN on a held-out split while a run trains.

use crate::open::{Images, choose_labelled, weights};
use candle_core::Device;
use occlude_eval::{FeatureRequest, KnnSettings, Probe as Settings, features_of, knn};
use occlude_methods::Method;
use occlude_random::Streams;
use occlude_trainer::Probe;

/// Images in one forward pass of a probe.
const BATCH: usize = 128;

/// Scores `knn` at the steps the settings name, and `knn_random_weights` before the first step.
pub(crate) struct KnnProbe {
    pub(crate) settings: Settings,
    pub(crate) knn: KnnSettings,
    pub(crate) images: Images,
    pub(crate) device: Device,
    /// Which images are used: the same for every seed of training, so that runs can be compared.
    pub(crate) streams: Streams,
    /// Whether the run begins with random weights.
    pub(crate) random_start: bool,
}

impl Probe for KnnProbe {
    fn due(&self, done: u64, total: u64) -> bool {
        self.settings.every > 0 && (done == 0 || done == total || self.settings.is_due(done))
    }

    fn run(
        &mut self,
        method: &dyn Method,
        done: u64,
    ) -> Result<Vec<(String, f64)>, Box<dyn std::error::Error + Send + Sync>> {
        let Some(test) = &self.images.test else { return Ok(Vec::new()) };
        let extractor = method.extractor(weights(self.settings.weights));
        let transform = &self.images.transform;
        let features = |dataset: &dyn occlude_data::Dataset, limit, purpose| {
            let indices = choose_labelled(dataset, Some(limit), &self.streams, purpose);
            let (poolings, device) = (vec![self.settings.pooling], self.device.clone());
            let request = FeatureRequest { batch: BATCH, poolings, device, ..FeatureRequest::new(indices) };
            features_of(&*extractor, dataset, transform, &request, &mut |_, _| {}).map(|mut sets| sets.swap_remove(0))
        };
        let bank = features(&*self.images.train, self.settings.bank, "probe/bank")?;
        let test = features(&**test, self.settings.test, "probe/test")?;
        let score = knn(&bank, &test, &self.knn.canonical())?.canonical.accuracy;
        let mut scores = vec![("knn".to_owned(), score)];
        if done == 0 && self.random_start {
            scores.push(("knn_random_weights".to_owned(), score));
        }
        Ok(scores)
    }
}
