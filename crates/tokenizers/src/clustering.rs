//! Prototypes that are learned while they give the targets.

use crate::ClusteringSettings;
use crate::walk::{CHUNK_SCORES, Chunk, by_position, walk};
use candle_core::{D, Tensor};
use occlude_kernels::{
    Factors, Gradients, Init, Result, Scope, l2_normalize, linear, sinkhorn, soft_cross_entropy_gradient,
};

/// The smallest norm a feature is divided by.
const NORM_FLOOR: f64 = 1e-7;

/// Prototypes and their bias.
#[derive(Clone, Debug)]
pub struct SinkhornClustering {
    prototypes: Tensor,   // [prototypes, dim]
    bias: Option<Tensor>, // [prototypes]
    settings: ClusteringSettings,
}

/// What a batch of teacher features gives.
#[derive(Debug)]
pub struct Assigned {
    /// Assignments of the predicted patches, in their order. No gradient.  [predicted, prototypes]
    pub targets: Tensor,
    /// The clustering loss: mean over *all* tokens of the batch.
    pub loss: f64,
    /// Its gradients; they reach the prototypes and the bias only.
    pub gradients: Gradients,
}

impl SinkhornClustering {
    /// Prototypes for features of width `dim` in `scope` (`weight`, `bias`).
    ///
    /// # Errors
    /// A name exists already.
    pub fn new(scope: &mut Scope<'_>, settings: &ClusteringSettings, dim: usize) -> Result<Self> {
        let k = settings.prototypes;
        let prototypes = scope.trained("weight", &[k, dim], &Init::Normal { std: 1.0 }, Factors::ONE)?;
        let bias = match settings.bias {
            // Decayed like the prototypes: the public code leaves the library default on both.
            true => Some(scope.trained("bias", &[k], &Init::Constant(0.0), Factors::ONE)?),
            false => None,
        };
        Ok(Self { prototypes, bias, settings: settings.clone() })
    }

    /// The settings it was made with.
    #[must_use]
    pub fn settings(&self) -> &ClusteringSettings {
        &self.settings
    }

    /// Scores of all tokens, the position leading, before any temperature.  [batch, patches, dim] -> [patches, batch, prototypes]
    ///
    /// # Errors
    /// No tokens, another width or dtype.
    pub fn scores(&self, features: &Tensor) -> Result<Tensor> {
        self.score(&normalize(&by_position(features)?)?)
    }

    /// Assignments of all tokens at once (a whole batch of scores: small batches, tests, pictures).
    /// [batch, patches, dim] -> [patches, batch, prototypes]
    ///
    /// # Errors
    /// No tokens, another width or dtype.
    pub fn assignments(&self, features: &Tensor) -> Result<Tensor> {
        let scores = self.scores(features)?.detach();
        let (patches, batch, k) = scores.dims3()?;
        let samples = self.settings.samples(batch, patches);
        let grouped = scores.reshape((patches * batch / samples, samples, k))?;
        let assigned = sinkhorn(&grouped, self.settings.target_temp, self.settings.iterations)?;
        Ok(assigned.reshape((patches, batch, k))?)
    }

    /// Targets at the flat indices `predict`, and the clustering loss with its gradients. Goes over chunks of positions,
    /// forward and backward, so that the scores of one chunk exist at a time.  features: [batch, patches, dim]
    ///
    /// # Errors
    /// No tokens, another width or dtype, or an index out of range.
    pub fn assign(&self, features: &Tensor, predict: &[u32]) -> Result<Assigned> {
        self.assign_in_chunks(features, predict, CHUNK_SCORES)
    }

    fn assign_in_chunks(&self, features: &Tensor, predict: &[u32], at_a_time: usize) -> Result<Assigned> {
        let tokens = normalize(&by_position(features)?)?; // [patches, batch, dim]
        let (mut loss, mut gradients, fixed) = (0.0, Gradients::default(), self.detach());
        // The backward pass by hand: a graph would hold, and add up, tensors as large as the scores and the prototypes.
        let learn = |chunk: Chunk| -> Result<()> {
            let Chunk { tokens, scores, assignments, share } = chunk;
            let (part, slopes) = soft_cross_entropy_gradient(&scores, &assignments, self.settings.pred_temp, share)?;
            loss += share * part;
            gradients.add_linear(&self.prototypes, self.bias.as_ref(), &slopes, &tokens)
        };
        let targets = walk(&tokens, predict, &self.settings, at_a_time, |tokens| fixed.score(tokens), learn)?;
        Ok(Assigned { targets, loss, gradients })
    }

    /// The prototype with the highest score for every patch.  [batch, patches, dim] -> [batch, patches] u32
    ///
    /// # Errors
    /// Another width or dtype.
    pub fn clusters(&self, patches: &Tensor) -> Result<Tensor> {
        let (batch, count, _) = patches.dims3()?;
        let image = |index: usize| -> Result<Tensor> {
            let tokens = normalize(&patches.narrow(0, index, 1)?.detach())?;
            Ok(self.score(&tokens)?.detach().argmax(D::Minus1)?) // [1, patches]
        };
        let each = (0..batch).map(image).collect::<Result<Vec<_>>>()?;
        Ok(Tensor::cat(&each, 0)?.reshape((batch, count))?)
    }

    /// The same prototypes on the same storage, recording no graph.
    #[must_use]
    pub fn detach(&self) -> Self {
        let bias = self.bias.as_ref().map(Tensor::detach);
        Self { prototypes: self.prototypes.detach(), bias, settings: self.settings.clone() }
    }

    /// tokens: [.., dim], unit length -> [.., prototypes]
    fn score(&self, tokens: &Tensor) -> Result<Tensor> {
        linear(tokens, &self.prototypes, self.bias.as_ref())
    }
}

fn normalize(tokens: &Tensor) -> Result<Tensor> {
    l2_normalize(tokens, NORM_FLOOR)
}

#[cfg(test)]
mod tests {
    use super::SinkhornClustering;
    use crate::walk::{by_position, walk};
    use crate::{ClusteringConfig, SinkhornKind, balanced_targets};
    use candle_core::{DType, Device, Tensor};
    use occlude_kernels::check::sample;
    use occlude_kernels::{ParamStore, backward, soft_cross_entropy};
    use occlude_random::Streams;

    const PREDICT: [u32; 6] = [4, 0, 9, 5, 14, 12]; // three images of five patches

    fn clustering(sinkhorn: SinkhornKind) -> (ParamStore, SinkhornClustering) {
        let config = ClusteringConfig { prototypes: 6, sinkhorn, ..ClusteringConfig::default() };
        let mut store = ParamStore::trainable(Streams::new(2), DType::F64, &Device::Cpu);
        let clustering = SinkhornClustering::new(&mut store.root(), &config.check().unwrap(), 4).unwrap();
        (store, clustering)
    }

    fn features() -> Tensor {
        sample(5, (3, 5, 4)).unwrap() // [batch, patches, dim]
    }

    fn rows(x: &Tensor) -> Vec<Vec<f64>> {
        x.to_vec2().unwrap()
    }

    fn assert_near(got: &Tensor, expected: &Tensor) {
        assert_eq!(got.dims(), expected.dims());
        // A sum, since the largest of candle's passes over NaN.
        let apart = (got - expected).unwrap().abs().unwrap().sum_all().unwrap();
        assert!(apart.to_scalar::<f64>().unwrap() < 1e-12, "{got} against {expected}");
    }

    #[test]
    fn chunks_give_what_the_whole_batch_gives() {
        for kind in [SinkhornKind::Positionwise, SinkhornKind::Standard] {
            let (store, clustering) = clustering(kind);
            // The whole batch by the book: scores, assignments and loss of all tokens in one graph.
            let scores = clustering.scores(&features()).unwrap().reshape((15, 6)).unwrap();
            let assignments = clustering.assignments(&features()).unwrap();
            let flat = assignments.reshape((15, 6)).unwrap();
            let loss = soft_cross_entropy(&scores, &flat, clustering.settings().pred_temp).unwrap();
            let gradients = backward(&loss).unwrap();
            for at_a_time in [1, 36, 40, 1000] {
                let assigned = clustering.assign_in_chunks(&features(), &PREDICT, at_a_time).unwrap();
                assert!((assigned.loss - loss.to_scalar::<f64>().unwrap()).abs() < 1e-12);
                for name in ["weight", "bias"] {
                    let tensor = store.get(name).unwrap();
                    assert_near(assigned.gradients.get(tensor).unwrap(), gradients.get(tensor).unwrap());
                }
                let whole = assignments.transpose(0, 1).unwrap().reshape((15, 6)).unwrap(); // [batch * patches, k]
                let wanted: Vec<Vec<f64>> = PREDICT.iter().map(|at| rows(&whole)[*at as usize].clone()).collect();
                assert_near(&assigned.targets, &Tensor::new(wanted, &Device::Cpu).unwrap());
            }
        }
    }

    #[test]
    fn one_chunk_of_scores_exists_at_a_time() {
        let (_, clustering) = clustering(SinkhornKind::Positionwise);
        let tokens = by_position(&features()).unwrap();
        let mut sizes = Vec::new();
        let score = |tokens: &Tensor| clustering.score(tokens);
        let visit = |chunk: super::Chunk| {
            sizes.push(chunk.scores.elem_count());
            Ok(())
        };
        walk(&tokens, &PREDICT, clustering.settings(), 2 * 3 * 6, score, visit).unwrap();
        assert_eq!(sizes, [36, 36, 18], "two positions of three images and six prototypes, then the last");
    }

    #[test]
    fn balanced_targets_use_the_given_scores() {
        let (_, clustering) = clustering(SinkhornKind::Positionwise);
        let expected = clustering.assign(&features(), &PREDICT).unwrap().targets;
        let score = |tokens: &Tensor| clustering.score(&super::normalize(tokens)?);
        let got = balanced_targets(&features(), &PREDICT, clustering.settings(), score).unwrap();
        assert_near(&got, &expected);
        assert!(!got.track_op());
    }

    #[test]
    fn clusters_are_the_nearest_by_score() {
        let (_, clustering) = clustering(SinkhornKind::Positionwise);
        let got = clustering.clusters(&features()).unwrap().to_vec2::<u32>().unwrap();
        let scores = clustering.scores(&features()).unwrap().to_vec3::<f64>().unwrap(); // [patches, batch, k]
        for (image, patch) in (0..3).flat_map(|i| (0..5).map(move |p| (i, p))) {
            let of = &scores[patch][image];
            assert!(of.iter().all(|score| *score <= of[got[image][patch] as usize]));
        }
    }

    #[test]
    fn an_empty_batch_is_refused() {
        for kind in [SinkhornKind::Positionwise, SinkhornKind::Standard] {
            let (_, clustering) = clustering(kind);
            for shape in [(0, 5, 4), (3, 0, 4)] {
                let nothing = Tensor::zeros(shape, DType::F64, &Device::Cpu).unwrap();
                assert!(clustering.assignments(&nothing).unwrap_err().to_string().contains("at least one image"));
                assert!(clustering.assign(&nothing, &[]).unwrap_err().to_string().contains("at least one image"));
            }
        }
    }

    #[test]
    fn patches_outside_the_batch_are_refused() {
        let (_, clustering) = clustering(SinkhornKind::Positionwise);
        assert!(clustering.assign(&features(), &[15]).unwrap_err().to_string().contains("patch 15"));
    }
}
