//! Linear layers.

use candle_core::{Module, Result, Tensor};
use candle_nn::VarBuilder;

use crate::models::ops::{self, Activation, Matrix};

/// A linear layer (`nn.Linear`).
#[derive(Debug, Clone)]
pub struct Linear {
    pub(super) weight: Matrix,
    pub(super) bias: Option<Tensor>,
}

impl Linear {
    /// From a weight `[output, input]` and an optional bias `[output]`.
    pub fn new(weight: Tensor, bias: Option<Tensor>) -> Result<Self> {
        Ok(Self {
            weight: Matrix::new(weight)?,
            bias,
        })
    }

    /// `[..., input]` to `[..., output]`, with an activation.
    pub fn forward_activated(&self, xs: &Tensor, activation: Activation) -> Result<Tensor> {
        ops::linear(xs, &self.weight, self.bias.as_ref(), activation, None)
    }

    /// The layer's output plus `residual`, which has the same shape, or the shape of one image and is added to all
    /// images.
    pub fn forward_added(&self, xs: &Tensor, residual: &Tensor) -> Result<Tensor> {
        self.forward_added_activated(xs, residual, Activation::None)
    }

    /// The activation of the layer's output plus `residual`.
    pub fn forward_added_activated(
        &self,
        xs: &Tensor,
        residual: &Tensor,
        activation: Activation,
    ) -> Result<Tensor> {
        let bias = self.bias.as_ref();
        ops::linear(xs, &self.weight, bias, activation, Some(residual))
    }

    /// `[B, N, input]` to `[B, heads, N, output / heads]`: the outputs of each head are contiguous.
    pub fn forward_by_heads(&self, xs: &Tensor, heads: usize) -> Result<Tensor> {
        ops::linear_by_heads(xs, &self.weight, self.bias.as_ref(), heads)
    }

    /// The product with the weight, without the bias.
    pub fn without_bias(&self, xs: &Tensor) -> Result<Tensor> {
        ops::linear(xs, &self.weight, None, Activation::None, None)
    }
}

impl Module for Linear {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        self.forward_activated(xs, Activation::None)
    }
}

/// Loads a [`Linear`]'s `weight` `[output, input]` and `bias`.
pub fn linear(input: usize, output: usize, vb: VarBuilder) -> Result<Linear> {
    linear_b(input, output, true, vb)
}

/// Loads a [`Linear`] with or without a bias.
pub fn linear_b(input: usize, output: usize, has_bias: bool, vb: VarBuilder) -> Result<Linear> {
    let weight = vb.get((output, input), "weight")?;
    let bias = has_bias.then(|| vb.get(output, "bias")).transpose()?;
    Linear::new(weight, bias)
}

/// Loads several linear layers of the same input as one layer with concatenated outputs. If only some of them have a
/// bias, the others get a zero bias.
pub fn linear_concat(input: usize, layers: &[(usize, bool, VarBuilder)]) -> Result<Linear> {
    let mut weights = vec![];
    let mut biases = vec![];
    for (output, has_bias, vb) in layers {
        let weight = vb.get((*output, input), "weight")?;
        biases.push(match has_bias {
            true => vb.get(*output, "bias")?,
            false => weight.zeros_like()?.narrow(1, 0, 1)?.flatten_all()?,
        });
        weights.push(weight);
    }
    let has_bias = layers.iter().any(|(_, has_bias, _)| *has_bias);
    let bias = has_bias.then(|| Tensor::cat(&biases, 0)).transpose()?;
    Linear::new(Tensor::cat(&weights, 0)?, bias)
}
