//! Convolutions of channels-last maps.

mod dense;
mod depthwise;
mod fused;
mod upscale;

use candle_core::{Result, Tensor};

pub(super) use self::dense::convolve;
pub use self::dense::{Conv, Conv3x3, Conv7x7, conv3x3, conv7x7, convolve_plain};
pub use self::depthwise::{
    Depthwise, Depthwise3x3, Depthwise5x5, depthwise_conv3x3, depthwise_conv5x5, depthwise_plain,
};
pub(super) use self::depthwise::{depthwise, depthwise_with_kernel};
pub use self::fused::{fused_mb_conv, fused_mb_conv_plain};
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

/// The pixels under each cell of a kernel, row by row: as many maps of the result's size as the kernel has cells.
fn kernel_cells(xs: &Tensor, side: usize, stride: usize) -> Result<Vec<Tensor>> {
    let (batch, height, width, channels) = xs.dims4()?;
    let (rows, columns) = (height.div_ceil(stride), width.div_ceil(stride));
    // padded to whole strides, so that the pixels of every kernel cell are one strided view
    let before = side / 2;
    let padded = xs
        .pad_with_zeros(1, before, rows * stride - height + before)?
        .pad_with_zeros(2, before, columns * stride - width + before)?;
    (0..side * side)
        .map(|cell| {
            padded
                .narrow(1, cell / side, rows * stride)?
                .narrow(2, cell % side, columns * stride)?
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
