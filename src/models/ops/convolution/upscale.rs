//! Transposed 2x2 convolutions.

use candle_core::{Result, Tensor};

use super::map_sizes;
use crate::models::ops::kernels::convolution;
use crate::models::ops::kernels::simd::InstructionSet;
use crate::models::ops::{Activation, Matrix, cpu_tensor, f32_slice, f32_vec, kernel_set, linear};

/// A transposed convolution with kernel size 2 and stride 2: every pixel becomes a 2x2 block.
#[derive(Debug, Clone)]
pub struct Upscale2x {
    /// For each row of a block, `[2 * output, C]`; the left pixel's channels come first.
    pub kernels: [Matrix; 2],
    /// `[2 * output]`
    pub bias: Tensor,
}

impl Upscale2x {
    /// Converts a kernel from the checkpoint's layout `[C, output, 2, 2]`, with its bias `[output]`.
    pub fn new(kernel: &Tensor, bias: &Tensor) -> Result<Self> {
        Self::for_set(kernel_set(kernel), kernel, bias)
    }

    /// Uses the kernels of an instruction set, or plain tensor operations if `set` is `None`.
    pub(in crate::models::ops) fn for_set(
        set: Option<InstructionSet>,
        kernel: &Tensor,
        bias: &Tensor,
    ) -> Result<Self> {
        let (input, output, _, _) = kernel.dims4()?;
        // [C, output, 2, 2] -> [2, 2 * output, C]
        let kernel = kernel
            .permute((2, 3, 1, 0))?
            .reshape((2, 2 * output, input))?;
        let row = |i: usize| Matrix::for_set(set, kernel.get(i)?.contiguous()?);
        Ok(Self {
            kernels: [row(0)?, row(1)?],
            bias: bias.repeat(2)?,
        })
    }
}

/// `[B, H, W, C]` to `[B, 2 H, 2 W, output]`.
///
/// # Errors
/// If the shapes do not fit each other.
pub fn upscale2x(xs: &Tensor, upscale: &Upscale2x, activation: Activation) -> Result<Tensor> {
    let map = map_sizes(xs)?;
    let (double, input) = upscale.kernels[0].dims();
    let fits = upscale.kernels[1].dims() == (double, map.channels)
        && input == map.channels
        && double % 2 == 0
        && upscale.bias.dims() == [double];
    if !fits {
        candle_core::bail!(
            "transposed convolution: input {:?} and {upscale:?} do not fit",
            xs.dims()
        )
    }
    let [Some(top), Some(bottom)] = upscale.kernels.each_ref().map(Matrix::panels) else {
        return upscale2x_plain(xs, upscale, activation);
    };
    let xs = xs.contiguous()?;
    let bias = f32_vec(&upscale.bias)?;
    let view = xs.storage_and_layout();
    let result = convolution::upscale2x(f32_slice(&view)?, map, [top, bottom], &bias, activation);
    cpu_tensor(
        result,
        (map.batch, 2 * map.height, 2 * map.width, double / 2),
    )
}

/// The same as [`upscale2x`], with one linear layer per row of the blocks.
///
/// # Errors
/// If the shapes do not fit each other.
pub fn upscale2x_plain(xs: &Tensor, upscale: &Upscale2x, activation: Activation) -> Result<Tensor> {
    let (batch, height, width, _) = xs.dims4()?;
    let [top, bottom] = upscale
        .kernels
        .each_ref()
        .map(|kernel| linear(xs, kernel, Some(&upscale.bias), activation, None));
    // [B, H, W, 2 * output] twice -> [B, H, 2, W * 2 * output]
    Tensor::stack(&[top?, bottom?], 2)?.reshape((batch, 2 * height, 2 * width, ()))
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::super::testing::convolve_with_candle;
    use super::*;
    use crate::models::ops::testing::assert_close;

    #[test]
    fn upscaling_equals_candle_on_every_instruction_set() -> Result<()> {
        let device = &Device::Cpu;
        for set in InstructionSet::available() {
            for (batch, height, width, channels, output) in
                [(1, 1, 1, 1, 1), (2, 3, 5, 7, 9), (1, 4, 4, 32, 16)]
            {
                let xs = Tensor::randn(0f32, 1.0, (batch, height, width, channels), device)?;
                let kernel = Tensor::randn(0f32, 1.0, (channels, output, 2, 2), device)?;
                let bias = Tensor::randn(0f32, 1.0, output, device)?;
                let upscale = Upscale2x::for_set(Some(set), &kernel, &bias)?;
                let fast = upscale2x(&xs, &upscale, Activation::Gelu)?;
                let convolve = |xs: Tensor| xs.conv_transpose2d(&kernel, 0, 0, 2, 1);
                let candle = convolve_with_candle(&xs, convolve, &bias)?;
                let name = format!("{} {height}x{width}x{channels}", set.name());
                assert_close(&name, &fast, &candle, 5e-6)?;
            }
        }
        Ok(())
    }
}
