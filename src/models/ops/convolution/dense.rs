//! Dense 3x3 convolutions.

use candle_core::{D, Result, Tensor};

use super::{kernel_cells, map_sizes};
#[cfg(feature = "cuda")]
use crate::models::ops::gpu;
use crate::models::ops::kernels::convolution;
use crate::models::ops::kernels::simd::InstructionSet;
use crate::models::ops::{Activation, Matrix, cpu_tensor, f32_slice, f32_vec, kernel_set, linear};

/// A dense 3x3 convolution with a zero padding of one.
#[derive(Debug, Clone)]
pub struct Conv3x3 {
    /// `[output, 9 * C]`: the kernel's cells row by row, channels last.
    pub kernel: Matrix,
    /// `[output]`
    pub bias: Option<Tensor>,
    /// 1 or 2.
    pub stride: usize,
}

impl Conv3x3 {
    /// Converts a kernel from the checkpoint's layout `[output, C, 3, 3]`.
    pub fn new(kernel: &Tensor, bias: Option<Tensor>, stride: usize) -> Result<Self> {
        Self::for_set(kernel_set(kernel), kernel, bias, stride)
    }

    /// Uses the kernels of an instruction set, or plain tensor operations if `set` is `None`.
    pub(in crate::models::ops) fn for_set(
        set: Option<InstructionSet>,
        kernel: &Tensor,
        bias: Option<Tensor>,
        stride: usize,
    ) -> Result<Self> {
        let (output, channels, _, _) = kernel.dims4()?;
        let kernel = kernel
            .permute((0, 2, 3, 1))?
            .reshape((output, 9 * channels))?;
        Ok(Self {
            kernel: Matrix::for_set(set, kernel.contiguous()?)?,
            bias,
            stride,
        })
    }
}

/// `[B, H, W, C]` to `[B, ceil(H / stride), ceil(W / stride), output]`.
///
/// # Errors
/// If the shapes do not fit each other.
pub fn conv3x3(xs: &Tensor, conv: &Conv3x3, activation: Activation) -> Result<Tensor> {
    let map = map_sizes(xs)?;
    let (output, depth) = conv.kernel.dims();
    let bias_fits = conv
        .bias
        .as_ref()
        .is_none_or(|bias| bias.dims() == [output]);
    if depth != 9 * map.channels || !bias_fits || conv.stride == 0 {
        candle_core::bail!("convolution: input {:?} and {conv:?} do not fit", xs.dims())
    }
    let Some(kernel) = conv.kernel.panels() else {
        #[cfg(feature = "cuda")]
        if gpu::supports(xs) {
            let patches = gpu::gather_patches(xs, conv.stride)?;
            return linear(&patches, &conv.kernel, conv.bias.as_ref(), activation, None);
        }
        return conv3x3_plain(xs, conv, activation);
    };
    let xs = xs.contiguous()?;
    let bias = conv.bias.as_ref().map(f32_vec).transpose()?;
    let view = xs.storage_and_layout();
    let xs = f32_slice(&view)?;
    let result = convolution::conv3x3(xs, map, kernel, bias.as_deref(), conv.stride, activation);
    let (rows, columns) = (
        map.height.div_ceil(conv.stride),
        map.width.div_ceil(conv.stride),
    );
    cpu_tensor(result, (map.batch, rows, columns, output))
}

/// The same as [`conv3x3`], as one matrix product over patches that plain tensor operations gather.
///
/// # Errors
/// If the shapes do not fit each other.
pub fn conv3x3_plain(xs: &Tensor, conv: &Conv3x3, activation: Activation) -> Result<Tensor> {
    let cells = kernel_cells(xs, conv.stride)?;
    let patches = Tensor::cat(&cells, D::Minus1)?;
    linear(&patches, &conv.kernel, conv.bias.as_ref(), activation, None)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::super::testing::convolve_with_candle;
    use super::*;
    use crate::models::ops::testing::assert_close;

    #[test]
    fn dense_convolution_equals_candle_on_every_instruction_set() -> Result<()> {
        let device = &Device::Cpu;
        for set in InstructionSet::available() {
            for (height, width, channels, output) in
                [(1, 1, 1, 1), (5, 8, 3, 20), (7, 4, 16, 33), (19, 9, 40, 7)]
            {
                for stride in [1, 2] {
                    let xs = Tensor::randn(0f32, 1.0, (2, height, width, channels), device)?;
                    let kernel = Tensor::randn(0f32, 0.3, (output, channels, 3, 3), device)?;
                    let bias = Tensor::randn(0f32, 1.0, output, device)?;
                    let conv = Conv3x3::for_set(Some(set), &kernel, Some(bias.clone()), stride)?;
                    let fast = conv3x3(&xs, &conv, Activation::Gelu)?;
                    let convolve = |xs: Tensor| xs.conv2d(&kernel, 1, stride, 1, 1);
                    let candle = convolve_with_candle(&xs, convolve, &bias)?;
                    let name = format!("{} {height}x{width}x{channels}/{stride}", set.name());
                    assert_close(&name, &fast, &candle, 5e-6)?;
                }
            }
        }
        Ok(())
    }
}
