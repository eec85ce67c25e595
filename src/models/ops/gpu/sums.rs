//! The product of a few rows of attention weights with very many values: text tokens that attend to an image.

use candle_core::{DType, Result, Tensor};

use super::{Argument, Grid, empty, launch, size};

/// The number of rows that one block of the kernel computes.
const ROWS: usize = 16;
/// The number of tokens that one block sums over.
const PART: usize = 128;

/// Whether [`weighted_sums`] supports this number of rows, tokens and numbers per token (`width`), and is faster than
/// cuBLAS, which uses too few blocks for such shapes.
pub(super) fn supports(rows: usize, tokens: usize, width: usize) -> bool {
    rows <= 4 * ROWS && tokens >= 1024 && width.is_multiple_of(32) && width <= 512
}

/// Multiplies attention weights `[B, heads, N, M]` by values `[B, M, heads * D]`; the result is `[B, N, heads * D]`.
pub(super) fn weighted_sums(shares: &Tensor, values: &Tensor) -> Result<Tensor> {
    let (shares, values) = (shares.contiguous()?, values.contiguous()?);
    let (batch, heads, rows, tokens) = shares.dims4()?;
    let inner = values.dim(2)?;
    let (groups, width) = (batch * heads, inner / heads);
    if values.dims() != [batch, tokens, inner]
        || values.dtype() != shares.dtype()
        || inner != heads * width
        || !supports(rows, tokens, width)
    {
        candle_core::bail!(
            "weighted sums: weights {:?} and values {:?} do not fit",
            shares.dims(),
            values.dims()
        )
    }
    let splits = tokens.div_ceil(PART);
    let out = empty((batch, rows, inner), &values)?;
    let count = out.elem_count();
    // SAFETY: the kernel below writes all of its elements
    #[allow(unsafe_code)]
    let partial = unsafe { Tensor::empty((splits, count), DType::F32, values.device())? };
    let grid = Grid {
        blocks: splits * groups * rows.div_ceil(ROWS),
        threads: (size(width)?, 1),
    };
    let mut arguments = vec![
        Argument::Tensor(&shares),
        Argument::Tensor(&values),
        Argument::Tensor(&partial),
    ];
    for number in [groups, heads, rows, tokens, width, splits, PART] {
        arguments.push(Argument::Size(size(number)?));
    }
    // SAFETY: these are the kernel's arguments; the shapes are compared above, the width is a multiple of a warp, and
    // `partial` is new
    #[allow(unsafe_code)]
    unsafe {
        launch("partial_sums", &values, grid, &arguments)?;
    }
    let mut arguments = vec![Argument::Tensor(&partial), Argument::Tensor(&out)];
    for number in [count, heads, rows, width, splits] {
        arguments.push(Argument::Size(size(number)?));
    }
    // SAFETY: these are the kernel's arguments; the kernel above has filled `partial`, and `out` is new
    #[allow(unsafe_code)]
    unsafe {
        launch("joined_sums", &values, Grid::of_threads(count), &arguments)?;
    }
    Ok(out)
}
