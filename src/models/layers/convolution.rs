//! Convolutions whose stride equals their kernel size.

use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;

use super::Linear;
use crate::models::ops::{self, Activation};

/// A convolution whose stride equals its kernel size, computed as one matrix product over the patches.
#[derive(Debug, Clone)]
pub struct PatchEmbedding {
    projection: Linear,
    channels: usize,
    patch: usize,
}

impl PatchEmbedding {
    /// Loads a `[hidden, channels, patch, patch]` kernel and its bias.
    pub fn load(channels: usize, hidden: usize, patch: usize, vb: VarBuilder) -> Result<Self> {
        let weight = vb.get((hidden, channels, patch, patch), "weight")?;
        let weight = weight.reshape((hidden, channels * patch * patch))?;
        let bias = vb.get(hidden, "bias")?;
        Ok(Self {
            projection: Linear::new(weight, Some(bias))?,
            channels,
            patch,
        })
    }

    /// Pixels `[B, C, H, W]` to patches `[B, ceil(H / p), ceil(W / p), hidden]`. A size that is not a multiple of the
    /// patch size is padded with zeros at the bottom and the right.
    pub fn forward(&self, pixel_values: &Tensor) -> Result<Tensor> {
        let (p, c) = (self.patch, self.channels);
        let (batch, _, height, width) = pixel_values.dims4()?;
        let (rows, columns) = (height.div_ceil(p), width.div_ceil(p));
        pixel_values
            .pad_with_zeros(2, 0, rows * p - height)?
            .pad_with_zeros(3, 0, columns * p - width)?
            .reshape((batch, c, rows, p, columns, p))?
            .permute((0, 2, 4, 1, 3, 5))?
            .reshape((batch, rows, columns, c * p * p))?
            .apply(&self.projection)
    }
}

/// A transposed convolution with kernel size 2 and stride 2: every pixel becomes a 2x2 block.
#[derive(Debug, Clone)]
pub struct Upscale2x(ops::Upscale2x);

impl Upscale2x {
    /// Loads a `[input, output, 2, 2]` kernel and its bias.
    pub fn load(input: usize, output: usize, vb: VarBuilder) -> Result<Self> {
        let kernel = vb.get((input, output, 2, 2), "weight")?;
        let bias = vb.get(output, "bias")?;
        Ok(Self(ops::Upscale2x::new(&kernel, &bias)?))
    }

    /// `[B, H, W, input]` to `[B, 2 H, 2 W, output]` with an activation, channels last.
    pub fn forward(&self, xs: &Tensor, activation: Activation) -> Result<Tensor> {
        ops::upscale2x(xs, &self.0, None, activation)
    }

    /// The activation of the upscaled map plus `addend`, which has the result's shape, or the shape of one image and is
    /// added to all images.
    pub fn forward_added(
        &self,
        xs: &Tensor,
        addend: &Tensor,
        activation: Activation,
    ) -> Result<Tensor> {
        ops::upscale2x(xs, &self.0, Some(addend), activation)
    }
}
