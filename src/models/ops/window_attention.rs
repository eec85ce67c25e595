//! Attention in the windows of a map.

use std::fmt;
use std::sync::Arc;

use candle_core::{Device, Result, Tensor};

#[cfg(feature = "cuda")]
use super::gpu;
use super::kernels::simd::InstructionSet;
use super::kernels::window_attention::{self as kernel, RelativePositions, Windows};
use super::{attention_plain, cpu_tensor, f32_slice, f32_vec, has_kernel};
use crate::models::windows::{merge_windows, partition_windows};

/// The position bias that is added to the scores of a window of `N = rows * columns` tokens.
#[derive(Clone)]
pub enum PositionBias {
    /// `[heads, N, N]`: per head, query and key.
    Table(Tensor),
    /// Decomposed relative positions: the products of a query with tables `[rows, rows, D]` and
    /// `[columns, columns, D]`, indexed by the rows and the columns of query and key.
    Relative {
        /// The table of the rows.
        by_row: Tensor,
        /// The table of the columns.
        by_column: Tensor,
        /// Both tables, packed for the kernel.
        packed: Option<Arc<PackedRelativePositions>>,
    },
}

/// Packed tables of relative positions.
pub struct PackedRelativePositions(RelativePositions);

impl fmt::Debug for PositionBias {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Table(table) => write!(f, "Table({:?})", table.dims()),
            Self::Relative { by_row, .. } => write!(f, "Relative({:?})", by_row.dims()),
        }
    }
}

impl PositionBias {
    /// Decomposed relative positions, packed if the kernels take them.
    pub fn relative(by_row: Tensor, by_column: Tensor) -> Result<Self> {
        Self::relative_for_set(InstructionSet::current(), by_row, by_column)
    }

    pub(super) fn relative_for_set(
        set: InstructionSet,
        by_row: Tensor,
        by_column: Tensor,
    ) -> Result<Self> {
        let packed = if has_kernel(&by_row) {
            let ((rows, _, width), (columns, _, _)) = (by_row.dims3()?, by_column.dims3()?);
            let positions = RelativePositions::new(
                set,
                (&f32_vec(&by_row)?, rows),
                (&f32_vec(&by_column)?, columns),
                width,
            );
            Some(Arc::new(PackedRelativePositions(positions)))
        } else {
            None
        };
        Ok(Self::Relative {
            by_row,
            by_column,
            packed,
        })
    }
}

/// Attention among the tokens of every window.
///
/// - `qkv` `[B, H, W, 3 * heads * D]`: for each token the queries of all heads, then the keys, then the values
/// - `padding_token` `[3 * heads * D]`: the contents of a token that is in a window but beyond the map's edge
///
/// Returns `[B, H, W, heads * D]`.
///
/// # Errors
/// If the shapes do not fit each other.
pub fn window_attention(
    qkv: &Tensor,
    padding_token: &Tensor,
    heads: usize,
    windows: Windows,
    bias: Option<&PositionBias>,
) -> Result<Tensor> {
    check(qkv, padding_token, heads, windows, bias)?;
    #[cfg(feature = "cuda")]
    if gpu::supports(qkv) {
        return gpu::window_attention(qkv, padding_token, heads, windows, bias);
    }
    match has_kernel(qkv) {
        true => with_kernel(
            InstructionSet::current(),
            qkv,
            padding_token,
            heads,
            windows,
            bias,
        ),
        false => window_attention_plain(qkv, padding_token, heads, windows, bias),
    }
}

pub(super) fn with_kernel(
    set: InstructionSet,
    qkv: &Tensor,
    padding_token: &Tensor,
    heads: usize,
    windows: Windows,
    bias: Option<&PositionBias>,
) -> Result<Tensor> {
    let (batch, height, width, channels) = qkv.dims4()?;
    let channels = channels / 3;
    let qkv = qkv.contiguous()?;
    let table = match bias {
        Some(PositionBias::Table(table)) => Some(table.contiguous()?),
        _ => None,
    };
    let table_view = table.as_ref().map(Tensor::storage_and_layout);
    let bias = match (bias, &table_view) {
        (_, Some(view)) => kernel::PositionBias::Table(f32_slice(view)?),
        (Some(PositionBias::Relative { packed, .. }), _) => match packed {
            Some(packed) => kernel::PositionBias::Relative(&packed.0),
            None => candle_core::bail!(
                "window attention: the relative positions are not packed for the kernels"
            ),
        },
        _ => kernel::PositionBias::None,
    };
    let result = kernel::window_attention(
        set,
        f32_slice(&qkv.storage_and_layout())?,
        &f32_vec(padding_token)?,
        windows,
        (heads, channels / heads),
        bias,
    );
    cpu_tensor(result, (batch, height, width, channels))
}

/// The same as [`window_attention`], in plain tensor operations.
///
/// # Errors
/// If the shapes do not fit each other.
pub fn window_attention_plain(
    qkv: &Tensor,
    padding_token: &Tensor,
    heads: usize,
    windows: Windows,
    bias: Option<&PositionBias>,
) -> Result<Tensor> {
    check(qkv, padding_token, heads, windows, bias)?;
    let (batch, _, _, channels) = qkv.dims4()?;
    let channels = channels / 3;
    let tokens = split_windows(qkv, padding_token, windows)?;
    let part = |i: usize| tokens.narrow(2, i * channels, channels)?.contiguous();
    let query = part(0)?;
    let position_bias = match bias {
        None => None,
        Some(PositionBias::Table(table)) => Some(table.unsqueeze(0)?),
        Some(PositionBias::Relative {
            by_row, by_column, ..
        }) => Some(relative_bias(&query, by_row, by_column, heads)?),
    };
    let mask = match windows.shift {
        0 => None,
        _ => {
            let mask = shifted_window_mask(windows, qkv.device())?.to_dtype(qkv.dtype())?;
            Some(mask.repeat((batch, 1, 1))?.unsqueeze(1)?)
        }
    };
    let bias = match (position_bias, mask) {
        (Some(bias), Some(mask)) => Some(bias.broadcast_add(&mask)?),
        (bias, mask) => bias.or(mask),
    };
    let attended = attention_plain(&query, &part(1)?, &part(2)?, bias.as_ref(), heads)?;
    join_windows(&attended, windows)
}

/// Splits maps `[B, H, W, C]` into windows `[W, N, C]`. Positions beyond the map's edge get `padding_token` `[C]`.
pub(super) fn split_windows(
    xs: &Tensor,
    padding_token: &Tensor,
    windows: Windows,
) -> Result<Tensor> {
    let (_, height, width, _) = xs.dims4()?;
    let (rows, columns) = (windows.window_height, windows.window_width);
    let (padded_height, padded_width) = (
        height.next_multiple_of(rows),
        width.next_multiple_of(columns),
    );
    // the padding is zero, so the padding token can be added there
    let padded = xs
        .pad_with_zeros(1, 0, padded_height - height)?
        .pad_with_zeros(2, 0, padded_width - width)?;
    let padded = if (padded_height, padded_width) == (height, width) {
        padded
    } else {
        let inside = Tensor::zeros((1, height, width, 1), xs.dtype(), xs.device())?;
        let outside = (inside - 1.0)?
            .pad_with_zeros(1, 0, padded_height - height)?
            .pad_with_zeros(2, 0, padded_width - width)?;
        padded.broadcast_add(&(outside + 1.0)?.broadcast_mul(padding_token)?)?
    };
    let shift = windows.shift as i32;
    let rolled = padded.roll(-shift, 1)?.roll(-shift, 2)?;
    partition_windows(&rolled, (rows, columns))?.flatten(1, 2)
}

/// The inverse of [`split_windows`].
pub(super) fn join_windows(xs: &Tensor, windows: Windows) -> Result<Tensor> {
    let (rows, columns) = (windows.window_height, windows.window_width);
    let (height, width) = (windows.height, windows.width);
    let padded = (
        height.next_multiple_of(rows),
        width.next_multiple_of(columns),
    );
    let shift = windows.shift as i32;
    let xs = xs.reshape(((), rows, columns, xs.dim(2)?))?;
    merge_windows(&xs, (rows, columns), padded)?
        .roll(shift, 1)?
        .roll(shift, 2)?
        .narrow(1, 0, height)?
        .narrow(2, 0, width)?
        .contiguous()
}

/// The queries of windows `[W, N, heads * D]` to biases `[W, heads, N, N]` (`get_decomposed_rel_pos`).
fn relative_bias(
    query: &Tensor,
    by_row: &Tensor,
    by_column: &Tensor,
    heads: usize,
) -> Result<Tensor> {
    let (count, tokens, channels) = query.dims3()?;
    let ((height, _, d), (width, _, _)) = (by_row.dims3()?, by_column.dims3()?);
    let rows = count * heads;
    let query = query
        .reshape((count, tokens, heads, channels / heads))?
        .transpose(1, 2)?
        .reshape((rows, height, width, d))?;
    // [rows, H, W, H] and [rows, H, W, W]: the bias of every query for each row and each column
    let to_rows = query
        .transpose(0, 1)?
        .reshape((height, rows * width, d))?
        .matmul(&by_row.transpose(1, 2)?)?
        .reshape((height, rows, width, height))?
        .transpose(0, 1)?;
    let to_columns = query
        .permute((2, 0, 1, 3))?
        .reshape((width, rows * height, d))?
        .matmul(&by_column.transpose(1, 2)?)?
        .reshape((width, rows, height, width))?
        .permute((1, 2, 0, 3))?;
    to_rows
        .unsqueeze(4)?
        .broadcast_add(&to_columns.unsqueeze(3)?)?
        .reshape((count, heads, tokens, tokens))
}

/// `[windows of an image, N, N]`: 0 if two tokens of a shifted window were neighbours before the shift, else -100
/// (the reference's value).
fn shifted_window_mask(windows: Windows, device: &Device) -> Result<Tensor> {
    let tokens = windows.tokens();
    let count = windows.count() / windows.batch.max(1);
    let mut mask = Vec::with_capacity(count * tokens * tokens);
    for window in 0..count {
        let regions: Vec<usize> = (0..tokens).map(|i| windows.region(window, i)).collect();
        for a in &regions {
            mask.extend(regions.iter().map(|b| if a == b { 0f32 } else { -100.0 }));
        }
    }
    Tensor::from_vec(mask, (count, tokens, tokens), device)
}

fn check(
    qkv: &Tensor,
    padding_token: &Tensor,
    heads: usize,
    windows: Windows,
    bias: Option<&PositionBias>,
) -> Result<()> {
    let (batch, height, width, channels) = qkv.dims4()?;
    let (rows, columns) = (windows.window_height, windows.window_width);
    let tokens = windows.tokens();
    let bias_fits = match bias {
        None => true,
        Some(PositionBias::Table(table)) => table.dims() == [heads, tokens, tokens],
        Some(PositionBias::Relative {
            by_row, by_column, ..
        }) => {
            let d = channels / (3 * heads.max(1));
            by_row.dims() == [rows, rows, d] && by_column.dims() == [columns, columns, d]
        }
    };
    let fits = (windows.batch, windows.height, windows.width) == (batch, height, width)
        && rows > windows.shift
        && columns > windows.shift
        && heads > 0
        && channels % (3 * heads) == 0
        && padding_token.dims() == [channels]
        && bias_fits;
    if !fits {
        candle_core::bail!(
            "window attention: input {:?}, padding token {:?}, {heads} heads, {windows:?}, bias {bias:?} do not fit",
            qkv.dims(),
            padding_token.dims()
        )
    }
    Ok(())
}
