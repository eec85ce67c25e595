//! Convolutions of channels-last maps.

use candle_core::{D, Result, Tensor};

#[cfg(feature = "cuda")]
use super::gpu;
use super::kernels::convolution::{self, MapSize};
use super::kernels::depthwise;
use super::kernels::simd::InstructionSet;
use super::{
    Activation, Matrix, activate_plain, cpu_tensor, f32_slice, f32_vec, has_kernel, kernel_set,
    linear,
};

/// The sizes of a map `[B, H, W, C]`.
///
/// # Errors
/// If the map has no pixels.
pub(super) fn map_sizes(xs: &Tensor) -> Result<MapSize> {
    let (batch, height, width, channels) = xs.dims4()?;
    if height * width * channels == 0 {
        candle_core::bail!("convolution: the map {:?} is empty", xs.dims())
    }
    Ok(MapSize {
        batch,
        height,
        width,
        channels,
    })
}

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
    pub(super) fn for_set(
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

/// The pixels under each cell of a 3x3 kernel, row by row: nine maps of the result's size.
fn kernel_cells(xs: &Tensor, stride: usize) -> Result<Vec<Tensor>> {
    let (batch, height, width, channels) = xs.dims4()?;
    let (rows, columns) = (height.div_ceil(stride), width.div_ceil(stride));
    // padded to whole strides, so that the pixels of every kernel cell are one strided view
    let padded = xs
        .pad_with_zeros(1, 1, rows * stride - height + 1 + stride)?
        .pad_with_zeros(2, 1, columns * stride - width + 1 + stride)?;
    (0..9)
        .map(|cell| {
            padded
                .narrow(1, cell / 3, rows * stride)?
                .narrow(2, cell % 3, columns * stride)?
                .reshape((batch, rows, stride, columns, stride, channels))?
                .narrow(2, 0, 1)?
                .narrow(4, 0, 1)?
                .reshape((batch, rows, columns, channels))
        })
        .collect()
}

/// A depthwise 3x3 convolution with a zero padding of one.
#[derive(Debug, Clone)]
pub struct Depthwise3x3 {
    /// `[9, C]`: the kernel's cells row by row.
    pub kernel: Tensor,
    /// `[C]`
    pub bias: Tensor,
    /// 1 or 2.
    pub stride: usize,
}

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
    check_depthwise(xs, conv)?;
    #[cfg(feature = "cuda")]
    if gpu::supports(xs) {
        return gpu::depthwise_conv3x3(xs, conv, activation);
    }
    match has_kernel(xs) {
        true => depthwise_with_kernel(InstructionSet::current(), xs, conv, activation),
        false => depthwise_conv3x3_plain(xs, conv, activation),
    }
}

pub(super) fn depthwise_with_kernel(
    set: InstructionSet,
    xs: &Tensor,
    conv: &Depthwise3x3,
    activation: Activation,
) -> Result<Tensor> {
    let map = map_sizes(xs)?;
    let xs = xs.contiguous()?;
    let (kernel, bias) = (f32_vec(&conv.kernel)?, f32_vec(&conv.bias)?);
    let result = depthwise::depthwise_conv3x3(
        set,
        f32_slice(&xs.storage_and_layout())?,
        map,
        (&kernel, &bias),
        conv.stride,
        activation,
    );
    let (rows, columns) = (
        map.height.div_ceil(conv.stride),
        map.width.div_ceil(conv.stride),
    );
    cpu_tensor(result, (map.batch, rows, columns, map.channels))
}

/// The same as [`depthwise_conv3x3`], in plain tensor operations.
///
/// # Errors
/// If the shapes do not fit each other.
pub fn depthwise_conv3x3_plain(
    xs: &Tensor,
    conv: &Depthwise3x3,
    activation: Activation,
) -> Result<Tensor> {
    check_depthwise(xs, conv)?;
    let mut sum: Option<Tensor> = None;
    for (cell, pixels) in kernel_cells(xs, conv.stride)?.into_iter().enumerate() {
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

fn check_depthwise(xs: &Tensor, conv: &Depthwise3x3) -> Result<()> {
    let map = map_sizes(xs)?;
    let fits = conv.kernel.dims() == [9, map.channels] && conv.bias.dims() == [map.channels];
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
    pub(super) fn for_set(
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

    use super::super::testing::assert_close;
    use super::*;

    /// The result of candle's own convolution for channels-last maps.
    fn convolve_with_candle(
        xs: &Tensor,
        convolve: impl Fn(Tensor) -> Result<Tensor>,
        bias: &Tensor,
    ) -> Result<Tensor> {
        convolve(xs.permute((0, 3, 1, 2))?.contiguous()?)?
            .permute((0, 2, 3, 1))?
            .broadcast_add(bias)?
            .gelu_erf()
    }

    #[test]
    fn depthwise_convolution_equals_candle_on_every_instruction_set() -> Result<()> {
        let device = &Device::Cpu;
        for set in InstructionSet::available() {
            for (height, width, channels) in [(1, 1, 1), (5, 8, 3), (7, 4, 16), (2, 9, 21)] {
                for stride in [1, 2] {
                    let xs = Tensor::randn(0f32, 1.0, (2, height, width, channels), device)?;
                    let conv = Depthwise3x3 {
                        kernel: Tensor::randn(0f32, 1.0, (9, channels), device)?,
                        bias: Tensor::randn(0f32, 1.0, channels, device)?,
                        stride,
                    };
                    let fast = depthwise_with_kernel(set, &xs, &conv, Activation::Gelu)?;
                    let kernel = conv.kernel.t()?.reshape((channels, 1, 3, 3))?;
                    let convolve = |xs: Tensor| xs.conv2d(&kernel, 1, stride, 1, channels);
                    let candle = convolve_with_candle(&xs, convolve, &conv.bias)?;
                    let name = format!("{} {height}x{width}x{channels}/{stride}", set.name());
                    assert_close(&name, &fast, &candle, 5e-6)?;
                }
            }
        }
        Ok(())
    }

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
