//! A wide depthwise convolution between two linear layers.

use candle_core::{Result, Tensor};

use super::convolution::{Depthwise3x3, depthwise_conv3x3, map_of};
use super::kernels::inverted_bottleneck::{self as kernel, Layers};
use super::{Activation, Matrix, copied, linear, numbers, tensor};

/// The layers of an inverted bottleneck; GELU follows the first two.
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

/// `activation(narrow(gelu(depthwise(gelu(widen(xs))))) + residual)`: `[B, H, W, C]` to `[B, ceil(H / stride), ceil(W /
/// stride), output]`, the residual's shape. The kernel never holds more than a part of the wide maps.
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
        return inverted_bottleneck_plain(xs, block, residual, activation);
    };
    let map = map_of(xs)?;
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
        widen_bias: &copied(&block.widen_bias)?,
        kernel: &copied(&block.depthwise.kernel)?,
        kernel_bias: &copied(&block.depthwise.bias)?,
        stride,
        narrow,
        narrow_bias: &copied(&block.narrow_bias)?,
    };
    let result = kernel::inverted_bottleneck(
        numbers(&xs.storage_and_layout())?,
        map,
        layers,
        residual.as_ref().map(numbers).transpose()?,
        activation,
    );
    tensor(result, shape.as_slice())
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
    let gelu = Activation::Gelu;
    let widened = linear(xs, &block.widen, Some(&block.widen_bias), gelu, None)?;
    let convolved = depthwise_conv3x3(&widened, &block.depthwise, gelu)?;
    let bias = Some(&block.narrow_bias);
    linear(&convolved, &block.narrow, bias, activation, residual)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::super::testing::assert_close;
    use super::super::{InstructionSet, depthwise_conv3x3_plain, linear_plain};
    use super::*;

    #[test]
    fn blocks_equal_plain_tensors_on_every_instruction_set() -> Result<()> {
        let device = &Device::Cpu;
        let randn = |shape: &[usize]| Tensor::randn(0f32, 0.5, shape, device);
        for set in InstructionSet::available() {
            for (batch, height, width, channels, hidden, output) in [
                (1, 1, 1, 1, 1, 1),
                (2, 5, 8, 3, 20, 7),
                (1, 37, 5, 8, 16, 8),
                (1, 3, 131, 4, 9, 5),
                (1, 66, 67, 2, 5, 2),
            ] {
                for stride in [1, 2] {
                    let xs = randn(&[batch, height, width, channels])?;
                    let widen = randn(&[hidden, channels])?;
                    let narrow = randn(&[output, hidden])?;
                    let block = InvertedBottleneck {
                        widen: Matrix::packed(set, &widen)?,
                        widen_bias: randn(&[hidden])?,
                        depthwise: Depthwise3x3 {
                            kernel: randn(&[9, hidden])?,
                            bias: randn(&[hidden])?,
                            stride,
                        },
                        narrow: Matrix::packed(set, &narrow)?,
                        narrow_bias: randn(&[output])?,
                    };
                    let (rows, columns) = (height.div_ceil(stride), width.div_ceil(stride));
                    let residual = randn(&[batch, rows, columns, output])?;
                    for residual in [None, Some(&residual)] {
                        let gelu = Activation::Gelu;
                        let fast = inverted_bottleneck(&xs, &block, residual, gelu)?;
                        let wide = linear_plain(&xs, &widen, Some(&block.widen_bias), gelu, None)?;
                        let wide = depthwise_conv3x3_plain(&wide, &block.depthwise, gelu)?;
                        let bias = Some(&block.narrow_bias);
                        let plain = linear_plain(&wide, &narrow, bias, gelu, residual)?;
                        let name = format!("{} {height}x{width}/{stride}", set.name());
                        assert_close(&name, &fast, &plain, 3e-6)?;
                    }
                }
            }
        }
        Ok(())
    }

    #[test]
    fn shapes_that_do_not_fit_are_named() -> Result<()> {
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
