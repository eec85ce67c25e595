//! Layer norms.

use candle_core::{Module, Result, Tensor};
use candle_nn::VarBuilder;

use crate::models::ops::{self, Activation};

/// Layer norm over the last dimension (`nn.LayerNorm`).
#[derive(Debug, Clone)]
pub struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    eps: f64,
}

impl LayerNorm {
    /// Layer norm with an activation.
    pub fn forward_activated(&self, xs: &Tensor, activation: Activation) -> Result<Tensor> {
        ops::layer_norm(xs, &self.weight, &self.bias, self.eps, activation)
    }

    /// `[C]`: the norm of a zero row, which is the bias.
    pub fn of_zeros(&self) -> &Tensor {
        &self.bias
    }
}

impl Module for LayerNorm {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        self.forward_activated(xs, Activation::None)
    }
}

/// Loads a [`LayerNorm`]'s `weight` and `bias` of length `size`.
pub fn layer_norm(size: usize, eps: f64, vb: VarBuilder) -> Result<LayerNorm> {
    Ok(LayerNorm {
        weight: vb.get(size, "weight")?,
        bias: vb.get(size, "bias")?,
        eps,
    })
}

/// Layer norm over the channels of a `[B, C, H, W]` map (`SamLayerNorm`, channels first).
#[derive(Debug, Clone)]
pub struct LayerNorm2d(LayerNorm);

impl LayerNorm2d {
    /// Loads `weight` and `bias` of length `channels`.
    pub fn load(channels: usize, eps: f64, vb: VarBuilder) -> Result<Self> {
        Ok(Self(layer_norm(channels, eps, vb)?))
    }

    /// `[B, C, H, W]` to the same shape.
    pub fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let channels_last = xs.permute((0, 2, 3, 1))?.contiguous()?;
        self.0
            .forward(&channels_last)?
            .permute((0, 3, 1, 2))?
            .contiguous()
    }
}
