//! Maps cut into square windows, in which Swin and SAM's image encoder attend.

use candle_core::{Result, Tensor};

/// `[B, H, W, C]` to `[B * W, window, window, C]`, zero-padded at the bottom and the right to whole
/// windows.
pub fn partition_windows(xs: &Tensor, window: usize) -> Result<Tensor> {
    let (batch, height, width, channels) = xs.dims4()?;
    let (rows, columns) = (height.div_ceil(window), width.div_ceil(window));
    xs.pad_with_zeros(1, 0, rows * window - height)?
        .pad_with_zeros(2, 0, columns * window - width)?
        .reshape((batch, rows, window, columns, window, channels))?
        .permute((0, 1, 3, 2, 4, 5))?
        .reshape((batch * rows * columns, window, window, channels))
}

/// The inverse of [`partition_windows`]: to `[B, height, width, C]`, without the padding.
pub fn merge_windows(
    windows: &Tensor,
    window: usize,
    (height, width): (usize, usize),
) -> Result<Tensor> {
    let (rows, columns) = (height.div_ceil(window), width.div_ceil(window));
    let (count, _, _, channels) = windows.dims4()?;
    windows
        .reshape((
            count / (rows * columns),
            rows,
            columns,
            window,
            window,
            channels,
        ))?
        .permute((0, 1, 3, 2, 4, 5))?
        .reshape(((), rows * window, columns * window, channels))?
        .narrow(1, 0, height)?
        .narrow(2, 0, width)?
        .contiguous()
}
