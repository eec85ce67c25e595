//! Linear attention: the products of keys and values are summed over the map before they meet the queries.

use candle_core::{D, DType, Module, Result, Tensor};
use candle_nn::VarBuilder;

use super::convolution::load_pointwise;
use crate::models::layers::Linear;
use crate::models::ops::{
    Activation, Depthwise3x3, Depthwise5x5, depthwise_conv3x3, depthwise_conv5x5,
};

/// `LiteMLA`: attention with ReLU instead of softmax, on the tokens and on their sums over neighbourhoods.
#[derive(Debug, Clone)]
pub(super) struct LinearAttention {
    qkv: Linear,
    aggregations: Vec<Aggregation>,
    proj: Linear,
    /// Channels of a head.
    width: usize,
}

/// A depthwise convolution, and a linear layer among the channels of each part of a head (query, key or value).
#[derive(Debug, Clone)]
struct Aggregation {
    neighbours: Neighbours,
    /// `[parts, width, width]`, from the channels of the second dimension to those of the third one.
    mixing: Tensor,
}

/// A depthwise convolution with a kernel of 3 or 5 rows and columns.
#[derive(Debug, Clone)]
enum Neighbours {
    Three(Depthwise3x3),
    Five(Depthwise5x5),
}

impl Neighbours {
    /// From the checkpoint's kernel `[C, 1, side, side]`.
    fn new(kernel: &Tensor) -> Result<Self> {
        let (channels, _, side, _) = kernel.dims4()?;
        let bias = Tensor::zeros(channels, kernel.dtype(), kernel.device())?;
        let kernel = kernel.reshape((channels, ()))?.t()?.contiguous()?;
        let stride = 1;
        match side {
            3 => Ok(Self::Three(Depthwise3x3 {
                kernel,
                bias,
                stride,
            })),
            5 => Ok(Self::Five(Depthwise5x5 {
                kernel,
                bias,
                stride,
            })),
            other => candle_core::bail!(
                "EfficientViT: an aggregation of {other}x{other} neighbours is not supported, only 3x3 and 5x5"
            ),
        }
    }

    /// `[B, H, W, C]` to the same shape.
    fn sums(&self, map: &Tensor) -> Result<Tensor> {
        match self {
            Self::Three(conv) => depthwise_conv3x3(map, conv, Activation::None),
            Self::Five(conv) => depthwise_conv5x5(map, conv, Activation::None),
        }
    }
}

/// Added to the sum of the weights (`eps` of `LiteMLA`); in half precision it would be 0.
const EPS: f64 = 1e-15;

impl LinearAttention {
    /// Loads `qkv`, `aggreg.{i}` and `proj`.
    pub(super) fn load(vb: VarBuilder) -> Result<Self> {
        let qkv = vb.get_unchecked("qkv.conv.weight")?;
        let (channels, input, _, _) = qkv.dims4()?;
        let mut width = channels / 3;
        let mut aggregations = vec![];
        for i in 0.. {
            let vb = vb.pp("aggreg").pp(i);
            if !vb.contains_tensor("0.weight") {
                break;
            }
            let kernel = vb.get_unchecked("0.weight")?;
            let mixing = vb.get_unchecked("1.weight")?;
            width = mixing.dim(1)?;
            aggregations.push(Aggregation {
                neighbours: Neighbours::new(&kernel)?,
                mixing: mixing
                    .reshape(((), width, width))?
                    .transpose(1, 2)?
                    .contiguous()?,
            });
        }
        Ok(Self {
            qkv: Linear::new(qkv.reshape((channels, input))?, None)?,
            aggregations,
            proj: load_pointwise(vb.pp("proj"))?,
            width,
        })
    }

    /// A map `[B, H, W, C]` plus the attention's result. The sums over all tokens are computed in f32, as in the reference,
    /// because they leave the range of f16.
    pub(super) fn forward_added(&self, xs: &Tensor) -> Result<Tensor> {
        let (batch, height, width, _) = xs.dims4()?;
        let tokens = height * width;
        let qkv = self.qkv.forward(xs)?;
        let mut scales = vec![self.parts(&qkv)?];
        for aggregation in &self.aggregations {
            let sums = self.parts(&aggregation.neighbours.sums(&qkv)?)?;
            scales.push(sums.broadcast_matmul(&aggregation.mixing)?);
        }
        // [B, heads of all scales, 3, N, width]
        let parts = Tensor::cat(&scales, 1)?;
        let parts = parts.reshape((batch, (), 3, tokens, self.width))?;
        let part = |i: usize| {
            let part = parts.narrow(2, i, 1)?.squeeze(2)?.contiguous()?;
            part.to_dtype(DType::F32)
        };
        let (query, key, value) = (part(0)?.relu()?, part(1)?.relu()?, part(2)?);
        // [B, heads, width, width]
        let key_values = key.transpose(2, 3)?.contiguous()?.matmul(&value)?;
        let sums = key.sum_keepdim(2)?;
        let weights = query.broadcast_mul(&sums)?.sum_keepdim(D::Minus1)?;
        let attended = query
            .matmul(&key_values)?
            .broadcast_div(&(weights + EPS)?)?
            .to_dtype(xs.dtype())?
            .transpose(1, 2)?
            .reshape((batch, height, width, ()))?;
        self.proj.forward_added(&attended, xs)
    }

    /// `[B, H, W, parts * width]` to `[B, parts, H * W, width]`.
    fn parts(&self, map: &Tensor) -> Result<Tensor> {
        let (batch, height, width, channels) = map.dims4()?;
        map.reshape((batch, height * width, channels / self.width, self.width))?
            .transpose(1, 2)?
            .contiguous()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use candle_core::Device;

    use super::*;

    /// Attention with four channels and one head whose queries and keys are `sign` times a large number.
    fn attend(sign: f32) -> Result<Vec<f32>> {
        let cpu = Device::Cpu;
        let weights = [sign * 30.0; 2 * 4 * 4].into_iter().chain([0.1; 4 * 4]);
        let qkv = Tensor::from_iter(weights, &cpu)?.reshape((12, 4, 1, 1))?;
        let tensors = HashMap::from([
            ("qkv.conv.weight".to_owned(), qkv),
            (
                "proj.conv.weight".to_owned(),
                Tensor::eye(4, DType::F32, &cpu)?.reshape((4, 4, 1, 1))?,
            ),
        ]);
        let vb = VarBuilder::from_tensors(tensors, DType::F16, &cpu);
        let attention = LinearAttention::load(vb)?;
        let map = Tensor::ones((1, 32, 32, 4), DType::F16, &cpu)?;
        let result = attention.forward_added(&map)?.to_dtype(DType::F32)?;
        result.flatten_all()?.to_vec1()
    }

    #[test]
    fn sums_in_f16_neither_overflow_nor_divide_by_zero() -> Result<()> {
        // a sum of 120 * 120 over 1024 tokens is above the range of f16
        let large = attend(1.0)?;
        assert!(
            large.iter().all(|number| (number - 1.4).abs() < 1e-2),
            "{large:?}"
        );
        // all queries and keys are negative, so every weight is 0, and the map is unchanged
        let none = attend(-1.0)?;
        assert!(
            none.iter().all(|number| (number - 1.0).abs() < 1e-3),
            "{none:?}"
        );
        Ok(())
    }
}
