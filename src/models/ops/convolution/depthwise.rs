//! Depthwise convolutions.

use candle_core::{Result, Tensor};

use super::{kernel_cells, map_sizes};
#[cfg(feature = "cuda")]
use crate::models::ops::gpu;
use crate::models::ops::kernels::depthwise as kernel;
use crate::models::ops::kernels::simd::InstructionSet;
use crate::models::ops::{Activation, activate_plain, cpu_tensor, f32_slice, f32_vec, has_kernel};

/// A depthwise convolution with a kernel of `SIDE` rows and columns, an odd number, and zero padding of half of it.
#[derive(Debug, Clone)]
pub struct Depthwise<const SIDE: usize> {
    /// `[SIDE * SIDE, C]`: the kernel's cells row by row.
    pub kernel: Tensor,
    /// `[C]`
    pub bias: Tensor,
    /// Pixels from one position of the kernel to the next.
    pub stride: usize,
}

/// A depthwise 3x3 convolution.
pub type Depthwise3x3 = Depthwise<3>;

/// A depthwise 5x5 convolution.
pub type Depthwise5x5 = Depthwise<5>;

/// `[B, H, W, C]` to `[B, ceil(H / stride), ceil(W / stride), C]`. candle runs one convolution per channel, which is
/// at least ten times slower than one pass over the map.
///
/// # Errors
/// If the shapes do not fit each other.
pub fn depthwise_conv3x3(
    xs: &Tensor,
    conv: &Depthwise3x3,
    activation: Activation,
) -> Result<Tensor> {
    depthwise(xs, conv, activation)
}

/// `[B, H, W, C]` to `[B, ceil(H / stride), ceil(W / stride), C]`.
///
/// # Errors
/// If the shapes do not fit each other.
pub fn depthwise_conv5x5(
    xs: &Tensor,
    conv: &Depthwise5x5,
    activation: Activation,
) -> Result<Tensor> {
    depthwise(xs, conv, activation)
}

pub(in crate::models::ops) fn depthwise<const SIDE: usize>(
    xs: &Tensor,
    conv: &Depthwise<SIDE>,
    activation: Activation,
) -> Result<Tensor> {
    check_depthwise(xs, conv)?;
    #[cfg(feature = "cuda")]
    if gpu::supports(xs) {
        return gpu::depthwise(xs, conv, activation);
    }
    match has_kernel(xs) {
        true => depthwise_with_kernel(InstructionSet::current(), xs, conv, activation),
        false => depthwise_plain(xs, conv, activation),
    }
}

pub(in crate::models::ops) fn depthwise_with_kernel<const SIDE: usize>(
    set: InstructionSet,
    xs: &Tensor,
    conv: &Depthwise<SIDE>,
    activation: Activation,
) -> Result<Tensor> {
    let map = map_sizes(xs)?;
    let xs = xs.contiguous()?;
    let (cells, bias) = (f32_vec(&conv.kernel)?, f32_vec(&conv.bias)?);
    let result = kernel::depthwise_convolve::<SIDE>(
        set,
        f32_slice(&xs.storage_and_layout())?,
        map,
        (&cells, &bias),
        conv.stride,
        activation,
    );
    let (rows, columns) = (
        map.height.div_ceil(conv.stride),
        map.width.div_ceil(conv.stride),
    );
    cpu_tensor(result, (map.batch, rows, columns, map.channels))
}

/// The same as [`depthwise_conv3x3`] or [`depthwise_conv5x5`], in plain tensor operations.
///
/// # Errors
/// If the shapes do not fit each other.
pub fn depthwise_plain<const SIDE: usize>(
    xs: &Tensor,
    conv: &Depthwise<SIDE>,
    activation: Activation,
) -> Result<Tensor> {
    check_depthwise(xs, conv)?;
    let mut sum: Option<Tensor> = None;
    for (cell, pixels) in kernel_cells(xs, SIDE, conv.stride)?.into_iter().enumerate() {
        let weighted = pixels.broadcast_mul(&conv.kernel.narrow(0, cell, 1)?)?;
        sum = Some(match sum {
            None => weighted,
            Some(sum) => (sum + weighted)?,
        });
    }
    match sum {
        Some(sum) => activate_plain(sum.broadcast_add(&conv.bias)?, activation),
        None => candle_core::bail!("depthwise convolution: the kernel has no cells"),
    }
}

fn check_depthwise<const SIDE: usize>(xs: &Tensor, conv: &Depthwise<SIDE>) -> Result<()> {
    let map = map_sizes(xs)?;
    let fits =
        conv.kernel.dims() == [SIDE * SIDE, map.channels] && conv.bias.dims() == [map.channels];
    if !fits || conv.stride == 0 {
        candle_core::bail!(
            "depthwise convolution: input {:?}, kernel {:?}, bias {:?}, stride {} do not fit",
            xs.dims(),
            conv.kernel.dims(),
            conv.bias.dims(),
            conv.stride
        )
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::super::testing::convolve_with_candle;
    use super::*;
    use crate::models::ops::testing::assert_close;

    #[test]
    fn depthwise_convolution_equals_candle_on_every_instruction_set() -> Result<()> {
        check_with_candle::<3>()?;
        check_with_candle::<5>()
    }

    fn check_with_candle<const SIDE: usize>() -> Result<()> {
        let device = &Device::Cpu;
        for set in InstructionSet::available() {
            for (height, width, channels) in [(1, 1, 1), (5, 8, 3), (7, 4, 16), (2, 9, 21)] {
                for stride in [1, 2] {
                    let xs = Tensor::randn(0f32, 1.0, (2, height, width, channels), device)?;
                    let conv = Depthwise::<SIDE> {
                        kernel: Tensor::randn(0f32, 1.0, (SIDE * SIDE, channels), device)?,
                        bias: Tensor::randn(0f32, 1.0, channels, device)?,
                        stride,
                    };
                    let fast = depthwise_with_kernel(set, &xs, &conv, Activation::Gelu)?;
                    let kernel = conv.kernel.t()?.reshape((channels, 1, SIDE, SIDE))?;
                    let convolve = |xs: Tensor| xs.conv2d(&kernel, SIDE / 2, stride, 1, channels);
                    let candle = convolve_with_candle(&xs, convolve, &conv.bias)?;
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
