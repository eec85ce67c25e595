//! The convolutions of EfficientViT. Batch norms are folded into them when the model loads.

use candle_core::{DType, Module, Result, Tensor};
use candle_nn::VarBuilder;

use super::NORM_EPS;
use crate::models::layers::Linear;
use crate::models::ops::{
    Activation, Conv3x3, Depthwise3x3, Matrix, conv3x3, depthwise_conv3x3, fused_mb_conv,
};

/// The kernel `[output, input, k, k]` of a `ConvLayer` and its bias `[output]`, with its batch norm folded in. The shape
/// is that of the checkpoint. That is computed in f32 and rounded once, because f16 has neither the range nor the digits for
/// variances.
fn load_folded(vb: &VarBuilder) -> Result<(Tensor, Tensor)> {
    let dtype = vb.dtype();
    let vb = vb.to_dtype(DType::F32);
    let kernel = vb.get_unchecked_dtype("conv.weight", DType::F32)?;
    let output = kernel.dim(0)?;
    if kernel.rank() != 4 {
        candle_core::bail!(
            "the tensor {}.conv.weight has the shape {:?} instead of 4 dimensions",
            vb.prefix(),
            kernel.dims()
        )
    }
    let bias = match vb.contains_tensor("conv.bias") {
        true => vb.get(output, "conv.bias")?,
        false => Tensor::zeros(output, kernel.dtype(), kernel.device())?,
    };
    let vb = vb.pp("norm");
    if !vb.contains_tensor("weight") {
        return Ok((kernel.to_dtype(dtype)?, bias.to_dtype(dtype)?));
    }
    let mean = vb.get(output, "running_mean")?;
    let variance = vb.get(output, "running_var")?;
    let scale = (vb.get(output, "weight")? / (variance + NORM_EPS)?.sqrt()?)?;
    let bias = (vb.get(output, "bias")? + ((bias - mean)? * &scale)?)?;
    let kernel = kernel.broadcast_mul(&scale.reshape((output, 1, 1, 1))?)?;
    Ok((kernel.to_dtype(dtype)?, bias.to_dtype(dtype)?))
}

/// A dense 3x3 `ConvLayer`.
#[derive(Debug, Clone)]
pub(super) struct DenseConv {
    conv: Conv3x3,
    activation: Activation,
}

impl DenseConv {
    pub(super) fn load(vb: VarBuilder, stride: usize, activation: Activation) -> Result<Self> {
        let (kernel, bias) = load_folded(&vb)?;
        Ok(Self {
            conv: Conv3x3::new(&kernel, Some(bias), stride)?,
            activation,
        })
    }

    pub(super) fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        conv3x3(xs, &self.conv, self.activation)
    }
}

/// A 1x1 `ConvLayer`, as a linear layer on the channels.
pub(super) fn load_pointwise(vb: VarBuilder) -> Result<Linear> {
    let (weight, bias) = load_pointwise_tensors(vb)?;
    Linear::new(weight, Some(bias))
}

/// The weight `[output, input]` and the bias of a 1x1 `ConvLayer`.
fn load_pointwise_tensors(vb: VarBuilder) -> Result<(Tensor, Tensor)> {
    let (kernel, bias) = load_folded(&vb)?;
    let (output, input, _, _) = kernel.dims4()?;
    Ok((kernel.reshape((output, input))?, bias))
}

/// A block of convolutions. It has a residual connection, except for the first block of a stage, which halves the map.
#[derive(Debug, Clone)]
pub(super) struct Convolutions {
    kind: Kind,
    halves: bool,
}

#[derive(Debug, Clone)]
enum Kind {
    /// `ResBlock`: two dense convolutions.
    Residual(DenseConv, DenseConv),
    /// `FusedMBConv`: a dense convolution that widens, and a linear layer that narrows, with its bias.
    Fused(Conv3x3, Matrix, Tensor),
    /// `MBConv`: a linear layer that widens, a depthwise convolution, and a linear layer that narrows.
    Bottleneck(Linear, Depthwise3x3, Linear),
}

/// The activation of all hidden maps: GELU in its tanh form.
const GELU: Activation = Activation::GeluTanh;

impl Convolutions {
    /// Loads the kind of block whose tensors are there; `None` if there are none.
    pub(super) fn load(vb: VarBuilder, halves: bool) -> Result<Option<Self>> {
        let has = |layer: &str| vb.contains_tensor(&format!("{layer}.conv.weight"));
        let stride = if halves { 2 } else { 1 };
        let kind = if has("conv1") {
            Kind::Residual(
                DenseConv::load(vb.pp("conv1"), stride, GELU)?,
                DenseConv::load(vb.pp("conv2"), 1, Activation::None)?,
            )
        } else if has("spatial_conv") {
            let (kernel, bias) = load_folded(&vb.pp("spatial_conv"))?;
            let (narrow, narrow_bias) = load_pointwise_tensors(vb.pp("point_conv"))?;
            Kind::Fused(
                Conv3x3::new(&kernel, Some(bias), stride)?,
                Matrix::new(narrow)?,
                narrow_bias,
            )
        } else if has("inverted_conv") {
            Kind::Bottleneck(
                load_pointwise(vb.pp("inverted_conv"))?,
                load_depthwise(vb.pp("depth_conv"), stride)?,
                load_pointwise(vb.pp("point_conv"))?,
            )
        } else {
            return Ok(None);
        };
        Ok(Some(Self { kind, halves }))
    }

    /// `[B, H, W, C]` to the same shape, or to `[B, H / 2, W / 2, output]`.
    pub(super) fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let residual = (!self.halves).then_some(xs);
        match &self.kind {
            Kind::Residual(conv1, conv2) => {
                let output = conv2.forward(&conv1.forward(xs)?)?;
                if self.halves { Ok(output) } else { output + xs }
            }
            Kind::Fused(wide, narrow, bias) => {
                fused_mb_conv(xs, wide, GELU, narrow, Some(bias), residual)
            }
            Kind::Bottleneck(widen, depthwise, point) => {
                let hidden = widen.forward_activated(xs, GELU)?;
                let hidden = depthwise_conv3x3(&hidden, depthwise, GELU)?;
                match residual {
                    Some(residual) => point.forward_added(&hidden, residual),
                    None => point.forward(&hidden),
                }
            }
        }
    }
}

fn load_depthwise(vb: VarBuilder, stride: usize) -> Result<Depthwise3x3> {
    let (kernel, bias) = load_folded(&vb)?;
    let channels = kernel.dim(0)?;
    Ok(Depthwise3x3 {
        kernel: kernel.reshape((channels, 9))?.t()?.contiguous()?,
        bias,
        stride,
    })
}
