//! Heads: from a prediction to scores over prototypes, or to a feature.

use crate::{HeadKind, HeadSettings};
use candle_core::Tensor;
use occlude_kernels::{Factors, Init, Result, Scope, gelu, l2_normalize, linear, weight_norm};
use occlude_vit::linear_weight;

/// Added to nothing but a norm of zero: the smallest norm a prediction is divided by.
const NORM_FLOOR: f64 = 1e-12;
/// Added to the length of a direction before dividing by it.
const WEIGHT_FLOOR: f64 = 1e-8;

/// Cosines between predictions and prototypes, each prototype times a trained gain (starts at 1).
#[derive(Clone, Debug)]
pub struct ClusterHead {
    gain: Tensor,      // [prototypes, 1]
    direction: Tensor, // [prototypes, dim]
}

impl ClusterHead {
    /// A head from width `dim` to `prototypes` scores (`last_layer.weight_g`, `last_layer.weight_v`).
    ///
    /// # Errors
    /// A name exists already.
    pub fn new(scope: &mut Scope<'_>, dim: usize, prototypes: usize) -> Result<Self> {
        let mut last = scope.sub("last_layer");
        let gain = last.trained("weight_g", &[prototypes, 1], &Init::Constant(1.0), Factors::ONE)?;
        let init = Init::TruncatedNormal { std: 0.02, bound: 2.0 };
        Ok(Self { gain, direction: last.trained("weight_v", &[prototypes, dim], &init, Factors::ONE)? })
    }

    /// x: [rows, dim] -> [rows, prototypes]. The temperature belongs to the loss.
    ///
    /// # Errors
    /// Another width or dtype.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let weight = weight_norm(&self.direction, &self.gain, WEIGHT_FLOOR)?;
        linear(&l2_normalize(x, NORM_FLOOR)?, &weight, None)
    }

    fn detach(&self) -> Self {
        Self { gain: self.gain.detach(), direction: self.direction.detach() }
    }
}

/// What a head maps between.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadShape {
    /// Width of the predictions.
    pub input: usize,
    /// Width of a target feature (identity head).
    pub feature: usize,
    /// Prototypes (the other heads).
    pub prototypes: usize,
}

/// The head of a student, or its average.
#[derive(Clone, Debug)]
pub enum Head {
    /// Scores over prototypes.
    Linear(ClusterHead),
    /// Three bias-free linears with GELU between them, then scores over prototypes (CAPI's ablation; the layout
    /// `mlp.{0,2,4}` is that of DINO heads, the absence of biases that of CAPI's other heads).
    Mlp {
        /// [hidden, input], [hidden, hidden], [bottleneck, hidden]
        layers: [Tensor; 3],
        /// On the bottleneck.
        last: ClusterHead,
    },
    /// The prediction itself.
    Identity,
    /// One linear to the width of the targets.  [feature, input]
    Projection(Tensor),
}

impl Head {
    /// The head of these settings in `scope`.
    ///
    /// # Errors
    /// A name exists already.
    pub fn new(scope: &mut Scope<'_>, settings: &HeadSettings, shape: HeadShape) -> Result<Self> {
        let HeadShape { input, feature, prototypes } = shape;
        match settings.kind {
            HeadKind::Linear => Ok(Self::Linear(ClusterHead::new(scope, input, prototypes)?)),
            HeadKind::Identity if input == feature => Ok(Self::Identity),
            HeadKind::Identity => Ok(Self::Projection(linear_weight(scope, "proj", feature, input)?)),
            HeadKind::Mlp => {
                let (hidden, bottleneck) = (settings.hidden, settings.bottleneck);
                let mut mlp = scope.sub("mlp");
                let mut layer = |name: usize, outputs: usize, inputs: usize| {
                    let init = Init::TruncatedNormal { std: 0.02, bound: 2.0 };
                    mlp.sub(name).trained("weight", &[outputs, inputs], &init, Factors::ONE)
                };
                let layers = [layer(0, hidden, input)?, layer(2, hidden, hidden)?, layer(4, bottleneck, hidden)?];
                Ok(Self::Mlp { layers, last: ClusterHead::new(scope, bottleneck, prototypes)? })
            }
        }
    }

    /// x: [rows, input] -> [rows, prototypes], or [rows, feature] for an identity head
    ///
    /// # Errors
    /// Another width or dtype.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Linear(head) => head.forward(x),
            Self::Identity => Ok(x.clone()),
            Self::Projection(weight) => linear(x, weight, None),
            Self::Mlp { layers: [first, second, third], last } => {
                let x = gelu(&linear(x, first, None)?)?; // [rows, hidden]
                let x = gelu(&linear(&x, second, None)?)?; // [rows, hidden]
                last.forward(&linear(&x, third, None)?)
            }
        }
    }

    /// The same head on the same storage, recording no graph.
    #[must_use]
    pub fn detach(&self) -> Self {
        match self {
            Self::Linear(head) => Self::Linear(head.detach()),
            Self::Identity => Self::Identity,
            Self::Projection(weight) => Self::Projection(weight.detach()),
            Self::Mlp { layers, last } => {
                Self::Mlp { layers: layers.each_ref().map(Tensor::detach), last: last.detach() }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Head, HeadShape};
    use crate::{HeadConfig, HeadKind};
    use candle_core::{DType, Device};
    use occlude_kernels::check::sample;
    use occlude_kernels::{ParamStore, assign};
    use occlude_random::Streams;

    const SHAPE: HeadShape = HeadShape { input: 6, feature: 6, prototypes: 5 };

    fn head(kind: HeadKind, shape: HeadShape) -> (ParamStore, Head) {
        let settings = HeadConfig { hidden: 7, bottleneck: 3, kind: None }.check(kind).unwrap();
        let mut store = ParamStore::trainable(Streams::new(4), DType::F64, &Device::Cpu);
        let head = Head::new(&mut store.root(), &settings, shape).unwrap();
        (store, head)
    }

    #[test]
    fn scores_are_gains_times_cosines() {
        let (store, head) = head(HeadKind::Linear, SHAPE);
        let gain = store.get("last_layer.weight_g").unwrap();
        assign(gain, &sample(3, (5, 1)).unwrap()).unwrap();
        let x = sample(2, (4, 6)).unwrap();
        let scores = head.forward(&x).unwrap().to_vec2::<f64>().unwrap();
        let direction = store.get("last_layer.weight_v").unwrap().to_vec2::<f64>().unwrap();
        let (x, gain) = (x.to_vec2::<f64>().unwrap(), gain.to_vec2::<f64>().unwrap());
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        for (row, prototype) in (0..4).flat_map(|r| (0..5).map(move |p| (r, p))) {
            let (u, v) = (&x[row], &direction[prototype]);
            let cosine = dot(u, v) / (dot(u, u) * dot(v, v)).sqrt();
            assert!((scores[row][prototype] - gain[prototype][0] * cosine).abs() < 1e-6);
        }
    }

    #[test]
    fn names_and_widths() {
        let names = |store: &ParamStore| store.params().iter().map(|p| p.name.clone()).collect::<Vec<_>>();
        let x = sample(2, (4, 6)).unwrap();
        let (store, mlp) = head(HeadKind::Mlp, SHAPE);
        let expected = ["mlp.0.weight", "mlp.2.weight", "mlp.4.weight", "last_layer.weight_g", "last_layer.weight_v"];
        assert_eq!(names(&store), expected);
        assert_eq!(mlp.forward(&x).unwrap().dims(), [4, 5]);
        let (store, same) = head(HeadKind::Identity, SHAPE);
        assert!(names(&store).is_empty());
        assert_eq!(same.forward(&x).unwrap().to_vec2::<f64>().unwrap(), x.to_vec2::<f64>().unwrap());
        let (store, wider) = head(HeadKind::Identity, HeadShape { feature: 9, ..SHAPE });
        assert_eq!(names(&store), ["proj.weight"]);
        assert_eq!(wider.forward(&x).unwrap().dims(), [4, 9]);
    }
}
