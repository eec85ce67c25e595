//! Convolutions of channels-last maps.

mod dense;
mod depthwise;
mod upscale;

use candle_core::{Result, Tensor};

pub use self::dense::{Conv3x3, conv3x3, conv3x3_plain};
pub(super) use self::depthwise::depthwise_with_kernel;
pub use self::depthwise::{Depthwise3x3, depthwise_conv3x3, depthwise_conv3x3_plain};
pub use self::upscale::{Upscale2x, upscale2x, upscale2x_plain};
use super::kernels::convolution::MapSize;

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

#[cfg(test)]
mod testing {
    use super::*;

    /// The result of candle's own convolution for channels-last maps.
    pub(super) fn convolve_with_candle(
        xs: &Tensor,
        convolve: impl Fn(Tensor) -> Result<Tensor>,
        bias: &Tensor,
    ) -> Result<Tensor> {
        convolve(xs.permute((0, 3, 1, 2))?.contiguous()?)?
            .permute((0, 2, 3, 1))?
            .broadcast_add(bias)?
            .gelu_erf()
    }
}
