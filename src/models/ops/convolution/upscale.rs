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

/// `activation(upscaled + addend)`: `[B, H, W, C]` to `[B, 2 H, 2 W, output]`. The addend has the result's shape, or the
/// shape of one image, `[1, ...]`, and is then added to all images.
///
/// # Errors
/// If the shapes do not fit each other.
pub fn upscale2x(
    xs: &Tensor,
    upscale: &Upscale2x,
    addend: Option<&Tensor>,
    activation: Activation,
) -> Result<Tensor> {
    let map = map_sizes(xs)?;
    let (double, input) = upscale.kernels[0].dims();
    let of_image = [2 * map.height, 2 * map.width, double / 2];
    let addend_fits = |addend: &Tensor| match addend.dims() {
        [images, rest @ ..] => [1, map.batch].contains(images) && rest == of_image,
        [] => false,
    };
    let fits = upscale.kernels[1].dims() == (double, map.channels)
        && input == map.channels
        && double % 2 == 0
        && upscale.bias.dims() == [double]
        && addend.is_none_or(addend_fits);
    if !fits {
        candle_core::bail!(
            "transposed convolution: input {:?}, {upscale:?} and addend {:?} do not fit",
            xs.dims(),
            addend.map(Tensor::dims)
        )
    }
    let [Some(top), Some(bottom)] = upscale.kernels.each_ref().map(Matrix::panels) else {
        return upscale2x_plain(xs, upscale, addend, activation);
    };
    let xs = xs.contiguous()?;
    let addend = addend.map(Tensor::contiguous).transpose()?;
    let addend = addend.as_ref().map(Tensor::storage_and_layout);
    let bias = f32_vec(&upscale.bias)?;
    let view = xs.storage_and_layout();
    let result = convolution::upscale2x(
        f32_slice(&view)?,
        map,
        [top, bottom],
        &bias,
        addend.as_ref().map(f32_slice).transpose()?,
        activation,
    );
    let [rows, columns, output] = of_image;
    cpu_tensor(result, (map.batch, rows, columns, output))
}

/// The same as [`upscale2x`], with one linear layer per row of the blocks.
///
/// # Errors
/// If the shapes do not fit each other.
pub fn upscale2x_plain(
    xs: &Tensor,
    upscale: &Upscale2x,
    addend: Option<&Tensor>,
    activation: Activation,
) -> Result<Tensor> {
    let (batch, height, width, _) = xs.dims4()?;
    let row = |i: usize| {
        // every second row of the addend, as [B or 1, H, W, 2 * output]
        let addend = match addend {
            Some(addend) => {
                let rows = addend.reshape(((), height, 2, width, upscale.kernels[i].dims().0))?;
                Some(rows.narrow(2, i, 1)?.squeeze(2)?)
            }
            None => None,
        };
        let (kernel, bias) = (&upscale.kernels[i], Some(&upscale.bias));
        linear(xs, kernel, bias, activation, addend.as_ref())
    };
    // [B, H, W, 2 * output] twice -> [B, H, 2, W * 2 * output]
    Tensor::stack(&[row(0)?, row(1)?], 2)?.reshape((batch, 2 * height, 2 * width, ()))
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
                let fast = upscale2x(&xs, &upscale, None, Activation::Gelu)?;
                let convolve = |xs: Tensor| xs.conv_transpose2d(&kernel, 0, 0, 2, 1);
                let candle = convolve_with_candle(&xs, convolve, &bias)?;
                let name = format!("{} {height}x{width}x{channels}", set.name());
                assert_close(&name, &fast, &candle, 5e-6)?;
            }
        }
        Ok(())
    }

    #[test]
    fn the_addend_of_one_image_is_added_to_all_before_the_activation() -> Result<()> {
        let device = &Device::Cpu;
        let xs = Tensor::randn(0f32, 1.0, (3, 2, 5, 7), device)?;
        let kernel = Tensor::randn(0f32, 1.0, (7, 9, 2, 2), device)?;
        let bias = Tensor::randn(0f32, 1.0, 9, device)?;
        for images in [1, 3] {
            let addend = Tensor::randn(0f32, 1.0, (images, 4, 10, 9), device)?;
            for set in InstructionSet::available() {
                let upscale = Upscale2x::for_set(Some(set), &kernel, &bias)?;
                let added = upscale2x(&xs, &upscale, Some(&addend), Activation::Gelu)?;
                let separate = upscale2x(&xs, &upscale, None, Activation::None)?
                    .broadcast_add(&addend)?
                    .gelu_erf()?;
                assert_close(set.name(), &added, &separate, 5e-6)?;
            }
        }
        let upscale = Upscale2x::new(&kernel, &bias)?;
        let other = Tensor::zeros((2, 4, 10, 9), candle_core::DType::F32, device)?;
        let error = upscale2x(&xs, &upscale, Some(&other), Activation::None);
        assert!(error.is_err_and(|e| e.to_string().contains("addend Some([2, 4, 10, 9])")));
        Ok(())
    }
}
