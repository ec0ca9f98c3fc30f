//! The attentive probe on frozen tokens (CAPI, classification probes): one learned query a head looks at all tokens,
//! then a linear layer.
//!
//! A part to build with: no command runs it. Its values, gradients and first step are those of the reference.

use crate::Result;
use candle_core::{Device, Tensor};
use occlude_kernels::{Error, Factors, Gradients, Init, ParamStore, backward, linear, soft_cross_entropy, softmax};
use occlude_random::Streams;

/// Width of a head.
const HEAD: usize = 64;

/// A trainable attentive probe; its parameters carry the names of the reference.
#[derive(Debug)]
pub struct AttentiveProbe {
    params: ParamStore,
    query: Tensor,
    kv_weight: Tensor,
    kv_bias: Tensor,
    weight: Tensor,
    bias: Tensor,
    classes: usize,
}

impl AttentiveProbe {
    /// A fresh probe: query and weights truncated normal with deviation 0.02, biases 0.
    ///
    /// # Errors
    /// `dim` is not a multiple of 64.
    pub fn new(classes: usize, dim: usize, streams: Streams) -> Result<Self> {
        if dim == 0 || !dim.is_multiple_of(HEAD) {
            let message = format!("feature width {dim}: must be a multiple of {HEAD}");
            return Err(Error::argument("attentive probe", message).into());
        }
        let mut params = ParamStore::trainable(streams, candle_core::DType::F32, &Device::Cpu);
        let draw = Init::TruncatedNormal { std: 0.02, bound: 2.0 };
        let zeros = Init::Constant(0.0);
        let mut root = params.root();
        let query = root.trained("query_token", &[dim], &draw, Factors::ONE)?;
        let kv_weight = root.trained("kv.weight", &[2 * dim, dim], &draw, Factors::ONE)?;
        let kv_bias = root.trained("kv.bias", &[2 * dim], &zeros, Factors::NO_DECAY)?;
        let weight = root.trained("linear.weight", &[classes, dim], &draw, Factors::ONE)?;
        let bias = root.trained("linear.bias", &[classes], &zeros, Factors::NO_DECAY)?;
        Ok(Self { params, query, kv_weight, kv_bias, weight, bias, classes })
    }

    /// The parameters by name, for an optimizer.
    #[must_use]
    pub fn params(&self) -> &ParamStore {
        &self.params
    }

    /// tokens: [batch, tokens, dim]  ->  logits [batch, classes]
    ///
    /// # Errors
    /// Another width.
    pub fn forward(&self, tokens: &Tensor) -> Result<Tensor> {
        let (batch, count, dim) = tokens.dims3()?;
        let heads = dim / HEAD;
        let kv = linear(tokens, &self.kv_weight, Some(&self.kv_bias))?; // [batch, tokens, 2 * dim]
        let split = |half: usize| -> Result<Tensor> {
            let part = kv.narrow(2, half * dim, dim)?.reshape((batch, count, heads, HEAD))?;
            Ok(part.transpose(1, 2)?.contiguous()?) // [batch, heads, tokens, HEAD]
        };
        let (keys, values) = (split(0)?, split(1)?);
        let query = self.query.reshape((1, heads, HEAD, 1))?.broadcast_as((batch, heads, HEAD, 1))?.contiguous()?;
        let scores = (keys.matmul(&query)?.squeeze(3)? / (HEAD as f64).sqrt())?; // [batch, heads, tokens]
        let weights = softmax(&scores)?.unsqueeze(2)?; // [batch, heads, 1, tokens]
        let pooled = weights.matmul(&values)?.reshape((batch, dim))?; // [batch, dim]
        Ok(linear(&pooled, &self.weight, Some(&self.bias))?)
    }

    /// Mean cross-entropy and its gradients.  tokens: [batch, tokens, dim]
    ///
    /// # Errors
    /// Another width, another number of labels than images, or a label that is no class.
    pub fn loss(&self, tokens: &Tensor, labels: &[u32]) -> Result<(f64, Gradients)> {
        let mut targets = vec![0.0_f32; labels.len() * self.classes];
        for (row, &label) in targets.chunks_exact_mut(self.classes).zip(labels) {
            let message = || format!("label {label}: there are {} classes", self.classes);
            *row.get_mut(label as usize).ok_or_else(|| Error::argument("attentive probe", message()))? = 1.0;
        }
        let targets = Tensor::from_vec(targets, (labels.len(), self.classes), &Device::Cpu)?; // [batch, classes]
        let loss = soft_cross_entropy(&self.forward(tokens)?, &targets, 1.0)?;
        let gradients = backward(&loss)?;
        Ok((f64::from(loss.to_scalar::<f32>()?), gradients))
    }
}

#[cfg(test)]
mod tests {
    use super::AttentiveProbe;
    use candle_core::{DType, Tensor};
    use occlude_golden::assert_close;
    use occlude_kernels::{AdamWStep, Role, StateDict, adamw_step};
    use occlude_random::Streams;

    #[test]
    fn golden_capi_attentive_probe() {
        let Some(tensors) = occlude_golden::set("capi").tensors("probes") else { return };
        let reference = |name: &str| &tensors[&format!("attention.{name}")];
        let (classes, dim) = reference("linear.weight").dims2().unwrap();
        let probe = AttentiveProbe::new(classes, dim, Streams::new(0)).unwrap();
        let names: Vec<String> = probe.params().params().iter().map(|param| param.name.clone()).collect();
        let state: StateDict = names.iter().map(|name| (name.clone(), reference(name).clone())).collect();
        probe.params().load(&state).unwrap();

        let tokens = reference("features");
        assert_close("logits", &probe.forward(tokens).unwrap(), reference("logits"), 2e-5);
        let labels = reference("labels").to_dtype(DType::U32).unwrap().to_vec1().unwrap();
        let (loss, gradients) = probe.loss(tokens, &labels).unwrap();
        let expected = f64::from(reference("loss").to_scalar::<f32>().unwrap());
        assert!((loss - expected).abs() <= 2e-6 * expected, "{loss} against {expected}");
        for param in probe.params().params() {
            let gradient = gradients.get(&param.tensor).unwrap();
            assert_close(&param.name, gradient, reference(&format!("grad.{}", param.name)), 5e-5);
            let Role::Trained(factors) = param.role else { panic!("{} is not trained", param.name) };
            let moment = || Tensor::zeros(param.tensor.dims(), DType::F32, param.tensor.device()).unwrap();
            let settings = AdamWStep {
                lr: 1e-2,
                weight_decay: 0.05 * factors.wd,
                beta1: 0.9,
                beta2: 0.95,
                eps: 1e-8,
                step: 1,
                grad_scale: 1.0,
                ema_momentum: None,
            };
            // The gradient of the keys' bias is zero but for rounding (softmax ignores a shift): feed the reference's.
            let given = reference(&format!("grad.{}", param.name));
            adamw_step(&param.tensor, given, &moment(), &moment(), None, &settings).unwrap();
            let after = reference(&format!("after1.{}", param.name));
            let worst = (param.tensor.detach() - after).unwrap().abs().unwrap().max_all().unwrap();
            assert!(worst.to_scalar::<f32>().unwrap() <= 1e-6, "{} after a step", param.name);
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        assert!(AttentiveProbe::new(3, 100, Streams::new(0)).unwrap_err().to_string().contains("multiple of 64"));
        let probe = AttentiveProbe::new(3, 64, Streams::new(0)).unwrap();
        let tokens = Tensor::zeros((2, 5, 64), DType::F32, &candle_core::Device::Cpu).unwrap();
        assert!(probe.loss(&tokens, &[0, 3]).unwrap_err().to_string().contains("label 3"));
        assert!(probe.loss(&tokens, &[0]).is_err());
        assert_eq!(probe.forward(&tokens).unwrap().dims(), [2, 3]);
    }
}
