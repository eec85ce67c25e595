//! Attention on a GPU: a matrix product for the scores, a softmax in place, and a matrix product with the values.

use candle_core::{D, DType, Result, Tensor};

use super::softmax::{Added, Relative, softmax};
use super::sums::{self, weighted_sums};
use super::windows::{Geometry, from_windows, of_tokens, to_windows};
use crate::models::ops::{MASKED, PositionBias, Windows};

/// See [`crate::models::ops::attention`]; the caller has checked the shapes.
pub(in crate::models::ops) fn attention(
    query: &Tensor,
    key: &Tensor,
    value: &Tensor,
    bias: Option<&Tensor>,
    heads: usize,
) -> Result<Tensor> {
    let (images, queries, channels) = query.dims3()?;
    let (key_images, keys, _) = key.dims3()?;
    let batch = if images == 1 { key_images } else { images };
    let scale = 1.0 / ((channels / heads) as f64).sqrt();
    let split = |xs: &Tensor, scale: f64| -> Result<Tensor> {
        let (images, tokens, _) = xs.dims3()?;
        let split = to_windows(xs, None, of_tokens(images, tokens), (1, heads), scale)?;
        let shape = (batch, heads, tokens, channels / heads);
        split.squeeze(0)?.broadcast_as(shape)?.contiguous()
    };
    let scores = split(query, scale)?.matmul(&split(key, 1.0)?.t()?)?;
    debug_assert_eq!(scores.dims(), [batch, heads, queries, keys]);
    let added = Added {
        bias,
        ..Added::default()
    };
    let attended = softmax(scores, added)?.matmul(&split(value, 1.0)?)?;
    from_windows(&attended, of_tokens(batch, queries))?.squeeze(1)
}

/// See [`crate::models::ops::window_attention`]; the caller has checked the shapes.
pub(in crate::models::ops) fn window_attention(
    qkv: &Tensor,
    padding_token: &Tensor,
    heads: usize,
    windows: Windows,
    bias: Option<&PositionBias>,
) -> Result<Tensor> {
    let width = qkv.dim(D::Minus1)? / (3 * heads);
    let scale = 1.0 / (width as f64).sqrt();
    let padding_token = padding_token.to_dtype(qkv.dtype())?;
    let parts = to_windows(qkv, Some(&padding_token), windows, (3, heads), scale)?;
    let (query, key, value) = (parts.get(0)?, parts.get(1)?, parts.get(2)?);
    let scores = query.matmul(&key.t()?)?;
    let mut added = Added {
        windows: Some(Geometry::new(windows)?),
        ..Added::default()
    };
    let (table, by_row, by_column);
    match bias {
        None => {}
        Some(PositionBias::Table(by_head)) => {
            table = by_head.unsqueeze(0)?;
            added.bias = Some(&table);
        }
        Some(PositionBias::Relative {
            by_row: rows,
            by_column: columns,
            ..
        }) => {
            (by_row, by_column) = relative_positions(&query, rows, columns)?;
            added.relative = Some(Relative {
                by_row: &by_row,
                by_column: &by_column,
                // the queries are already scaled, and the relative positions need the unscaled ones
                scale: 1.0 / scale,
            });
        }
    }
    let attended = softmax(scores, added)?.matmul(&value)?;
    from_windows(&attended, windows)
}

/// See [`crate::models::ops::pooled_window_attention`]; the caller has checked the shapes.
pub(in crate::models::ops) fn pooled_window_attention(
    query: &Tensor,
    qkv: &Tensor,
    padding_token: &Tensor,
    heads: usize,
    windows: Windows,
) -> Result<Tensor> {
    let scale = 1.0 / ((query.dim(D::Minus1)? / heads) as f64).sqrt();
    let padding_token = padding_token.to_dtype(qkv.dtype())?;
    let parts = to_windows(qkv, Some(&padding_token), windows, (3, heads), 1.0)?;
    // the results of queries beyond the edge are dropped
    let query = to_windows(query, None, windows.halved(), (1, heads), scale)?.squeeze(0)?;
    let scores = query.matmul(&parts.get(1)?.t()?)?;
    let attended = softmax(scores, Added::default())?.matmul(&parts.get(2)?)?;
    from_windows(&attended, windows.halved())
}

/// Decomposed relative position scores of queries `[windows, heads, H * W, D]`: by row `[H, windows * heads * W, H]`
/// and by column `[W, windows * heads * H, W]`.
fn relative_positions(
    query: &Tensor,
    by_row: &Tensor,
    by_column: &Tensor,
) -> Result<(Tensor, Tensor)> {
    let (count, heads, _, d) = query.dims4()?;
    let (height, width, groups) = (by_row.dim(0)?, by_column.dim(0)?, count * heads);
    // moves rows or columns to the first dimension; `to_windows` does this when they are passed as its heads
    let by_first = |tokens: usize, first: usize| {
        let query = query.reshape((1, tokens, ()))?;
        to_windows(&query, None, of_tokens(1, tokens), (1, first), 1.0)
    };
    let of_rows = by_first(groups, height)?
        .reshape((height, groups * width, d))?
        .matmul(&by_row.transpose(1, 2)?)?;
    let of_columns = by_first(groups * height, width)?
        .reshape((width, groups * height, d))?
        .matmul(&by_column.transpose(1, 2)?)?;
    Ok((of_rows, of_columns))
}

/// Attention in both directions between image tokens `[B, N, inner]` and text tokens `[B, T, inner]`, given as the
/// queries and values of the image and the keys and values of the text. `token_mask` is `[B, N]` with 1 for image and 0
/// for padding; `text_bias` is `[B, 1, T]` and is added to the scores. Returns the outputs of the image tokens and of
/// the text tokens.
pub(in crate::models::ops) fn fusion_attention(
    [query, vision_value, key, text_value]: [&Tensor; 4],
    token_mask: Option<&Tensor>,
    text_bias: &Tensor,
    heads: usize,
) -> Result<(Tensor, Tensor)> {
    let (batch, tokens, inner) = query.dims3()?;
    let texts = key.dim(1)?;
    let scale = 1.0 / ((inner / heads) as f64).sqrt();
    let split = |xs: &Tensor, scale: f64| -> Result<Tensor> {
        let windows = of_tokens(batch, xs.dim(1)?);
        to_windows(xs, None, windows, (1, heads), scale)?.squeeze(0)
    };
    let merge = |xs: Tensor, tokens: usize| from_windows(&xs, of_tokens(batch, tokens))?.squeeze(1);
    let (query, key) = (split(query, scale)?, split(key, 1.0)?);
    let to_text = Added {
        bias: Some(&text_bias.unsqueeze(1)?),
        ..Added::default()
    };
    let scores = query.matmul(&key.t()?)?;
    // for few text tokens, transposing the scores is faster than a second product with rows of an odd length; a copy is
    // needed in any case, because the softmax works in place
    let transposed = match texts <= 64 {
        true => {
            let (windows, shape) = (
                of_tokens(batch * heads, tokens),
                (batch * heads, tokens, texts),
            );
            to_windows(&scores.reshape(shape)?, None, windows, (1, texts), 1.0)?
                .reshape((batch, heads, texts, tokens))?
        }
        false => key.matmul(&query.t()?)?,
    };
    let to_text = softmax(scores, to_text)?;
    let padding = match token_mask {
        Some(mask) => Some(padding_bias(mask, query.dtype())?),
        None => None,
    };
    let to_vision = Added {
        bias: padding.as_ref(),
        ..Added::default()
    };
    let to_vision = softmax(transposed, to_vision)?;
    let of_vision = match sums::supports(texts, tokens, inner / heads) {
        true => weighted_sums(&to_vision, vision_value)?,
        false => merge(to_vision.matmul(&split(vision_value, 1.0)?)?, texts)?,
    };
    Ok((
        merge(to_text.matmul(&split(text_value, 1.0)?)?, tokens)?,
        of_vision,
    ))
}

/// Converts a mask `[B, N]` (1 image, 0 padding) to a bias `[B, 1, 1, N]`: 0 for image tokens, [`MASKED`] for padding.
fn padding_bias(token_mask: &Tensor, dtype: DType) -> Result<Tensor> {
    ((1.0 - token_mask.to_dtype(DType::F32)?)? * f64::from(MASKED))?
        .unsqueeze(1)?
        .unsqueeze(1)?
        .to_dtype(dtype)
}
