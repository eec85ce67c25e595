//! Inverted bottleneck: a wide depthwise convolution between two linear layers.

use candle_core::{Result, Tensor};

use super::convolution::{Depthwise3x3, depthwise_conv3x3, depthwise_plain, map_sizes};
use super::kernels::inverted_bottleneck::{self as kernel, Layers};
use super::{Activation, Matrix, cpu_tensor, f32_slice, f32_vec, linear};

/// The layers of an inverted bottleneck. GELU follows the first two.
#[derive(Debug, Clone)]
pub struct InvertedBottleneck {
    /// `[hidden, C]`
    pub widen: Matrix,
    /// `[hidden]`
    pub widen_bias: Tensor,
    /// On the hidden channels.
    pub depthwise: Depthwise3x3,
    /// `[output, hidden]`
    pub narrow: Matrix,
    /// `[output]`
    pub narrow_bias: Tensor,
}

/// `activation(narrow(gelu(depthwise(gelu(widen(xs))))) + residual)`: `[B, H, W, C]` to
/// `[B, ceil(H / stride), ceil(W / stride), output]`, which is also the residual's shape. The kernel keeps only a
/// part of the wide maps in memory.
///
/// # Errors
/// If the shapes do not fit each other.
pub fn inverted_bottleneck(
    xs: &Tensor,
    block: &InvertedBottleneck,
    residual: Option<&Tensor>,
    activation: Activation,
) -> Result<Tensor> {
    let (Some(widen), Some(narrow)) = (block.widen.panels(), block.narrow.panels()) else {
        return layer_by_layer(xs, block, residual, activation, depthwise_conv3x3);
    };
    let map = map_sizes(xs)?;
    let stride = block.depthwise.stride.max(1);
    let hidden = widen.n();
    let shape = [
        map.batch,
        map.height.div_ceil(stride),
        map.width.div_ceil(stride),
        narrow.n(),
    ];
    let fits = widen.k() == map.channels
        && narrow.k() == hidden
        && block.depthwise.stride > 0
        && block.depthwise.kernel.dims() == [9, hidden]
        && block.depthwise.bias.dims() == [hidden]
        && block.widen_bias.dims() == [hidden]
        && block.narrow_bias.dims() == [narrow.n()]
        && residual.is_none_or(|residual| residual.dims() == shape);
    if !fits {
        candle_core::bail!(
            "inverted bottleneck: input {:?}, residual {:?} and {block:?} do not fit",
            xs.dims(),
            residual.map(Tensor::dims)
        )
    }
    let xs = xs.contiguous()?;
    let residual = residual.map(Tensor::contiguous).transpose()?;
    let residual = residual.as_ref().map(Tensor::storage_and_layout);
    let layers = Layers {
        widen,
        widen_bias: &f32_vec(&block.widen_bias)?,
        kernel: &f32_vec(&block.depthwise.kernel)?,
        kernel_bias: &f32_vec(&block.depthwise.bias)?,
        stride,
        narrow,
        narrow_bias: &f32_vec(&block.narrow_bias)?,
    };
    let result = kernel::inverted_bottleneck(
        f32_slice(&xs.storage_and_layout())?,
        map,
        layers,
        residual.as_ref().map(f32_slice).transpose()?,
        activation,
    );
    cpu_tensor(result, shape.as_slice())
}

/// The same as [`inverted_bottleneck`], layer by layer.
///
/// # Errors
/// If the shapes do not fit each other.
pub fn inverted_bottleneck_plain(
    xs: &Tensor,
    block: &InvertedBottleneck,
    residual: Option<&Tensor>,
    activation: Activation,
) -> Result<Tensor> {
    layer_by_layer(xs, block, residual, activation, depthwise_plain)
}

fn layer_by_layer(
    xs: &Tensor,
    block: &InvertedBottleneck,
    residual: Option<&Tensor>,
    activation: Activation,
    depthwise: impl Fn(&Tensor, &Depthwise3x3, Activation) -> Result<Tensor>,
) -> Result<Tensor> {
    let gelu = Activation::Gelu;
    let widened = linear(xs, &block.widen, Some(&block.widen_bias), gelu, None)?;
    let convolved = depthwise(&widened, &block.depthwise, gelu)?;
    let bias = Some(&block.narrow_bias);
    linear(&convolved, &block.narrow, bias, activation, residual)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn an_error_names_the_shapes_that_do_not_fit() -> Result<()> {
        let zeros = |shape: &[usize]| Tensor::zeros(shape, candle_core::DType::F32, &Device::Cpu);
        let block = InvertedBottleneck {
            widen: Matrix::new(zeros(&[4, 2])?)?,
            widen_bias: zeros(&[4])?,
            depthwise: Depthwise3x3 {
                kernel: zeros(&[9, 4])?,
                bias: zeros(&[4])?,
                stride: 1,
            },
            narrow: Matrix::new(zeros(&[2, 4])?)?,
            narrow_bias: zeros(&[2])?,
        };
        let error = inverted_bottleneck(&zeros(&[1, 3, 3, 5])?, &block, None, Activation::None);
        assert!(error.is_err_and(|e| e.to_string().contains("input [1, 3, 3, 5]")));
        Ok(())
    }
}
