//! The convolutions of TinyViT. Batch norms are folded into them when the model loads.

use candle_core::{DType, Result, Tensor};
use candle_nn::VarBuilder;

use super::NORM_EPS;
use crate::models::ops::{
    Activation, Conv3x3, Depthwise3x3, InvertedBottleneck, Matrix, conv3x3, inverted_bottleneck,
};

/// `PatchEmbed`.
#[derive(Debug, Clone)]
pub struct PatchEmbed(Conv3x3, Conv3x3);

impl PatchEmbed {
    /// Loads `seq.0` and `seq.2`; the output has `channels` channels.
    pub fn load(channels: usize, vb: VarBuilder) -> Result<Self> {
        Ok(Self(
            load_strided(3, channels / 2, vb.pp("seq.0"))?,
            load_strided(channels / 2, channels, vb.pp("seq.2"))?,
        ))
    }

    /// Pixels `[B, 3, H, W]`, whose sizes are divisible by 4, to `[B, H / 4, W / 4, C]`.
    pub fn forward(&self, pixel_values: &Tensor) -> Result<Tensor> {
        let pixels = pixel_values.permute((0, 2, 3, 1))?.contiguous()?;
        let hidden = conv3x3(&pixels, &self.0, Activation::Gelu)?;
        conv3x3(&hidden, &self.1, Activation::None)
    }
}

/// `Conv2d_BN`: the kernel `[out, in, h, w]` and the bias of the convolution, with its batch norm folded in. That is computed
/// in f32 and rounded once, because f16 has neither the range nor the digits for variances.
fn fold_batch_norm(
    output: usize,
    input: usize,
    side: usize,
    vb: VarBuilder,
) -> Result<(Tensor, Tensor)> {
    let dtype = vb.dtype();
    let vb = vb.to_dtype(DType::F32);
    let kernel = vb.get((output, input, side, side), "c.weight")?;
    let vb = vb.pp("bn");
    let mean = vb.get(output, "running_mean")?;
    let variance = vb.get(output, "running_var")?;
    let scale = (vb.get(output, "weight")? / (variance + NORM_EPS)?.sqrt()?)?;
    let bias = (vb.get(output, "bias")? - (mean * &scale)?)?;
    let kernel = kernel.broadcast_mul(&scale.reshape((output, 1, 1, 1))?)?;
    Ok((kernel.to_dtype(dtype)?, bias.to_dtype(dtype)?))
}

/// A 1x1 `Conv2d_BN`, as a linear layer on the channels: its weight `[output, input]` and its bias.
fn load_pointwise(input: usize, output: usize, vb: VarBuilder) -> Result<(Matrix, Tensor)> {
    let (kernel, bias) = fold_batch_norm(output, input, 1, vb)?;
    Ok((Matrix::new(kernel.reshape((output, input))?)?, bias))
}

/// A depthwise 3x3 `Conv2d_BN`.
pub(super) fn load_depthwise(
    channels: usize,
    stride: usize,
    vb: VarBuilder,
) -> Result<Depthwise3x3> {
    let (kernel, bias) = fold_batch_norm(channels, 1, 3, vb)?;
    Ok(Depthwise3x3 {
        kernel: kernel.reshape((channels, 9))?.t()?.contiguous()?,
        bias,
        stride,
    })
}

/// A dense 3x3 `Conv2d_BN` with stride 2.
fn load_strided(input: usize, output: usize, vb: VarBuilder) -> Result<Conv3x3> {
    let (kernel, bias) = fold_batch_norm(output, input, 3, vb)?;
    Conv3x3::new(&kernel, Some(bias), 2)
}

/// A 1x1, a depthwise 3x3 with this stride, and another 1x1 `Conv2d_BN`.
fn load_bottleneck(
    [input, hidden, output]: [usize; 3],
    stride: usize,
    vb: VarBuilder,
) -> Result<InvertedBottleneck> {
    let (widen, widen_bias) = load_pointwise(input, hidden, vb.pp("conv1"))?;
    let (narrow, narrow_bias) = load_pointwise(hidden, output, vb.pp("conv3"))?;
    Ok(InvertedBottleneck {
        widen,
        widen_bias,
        depthwise: load_depthwise(hidden, stride, vb.pp("conv2"))?,
        narrow,
        narrow_bias,
    })
}

/// `MBConv`: an inverted bottleneck with a residual connection.
#[derive(Debug, Clone)]
pub(super) struct MbConv(InvertedBottleneck);

impl MbConv {
    pub(super) fn load(dim: usize, hidden: usize, vb: VarBuilder) -> Result<Self> {
        Ok(Self(load_bottleneck([dim, hidden, dim], 1, vb)?))
    }

    /// `[B, H, W, C]` to the same shape.
    pub(super) fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        inverted_bottleneck(xs, &self.0, Some(xs), Activation::Gelu)
    }
}

/// `PatchMerging`: halves the resolution, except before the last stage (the reference detects it by its published
/// widths).
#[derive(Debug, Clone)]
pub(super) struct PatchMerging(InvertedBottleneck);

impl PatchMerging {
    pub(super) fn load(dim: usize, next: usize, is_last: bool, vb: VarBuilder) -> Result<Self> {
        let stride = if is_last { 1 } else { 2 };
        Ok(Self(load_bottleneck([dim, next, next], stride, vb)?))
    }

    /// `[B, H, W, C]` to `[B, H / stride, W / stride, next]`.
    pub(super) fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        inverted_bottleneck(xs, &self.0, None, Activation::None)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use candle_core::Device;

    use super::*;

    #[test]
    fn variances_outside_of_f16_are_folded_exactly() -> Result<()> {
        let tensor = |numbers: &[f32]| Tensor::new(numbers, &Device::Cpu);
        let kernel = tensor(&[0.5e-3, 300.0])?.reshape((2, 1, 1, 1))?;
        let tensors = HashMap::from([
            ("c.weight".to_owned(), kernel),
            ("bn.running_mean".to_owned(), tensor(&[0.1, 2.0])?),
            // the first one is 0 in f16, the second one infinite
            ("bn.running_var".to_owned(), tensor(&[1e-9, 1e6])?),
            ("bn.weight".to_owned(), tensor(&[1.0, 1.0])?),
            ("bn.bias".to_owned(), tensor(&[0.0, 0.5])?),
        ]);
        let fold = |dtype| {
            let vb = VarBuilder::from_tensors(tensors.clone(), dtype, &Device::Cpu);
            fold_batch_norm(2, 1, 1, vb)
        };
        let (kernel, bias) = fold(DType::F32)?;
        let (half_kernel, half_bias) = fold(DType::F16)?;
        for (exact, half) in [(kernel, half_kernel), (bias, half_bias)] {
            assert_eq!(half.dtype(), DType::F16);
            let exact = exact.to_dtype(DType::F16)?.flatten_all()?;
            let exact = exact.to_dtype(DType::F32)?.to_vec1::<f32>()?;
            let half = half.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
            assert!(half.iter().all(|number| number.is_finite()), "{half:?}");
            assert_eq!(half, exact);
        }
        Ok(())
    }
}
