//! The softmax of attention scores on a GPU, with the biases that are added to them first.

use candle_core::{Result, Tensor};

use super::windows::Geometry;
use super::{Argument, Grid, launch, size};

/// The biases that are added to scores `[images, heads, N, M]`.
#[derive(Default)]
pub(in crate::models::ops) struct Added<'a> {
    /// `[images or 1, heads or 1, N or 1, M]`.
    pub(in crate::models::ops) bias: Option<&'a Tensor>,
    /// Decomposed relative positions.
    pub(in crate::models::ops) relative: Option<Relative<'a>>,
    /// The windows, if the images are windows of a larger map. In shifted windows, tokens that are not neighbours in
    /// the map are masked from each other.
    pub(in crate::models::ops) windows: Option<Geometry>,
}

/// Decomposed relative positions in windows of `H` rows and `W` columns; `N = H * W`.
pub(in crate::models::ops) struct Relative<'a> {
    /// `[H, images * heads * W, H]`, indexed by the query's row; by its window, head and column; and by the key's row.
    pub(in crate::models::ops) by_row: &'a Tensor,
    /// `[W, images * heads * H, W]`: the same with rows and columns exchanged.
    pub(in crate::models::ops) by_column: &'a Tensor,
    /// The factor that both are multiplied by.
    pub(in crate::models::ops) scale: f64,
}

/// Computes the softmax over the last dimension in place. Nothing else may refer to the scores.
pub(in crate::models::ops) fn softmax(scores: Tensor, added: Added) -> Result<Tensor> {
    let (images, heads, queries, keys) = scores.dims4()?;
    let bias = match added.bias {
        Some(bias) => Some(bias.to_dtype(scores.dtype())?.contiguous()?),
        None => None,
    };
    let step = |dimension: usize| -> Result<u32> {
        let Some(bias) = &bias else { return Ok(0) };
        let sizes = &bias.dims()[dimension..];
        match sizes[0] {
            1 => Ok(0),
            _ => size(sizes[1..].iter().product()),
        }
    };
    let relative = added.relative.as_ref();
    let window = added.windows.unwrap_or_default();
    let starts = [Some(&scores), relative.map(|relative| relative.by_column)];
    // vector loads need the number of keys, and of columns for relative positions, to be a multiple of 16 bytes
    let row = relative.map_or(keys, |_| window.columns as usize);
    let is_wide = (257..=16 * 256).contains(&keys)
        && window.shift == 0
        && keys.is_multiple_of(8)
        && super::step(row, starts.into_iter().flatten()) > 1;
    let grid = match keys {
        // one thread for every 16 keys
        _ if is_wide => Grid {
            blocks: images * heads * queries,
            threads: (size(keys.div_ceil(16 * 32) * 32)?, 1),
        },
        // short rows: eight rows per block with one warp each; long rows: one row per block with several warps
        0..=256 => Grid {
            blocks: (images * heads * queries).div_ceil(8),
            threads: (32, 8),
        },
        _ => Grid {
            blocks: images * heads * queries,
            threads: (threads_of_row(keys), 1),
        },
    };
    // SAFETY: these are the kernel's arguments. Callers pass a bias that broadcasts to the scores, and relative
    // positions of windows with as many tokens as there are queries and keys. Nothing else refers to the scores.
    #[allow(unsafe_code)]
    unsafe {
        launch(
            if is_wide { "softmax_wide" } else { "softmax" },
            &scores,
            grid,
            &[
                Argument::Tensor(&scores),
                bias.as_ref().into(),
                Argument::Size(step(0)?),
                Argument::Size(step(1)?),
                Argument::Size(step(2)?),
                relative.map(|relative| relative.by_row).into(),
                relative.map(|relative| relative.by_column).into(),
                Argument::Size(window.rows),
                Argument::Size(window.columns),
                Argument::Number(relative.map_or(0.0, |relative| relative.scale as f32)),
                Argument::Size(window.shift),
                Argument::Size(window.across),
                Argument::Size(window.down),
                Argument::Size(size(images * heads)?),
                Argument::Size(size(heads)?),
                Argument::Size(size(queries)?),
                Argument::Size(size(keys)?),
            ],
        )?;
    }
    Ok(scores)
}

/// The number of threads that work on one row.
fn threads_of_row(keys: usize) -> u32 {
    match keys {
        0..=1023 => 128,
        1024..=8191 => 256,
        _ => 512,
    }
}
