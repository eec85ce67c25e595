//! Multilayer perceptrons, the feed-forward networks of transformer blocks included.

use candle_core::{Module, Result, Tensor};
use candle_nn::VarBuilder;

use super::{Linear, linear};
use crate::models::ops::{self, Activation};

/// Linear layers with an activation between them (`GroundingDinoMLPPredictionHead`, `SamFeedForward`, and the
/// feed-forward part of every transformer block).
#[derive(Debug, Clone)]
pub struct Mlp {
    layers: Vec<Linear>,
    activation: candle_nn::Activation,
}

impl Mlp {
    /// Combines loaded layers, the first one first.
    pub fn new(layers: Vec<Linear>, activation: candle_nn::Activation) -> Self {
        Self { layers, activation }
    }

    /// Loads `layers.{i}`, with ReLU between them; `sizes` are the widths from the input to the output.
    ///
    /// # Errors
    /// If a tensor is missing or has another shape.
    pub fn load(sizes: &[usize], vb: VarBuilder) -> Result<Self> {
        let vb = vb.pp("layers");
        let layers = sizes
            .windows(2)
            .enumerate()
            .map(|(i, pair)| linear(pair[0], pair[1], vb.pp(i)))
            .collect::<Result<_>>()?;
        Ok(Self::new(layers, candle_nn::Activation::Relu))
    }

    /// `[..., input]` to `[..., output]`, layer by layer.
    pub fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        match self.layers.split_last() {
            Some((last, hidden)) => last.forward(&self.forward_hidden(hidden, xs)?),
            None => Ok(xs.clone()),
        }
    }

    /// `[..., input]` to `[..., output]`, plus `residual` of that shape. Two layers run as one operation, which does not
    /// store the whole hidden tensor.
    ///
    /// # Errors
    /// If there are no layers, or the shapes do not fit each other.
    pub fn forward_added(&self, xs: &Tensor, residual: &Tensor) -> Result<Tensor> {
        if let ([first, second], Some(activation)) = (&*self.layers, fused(self.activation)) {
            return ops::feed_forward(
                xs,
                (&first.weight, first.bias.as_ref()),
                activation,
                (&second.weight, second.bias.as_ref()),
                Some(residual),
            );
        }
        match self.layers.split_last() {
            Some((last, hidden)) => last.forward_added(&self.forward_hidden(hidden, xs)?, residual),
            None => candle_core::bail!("a multilayer perceptron has no layers"),
        }
    }

    /// The output of the layers before the last one, with their activations.
    fn forward_hidden(&self, layers: &[Linear], xs: &Tensor) -> Result<Tensor> {
        let mut xs = xs.clone();
        for layer in layers {
            xs = match fused(self.activation) {
                Some(activation) => layer.forward_activated(&xs, activation)?,
                None => xs.apply(layer)?.apply(&self.activation)?,
            };
        }
        Ok(xs)
    }
}

/// The activation if the operations can fuse it, else `None`.
fn fused(activation: candle_nn::Activation) -> Option<Activation> {
    match activation {
        candle_nn::Activation::Gelu => Some(Activation::Gelu),
        candle_nn::Activation::NewGelu | candle_nn::Activation::GeluPytorchTanh => {
            Some(Activation::GeluTanh)
        }
        candle_nn::Activation::Relu => Some(Activation::Relu),
        _ => None,
    }
}
