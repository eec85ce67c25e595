//! Depthwise 3x3 convolution of channels-last maps.

use candle_core::{CpuStorage, CustomOp3, DType, Device, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::contiguous_f32;

/// Convolves every channel with its own 3x3 kernel, zero-padded by one.
///
/// - `xs` `[B, H, W, C]`
/// - `kernel` `[9, C]`, row by row
/// - `bias` `[C]`
///
/// Returns `[B, ceil(H / stride), ceil(W / stride), C]`. candle runs one convolution per channel, ten and
/// more times slower than one pass over the map. That pass runs on the CPU in f32; elsewhere
/// [`depthwise_conv3x3_plain`].
///
/// # Errors
/// If the shapes do not fit each other.
pub fn depthwise_conv3x3(
    xs: &Tensor,
    kernel: &Tensor,
    bias: &Tensor,
    stride: usize,
) -> Result<Tensor> {
    check(xs, kernel, bias, stride)?;
    if matches!(xs.device(), Device::Cpu) && xs.dtype() == DType::F32 {
        let op = DepthwiseConv3x3 { stride };
        return xs
            .contiguous()?
            .apply_op3_no_bwd(&kernel.contiguous()?, &bias.contiguous()?, &op);
    }
    depthwise_conv3x3_plain(xs, kernel, bias, stride)
}

/// The same as [`depthwise_conv3x3`], in plain tensor operations.
///
/// # Errors
/// If the shapes do not fit each other.
pub fn depthwise_conv3x3_plain(
    xs: &Tensor,
    kernel: &Tensor,
    bias: &Tensor,
    stride: usize,
) -> Result<Tensor> {
    check(xs, kernel, bias, stride)?;
    let (batch, height, width, channels) = xs.dims4()?;
    let (rows, columns) = (height.div_ceil(stride), width.div_ceil(stride));
    // up to whole strides, so that every cell's pixels are one strided view
    let padded = xs
        .pad_with_zeros(1, 1, rows * stride - height + 1 + stride)?
        .pad_with_zeros(2, 1, columns * stride - width + 1 + stride)?;
    let mut sum: Option<Tensor> = None;
    for cell in 0..9 {
        let seen = padded
            .narrow(1, cell / 3, rows * stride)?
            .narrow(2, cell % 3, columns * stride)?
            .reshape((batch, rows, stride, columns, stride, channels))?
            .narrow(2, 0, 1)?
            .narrow(4, 0, 1)?
            .reshape((batch, rows, columns, channels))?;
        let weighted = seen.broadcast_mul(&kernel.narrow(0, cell, 1)?)?;
        sum = Some(match sum {
            None => weighted,
            Some(sum) => (sum + weighted)?,
        });
    }
    match sum {
        Some(sum) => sum.broadcast_add(bias),
        None => candle_core::bail!("a kernel without cells"),
    }
}

fn check(xs: &Tensor, kernel: &Tensor, bias: &Tensor, stride: usize) -> Result<()> {
    let (_, height, width, channels) = xs.dims4()?;
    let fits = kernel.dims() == [9, channels] && bias.dims() == [channels];
    if !fits || stride == 0 || height == 0 || width == 0 {
        candle_core::bail!(
            "depthwise convolution: input {:?}, kernel {:?}, bias {:?}, stride {stride} do not fit",
            xs.dims(),
            kernel.dims(),
            bias.dims()
        )
    }
    Ok(())
}

/// The CPU pass.
#[derive(Debug)]
struct DepthwiseConv3x3 {
    stride: usize,
}

impl CustomOp3 for DepthwiseConv3x3 {
    fn name(&self) -> &'static str {
        "depthwise-conv3x3"
    }

    fn cpu_fwd(
        &self,
        xs: &CpuStorage,
        xs_layout: &Layout,
        kernel: &CpuStorage,
        kernel_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (batch, height, width, channels) = xs_layout.shape().dims4()?;
        let xs = contiguous_f32(self.name(), xs, xs_layout)?;
        let kernel = contiguous_f32(self.name(), kernel, kernel_layout)?;
        let bias = contiguous_f32(self.name(), bias, bias_layout)?;
        let (rows, columns) = (height.div_ceil(self.stride), width.div_ceil(self.stride));
        let mut output = vec![0f32; batch * rows * columns * channels];
        output
            .par_chunks_mut(columns * channels)
            .enumerate()
            .for_each(|(index, output)| {
                let (image, row) = (index / rows, index % rows);
                let map = &xs[image * height * width * channels..][..height * width * channels];
                for (column, output) in output.chunks_mut(channels).enumerate() {
                    output.copy_from_slice(bias);
                    for cell in 0..9 {
                        // a pixel at the edge has no neighbour there
                        let y = (row * self.stride + cell / 3).wrapping_sub(1);
                        let x = (column * self.stride + cell % 3).wrapping_sub(1);
                        if y >= height || x >= width {
                            continue;
                        }
                        let pixel = &map[(y * width + x) * channels..][..channels];
                        let kernel = &kernel[cell * channels..][..channels];
                        for ((out, x), k) in output.iter_mut().zip(pixel).zip(kernel) {
                            *out += x * k;
                        }
                    }
                }
            });
        let shape = Shape::from((batch, rows, columns, channels));
        Ok((CpuStorage::F32(output), shape))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_pass_equals_plain_tensors_and_candle() -> Result<()> {
        let device = &Device::Cpu;
        for (height, width, channels) in [(1, 1, 1), (5, 8, 3), (7, 4, 16), (2, 9, 5)] {
            for stride in [1, 2] {
                let xs = Tensor::randn(0f32, 1.0, (2, height, width, channels), device)?;
                let kernel = Tensor::randn(0f32, 1.0, (9, channels), device)?;
                let bias = Tensor::randn(0f32, 1.0, channels, device)?;
                let fast = depthwise_conv3x3(&xs, &kernel, &bias, stride)?;
                let plain = depthwise_conv3x3_plain(&xs, &kernel, &bias, stride)?;
                let candle = xs
                    .permute((0, 3, 1, 2))?
                    .contiguous()?
                    .conv2d(
                        &kernel.t()?.reshape((channels, 1, 3, 3))?,
                        1,
                        stride,
                        1,
                        channels,
                    )?
                    .permute((0, 2, 3, 1))?
                    .broadcast_add(&bias)?;
                for other in [plain, candle] {
                    assert_eq!(fast.dims(), other.dims());
                    let difference = (&fast - other)?.abs()?.max_all()?.to_scalar::<f32>()?;
                    assert!(
                        difference < 1e-5,
                        "{height}x{width}x{channels}/{stride}: {difference:e}"
                    );
                }
            }
        }
        Ok(())
    }
}
