//! Convolutions to many channels, followed by a linear layer to few.

use candle_core::{Result, Tensor};

use super::{Conv3x3, conv3x3, convolve_plain};
use crate::models::ops::kernels::fused_convolution::{Layers, fused_convolution};
use crate::models::ops::{Activation, Matrix, cpu_tensor, f32_slice, f32_vec, linear};

/// `narrow(activation(conv(xs))) + narrow_bias + residual`: `[B, H, W, C]` to
/// `[B, ceil(H / stride), ceil(W / stride), output]`, which is also the residual's shape. `narrow` is `[output, wide]`.
/// The kernel keeps only a part of the wide map in memory.
///
/// # Errors
/// If the shapes do not fit each other.
pub fn fused_mb_conv(
    xs: &Tensor,
    conv: &Conv3x3,
    activation: Activation,
    narrow: &Matrix,
    narrow_bias: Option<&Tensor>,
    residual: Option<&Tensor>,
) -> Result<Tensor> {
    let (Some(kernel), Some(narrow)) = (conv.kernel.panels(), narrow.panels()) else {
        let wide = conv3x3(xs, conv, activation)?;
        return linear(&wide, narrow, narrow_bias, Activation::None, residual);
    };
    let map = conv.check(xs)?;
    let shape = [
        map.batch,
        map.height.div_ceil(conv.stride),
        map.width.div_ceil(conv.stride),
        narrow.n(),
    ];
    let fits = narrow.k() == kernel.n()
        && narrow_bias.is_none_or(|bias| bias.dims() == [narrow.n()])
        && residual.is_none_or(|residual| residual.dims() == shape);
    if !fits {
        candle_core::bail!(
            "fused convolution: input {:?}, {conv:?}, {} to {} channels, residual {:?} do not fit",
            xs.dims(),
            narrow.k(),
            narrow.n(),
            residual.map(Tensor::dims)
        )
    }
    let xs = xs.contiguous()?;
    let residual = residual.map(Tensor::contiguous).transpose()?;
    let residual = residual.as_ref().map(Tensor::storage_and_layout);
    let bias = conv.bias.as_ref().map(f32_vec).transpose()?;
    let narrow_bias = narrow_bias.map(f32_vec).transpose()?;
    let layers = Layers {
        kernel,
        bias: bias.as_deref(),
        side: 3,
        stride: conv.stride,
        activation,
        narrow,
        narrow_bias: narrow_bias.as_deref(),
    };
    let result = fused_convolution(
        f32_slice(&xs.storage_and_layout())?,
        map,
        layers,
        residual.as_ref().map(f32_slice).transpose()?,
    );
    cpu_tensor(result, shape.as_slice())
}

/// The same as [`fused_mb_conv`], layer by layer.
///
/// # Errors
/// If the shapes do not fit each other.
pub fn fused_mb_conv_plain(
    xs: &Tensor,
    conv: &Conv3x3,
    activation: Activation,
    narrow: &Matrix,
    narrow_bias: Option<&Tensor>,
    residual: Option<&Tensor>,
) -> Result<Tensor> {
    let wide = convolve_plain(xs, conv, activation)?;
    linear(&wide, narrow, narrow_bias, Activation::None, residual)
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;

    #[test]
    fn an_error_names_the_shapes_that_do_not_fit() -> Result<()> {
        let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu);
        let conv = Conv3x3::new(&zeros(&[8, 2, 3, 3])?, None, 2)?;
        let run = |wide, residual: &Tensor| {
            let narrow = Matrix::new(zeros(&[4, wide])?)?;
            let xs = zeros(&[1, 5, 6, 2])?;
            fused_mb_conv(&xs, &conv, Activation::Relu, &narrow, None, Some(residual))
        };
        let residual = zeros(&[1, 3, 3, 4])?;
        assert!(run(8, &residual).is_ok());
        for wrong in [run(9, &residual), run(8, &zeros(&[1, 5, 6, 4])?)] {
            assert!(wrong.is_err_and(|e| e.to_string().contains("input [1, 5, 6, 2]")));
        }
        Ok(())
    }
}
