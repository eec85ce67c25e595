//! Splits maps into windows.

use candle_core::{Result, Tensor};

/// `[B, H, W, C]`, whose sizes are multiples of the window's `(rows, columns)`, to `[B * W, rows, columns, C]`.
pub fn partition_windows(xs: &Tensor, (rows, columns): (usize, usize)) -> Result<Tensor> {
    let (batch, height, width, channels) = xs.dims4()?;
    xs.reshape((
        batch,
        height / rows,
        rows,
        width / columns,
        columns,
        channels,
    ))?
    .permute((0, 1, 3, 2, 4, 5))?
    .reshape(((), rows, columns, channels))
}

/// The inverse of [`partition_windows`]: to `[B, height, width, C]`.
pub fn merge_windows(
    windows: &Tensor,
    (rows, columns): (usize, usize),
    (height, width): (usize, usize),
) -> Result<Tensor> {
    let (count, _, _, channels) = windows.dims4()?;
    let (down, across) = (height / rows, width / columns);
    let batch = count / (down * across).max(1);
    windows
        .reshape((batch, down, across, rows, columns, channels))?
        .permute((0, 1, 3, 2, 4, 5))?
        .reshape(((), height, width, channels))
}
