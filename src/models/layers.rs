//! Layers that several models share.

use candle_core::{D, Module, Result, Tensor};
use candle_nn::{Linear, VarBuilder};

use super::ops;

/// Layer norm over the last dimension (`nn.LayerNorm`).
#[derive(Debug, Clone)]
pub struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    eps: f64,
}

impl Module for LayerNorm {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        ops::layer_norm(xs, &self.weight, &self.bias, self.eps)
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

/// A convolution whose stride equals its kernel, computed as one matrix product over the patches.
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
            projection: Linear::new(weight, Some(bias)),
            channels,
            patch,
        })
    }

    /// Pixels `[B, C, H, W]` to patches `[B, ceil(H / p), ceil(W / p), hidden]`; a size that the patch
    /// does not divide is padded with zeros at the bottom and the right.
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

/// A transposed convolution with kernel 2 and stride 2: every pixel becomes a 2x2 block.
#[derive(Debug, Clone)]
pub struct Upscale2x {
    projection: Linear,
    channels: usize,
}

impl Upscale2x {
    /// Loads a `[input, output, 2, 2]` kernel and its bias.
    pub fn load(input: usize, output: usize, vb: VarBuilder) -> Result<Self> {
        let weight = vb.get((input, output, 2, 2), "weight")?;
        // [in, out, 2, 2] -> [2 * 2 * out, in]: the rows of one output pixel's block side by side
        let weight = weight
            .permute((2, 3, 1, 0))?
            .reshape((4 * output, input))?
            .contiguous()?;
        let bias = vb.get(output, "bias")?.repeat(4)?;
        Ok(Self {
            projection: Linear::new(weight, Some(bias)),
            channels: output,
        })
    }

    /// `[B, H, W, input]` to `[B, 2 H, 2 W, output]`, channels last.
    pub fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let (batch, height, width, _) = xs.dims4()?;
        let c = self.channels;
        xs.apply(&self.projection)?
            .reshape((batch, height, width, 2, 2, c))?
            .permute((0, 1, 3, 2, 4, 5))?
            .reshape((batch, 2 * height, 2 * width, c))
    }
}

/// Linear layers with ReLU between them (`GroundingDinoMLPPredictionHead`).
#[derive(Debug, Clone)]
pub struct Mlp(Vec<Linear>);

impl Mlp {
    /// `sizes` are the widths from the input to the output; tensors are `layers.{i}`.
    pub fn load(sizes: &[usize], vb: VarBuilder) -> Result<Self> {
        let vb = vb.pp("layers");
        let layers = sizes
            .windows(2)
            .enumerate()
            .map(|(i, pair)| candle_nn::linear(pair[0], pair[1], vb.pp(i)))
            .collect::<Result<_>>()?;
        Ok(Self(layers))
    }

    /// `[..., input]` to `[..., output]`.
    pub fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let mut xs = xs.clone();
        for (i, layer) in self.0.iter().enumerate() {
            xs = xs.apply(layer)?;
            if i + 1 < self.0.len() {
                xs = xs.relu()?;
            }
        }
        Ok(xs)
    }
}

/// `[B, N, heads * D]` to `[B, heads, N, D]`.
pub fn split_heads(xs: &Tensor, heads: usize) -> Result<Tensor> {
    let (batch, tokens, width) = xs.dims3()?;
    xs.reshape((batch, tokens, heads, width / heads))?
        .transpose(1, 2)?
        .contiguous()
}

/// `[B, heads, N, D]` to `[B, N, heads * D]`.
pub fn merge_heads(xs: &Tensor) -> Result<Tensor> {
    let (batch, heads, tokens, width) = xs.dims4()?;
    xs.transpose(1, 2)?.reshape((batch, tokens, heads * width))
}

/// Scaled dot-product attention over `[B, heads, N, D]`; `bias` broadcasts to `[B, heads, N, M]`.
pub fn attention(
    query: &Tensor,
    key: &Tensor,
    value: &Tensor,
    bias: Option<&Tensor>,
) -> Result<Tensor> {
    let scale = 1.0 / (query.dim(D::Minus1)? as f64).sqrt();
    let scores = (query * scale)?.matmul(&key.transpose(2, 3)?)?;
    let scores = match bias {
        Some(bias) => scores.broadcast_add(bias)?,
        None => scores,
    };
    candle_nn::ops::softmax_last_dim(&scores)?.matmul(value)
}

/// Query, key and value projections, attention, and the output projection
/// (`GroundingDinoMultiheadAttention`, `SamAttention`, and BERT's and Swin's self-attention).
#[derive(Debug, Clone)]
pub struct MultiheadAttention {
    query: Linear,
    key: Linear,
    value: Linear,
    output: Linear,
    heads: usize,
}

impl MultiheadAttention {
    /// Puts together loaded projections; `heads` divides the width of the first three.
    pub fn new(query: Linear, key: Linear, value: Linear, output: Linear, heads: usize) -> Self {
        Self {
            query,
            key,
            value,
            output,
            heads,
        }
    }

    /// Queries `[B, N, C]`, keys and values `[B, M, C]`, `bias` broadcasting to `[B, heads, N, M]`;
    /// to `[B, N, C]`.
    pub fn forward(
        &self,
        queries: &Tensor,
        keys: &Tensor,
        values: &Tensor,
        bias: Option<&Tensor>,
    ) -> Result<Tensor> {
        let query = split_heads(&queries.apply(&self.query)?, self.heads)?;
        let key = split_heads(&keys.apply(&self.key)?, self.heads)?;
        let value = split_heads(&values.apply(&self.value)?, self.heads)?;
        merge_heads(&attention(&query, &key, &value, bias)?)?.apply(&self.output)
    }
}
