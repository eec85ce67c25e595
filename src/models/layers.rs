//! Layers that several models share. They hold the weights and load them by their published names. The computations
//! are in [`ops`], which has the fast kernels.

use candle_core::{Module, Result, Tensor};
use candle_nn::VarBuilder;

use super::ops::{self, Activation, Matrix};

/// A linear layer (`nn.Linear`).
#[derive(Debug, Clone)]
pub struct Linear {
    weight: Matrix,
    bias: Option<Tensor>,
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

/// Two linear layers with an activation between them.
#[derive(Debug, Clone)]
pub struct FeedForward {
    first: Linear,
    activation: candle_nn::Activation,
    second: Linear,
}

impl FeedForward {
    /// Combines loaded layers.
    pub fn new(first: Linear, activation: candle_nn::Activation, second: Linear) -> Self {
        Self {
            first,
            activation,
            second,
        }
    }

    /// `[..., input]` to `[..., output]`, plus `residual` of that shape.
    pub fn forward_added(&self, xs: &Tensor, residual: &Tensor) -> Result<Tensor> {
        let (first, second) = (&self.first, &self.second);
        match fused(self.activation) {
            Some(activation) => ops::feed_forward(
                xs,
                (&first.weight, first.bias.as_ref()),
                activation,
                (&second.weight, second.bias.as_ref()),
                Some(residual),
            ),
            None => second.forward_added(&xs.apply(first)?.apply(&self.activation)?, residual),
        }
    }
}

/// The activation if the operations can fuse it, else `None`.
fn fused(activation: candle_nn::Activation) -> Option<Activation> {
    match activation {
        candle_nn::Activation::Gelu => Some(Activation::Gelu),
        candle_nn::Activation::Relu => Some(Activation::Relu),
        _ => None,
    }
}

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
        ops::upscale2x(xs, &self.0, activation)
    }
}

/// Linear layers with ReLU between them (`GroundingDinoMLPPredictionHead`).
#[derive(Debug, Clone)]
pub struct Mlp(Vec<Linear>);

impl Mlp {
    /// Loads `layers.{i}`; `sizes` are the widths from the input to the output.
    pub fn load(sizes: &[usize], vb: VarBuilder) -> Result<Self> {
        let vb = vb.pp("layers");
        let layers = sizes
            .windows(2)
            .enumerate()
            .map(|(i, pair)| linear(pair[0], pair[1], vb.pp(i)))
            .collect::<Result<_>>()?;
        Ok(Self(layers))
    }

    /// Combines loaded layers.
    pub fn new(layers: Vec<Linear>) -> Self {
        Self(layers)
    }

    /// `[..., input]` to `[..., output]`.
    pub fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let mut xs = xs.clone();
        for (i, layer) in self.0.iter().enumerate() {
            let activation = match i + 1 < self.0.len() {
                true => Activation::Relu,
                false => Activation::None,
            };
            xs = layer.forward_activated(&xs, activation)?;
        }
        Ok(xs)
    }
}

/// Query, key and value projections, attention, and the output projection
/// (`GroundingDinoMultiheadAttention`, `SamAttention`, and BERT's self-attention).
#[derive(Debug, Clone)]
pub struct MultiheadAttention {
    query: Linear,
    key: Linear,
    value: Linear,
    output: Linear,
    heads: usize,
}

impl MultiheadAttention {
    /// Combines loaded projections. The output width of the first three must be divisible by `heads`.
    pub fn new(query: Linear, key: Linear, value: Linear, output: Linear, heads: usize) -> Self {
        Self {
            query,
            key,
            value,
            output,
            heads,
        }
    }

    /// The query projection.
    pub fn query(&self) -> &Linear {
        &self.query
    }

    /// The key projection.
    pub fn key(&self) -> &Linear {
        &self.key
    }

    /// Queries `[B, N, C]`, keys and values `[B, M, C]` (or `[1, M, C]`, shared by all), and `bias`, which broadcasts
    /// to `[B, heads, N, M]`. Returns `residual` plus the result `[B, N, C]`.
    pub fn forward_added(
        &self,
        queries: &Tensor,
        keys: &Tensor,
        values: &Tensor,
        bias: Option<&Tensor>,
        residual: &Tensor,
    ) -> Result<Tensor> {
        let (query, key) = (queries.apply(&self.query)?, keys.apply(&self.key)?);
        let attended = self.attend(&query, &key, values, bias)?;
        self.output.forward_added(&attended, residual)
    }

    /// Like [`MultiheadAttention::forward_added`], without a residual.
    pub fn forward(
        &self,
        queries: &Tensor,
        keys: &Tensor,
        values: &Tensor,
        bias: Option<&Tensor>,
    ) -> Result<Tensor> {
        let (query, key) = (queries.apply(&self.query)?, keys.apply(&self.key)?);
        self.attend(&query, &key, values, bias)?.apply(&self.output)
    }

    /// Like [`MultiheadAttention::forward_added`], with queries and keys that are already projected.
    pub fn forward_projected(
        &self,
        query: &Tensor,
        key: &Tensor,
        values: &Tensor,
        residual: &Tensor,
    ) -> Result<Tensor> {
        let attended = self.attend(query, key, values, None)?;
        self.output.forward_added(&attended, residual)
    }

    fn attend(
        &self,
        query: &Tensor,
        key: &Tensor,
        values: &Tensor,
        bias: Option<&Tensor>,
    ) -> Result<Tensor> {
        let value = values.apply(&self.value)?;
        ops::attention(query, key, &value, bias, self.heads)
    }
}
