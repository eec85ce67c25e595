//! Dense convolutions.

use candle_core::{D, Result, Tensor};

use super::{kernel_cells, map_sizes};
#[cfg(feature = "cuda")]
use crate::models::ops::gpu;
use crate::models::ops::kernels::convolution;
use crate::models::ops::kernels::convolution::MapSize;
use crate::models::ops::kernels::simd::InstructionSet;
use crate::models::ops::{Activation, Matrix, cpu_tensor, f32_slice, f32_vec, kernel_set, linear};

/// A dense convolution with a kernel of `SIDE` rows and columns, an odd number, and zero padding of half of it.
#[derive(Debug, Clone)]
pub struct Conv<const SIDE: usize> {
    /// `[output, SIDE * SIDE * C]`: the kernel's cells row by row, channels last.
    pub kernel: Matrix,
    /// `[output]`
    pub bias: Option<Tensor>,
    /// Pixels from one position of the kernel to the next.
    pub stride: usize,
}

/// A dense 3x3 convolution.
pub type Conv3x3 = Conv<3>;

/// A dense 7x7 convolution.
pub type Conv7x7 = Conv<7>;

impl<const SIDE: usize> Conv<SIDE> {
    /// Converts a kernel from the checkpoint's layout `[output, C, SIDE, SIDE]`.
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
        let (output, channels, rows, columns) = kernel.dims4()?;
        if (rows, columns) != (SIDE, SIDE) {
            candle_core::bail!(
                "convolution: the kernel {:?} is not {SIDE}x{SIDE}",
                kernel.dims()
            )
        }
        let kernel = kernel
            .permute((0, 2, 3, 1))?
            .reshape((output, SIDE * SIDE * channels))?;
        Ok(Self {
            kernel: Matrix::for_set(set, kernel.contiguous()?)?,
            bias,
            stride,
        })
    }

    /// The sizes of the map, if it fits.
    pub(super) fn check(&self, xs: &Tensor) -> Result<MapSize> {
        let map = map_sizes(xs)?;
        let (output, depth) = self.kernel.dims();
        let bias_fits = |bias: &Tensor| bias.dims() == [output];
        let fits = depth == SIDE * SIDE * map.channels
            && self.bias.as_ref().is_none_or(bias_fits)
            && self.stride > 0;
        if !fits {
            candle_core::bail!("convolution: input {:?} and {self:?} do not fit", xs.dims())
        }
        Ok(map)
    }
}

/// `[B, H, W, C]` to `[B, ceil(H / stride), ceil(W / stride), output]`.
///
/// # Errors
/// If the shapes do not fit each other.
pub fn conv3x3(xs: &Tensor, conv: &Conv3x3, activation: Activation) -> Result<Tensor> {
    convolve(xs, conv, activation)
}

/// `[B, H, W, C]` to `[B, ceil(H / stride), ceil(W / stride), output]`.
///
/// # Errors
/// If the shapes do not fit each other.
pub fn conv7x7(xs: &Tensor, conv: &Conv7x7, activation: Activation) -> Result<Tensor> {
    convolve(xs, conv, activation)
}

pub(in crate::models::ops) fn convolve<const SIDE: usize>(
    xs: &Tensor,
    conv: &Conv<SIDE>,
    activation: Activation,
) -> Result<Tensor> {
    let map = conv.check(xs)?;
    let Some(kernel) = conv.kernel.panels() else {
        #[cfg(feature = "cuda")]
        if gpu::supports(xs) {
            let patches = gpu::gather_patches(xs, SIDE, conv.stride)?;
            return linear(&patches, &conv.kernel, conv.bias.as_ref(), activation, None);
        }
        return convolve_plain(xs, conv, activation);
    };
    let xs = xs.contiguous()?;
    let bias = conv.bias.as_ref().map(f32_vec).transpose()?;
    let result = convolution::convolve(
        f32_slice(&xs.storage_and_layout())?,
        map,
        (SIDE, conv.stride),
        kernel,
        bias.as_deref(),
        activation,
    );
    let (rows, columns) = (
        map.height.div_ceil(conv.stride),
        map.width.div_ceil(conv.stride),
    );
    cpu_tensor(result, (map.batch, rows, columns, kernel.n()))
}

/// The same as [`conv3x3`] or [`conv7x7`], as one matrix product over patches that plain tensor operations gather.
///
/// # Errors
/// If the shapes do not fit each other.
pub fn convolve_plain<const SIDE: usize>(
    xs: &Tensor,
    conv: &Conv<SIDE>,
    activation: Activation,
) -> Result<Tensor> {
    conv.check(xs)?;
    let cells = kernel_cells(xs, SIDE, conv.stride)?;
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
        check_with_candle::<3>(&[1, 2])?;
        check_with_candle::<7>(&[1, 4])
    }

    fn check_with_candle<const SIDE: usize>(strides: &[usize]) -> Result<()> {
        let device = &Device::Cpu;
        for set in InstructionSet::available() {
            for (height, width, channels, output) in [
                (1, 1, 1, 1),
                (5, 8, 3, 20),
                (7, 4, 16, 33),
                (19, 9, 40, 7),
                (4, 5, 260, 9),
                (3, 6, 131, 5),
            ] {
                for &stride in strides {
                    let xs = Tensor::randn(0f32, 1.0, (2, height, width, channels), device)?;
                    let kernel = Tensor::randn(0f32, 0.3, (output, channels, SIDE, SIDE), device)?;
                    let bias = Tensor::randn(0f32, 1.0, output, device)?;
                    let conv =
                        Conv::<SIDE>::for_set(Some(set), &kernel, Some(bias.clone()), stride)?;
                    let fast = convolve(&xs, &conv, Activation::Gelu)?;
                    let convolve = |xs: Tensor| xs.conv2d(&kernel, SIDE / 2, stride, 1, 1);
                    let candle = convolve_with_candle(&xs, convolve, &bias)?;
                    let name = format!(
                        "{} {SIDE}x{SIDE} {height}x{width}x{channels}/{stride}",
                        set.name()
                    );
                    assert_close(&name, &fast, &candle, 5e-6)?;
                }
            }
        }
        Ok(())
    }
}
