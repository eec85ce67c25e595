//! Attention in the windows of a map, with pooled queries.

use candle_core::{Result, Tensor};

#[cfg(feature = "cuda")]
use super::gpu;
use super::kernels::pooled_attention as kernel;
use super::kernels::simd::InstructionSet;
use super::window_attention::{join_windows, split_windows};
use super::{Windows, attention_plain, cpu_tensor, f32_slice, f32_vec, has_kernel};

/// Attention of the pooled cells of every window to all tokens of the window, without a position bias.
///
/// - `query` `[B, H / 2, W / 2, heads * D]`: the queries after pooling (see [`max_pool2x2`](super::max_pool2x2))
/// - `qkv` `[B, H, W, 3 * heads * D]`: for each token the queries of all heads, which are not used, then the keys, then
///   the values
/// - `padding_token` `[3 * heads * D]`: the contents of a token that is in a window but beyond the map's edge
/// - `windows` of the map before pooling, with even sizes and no shift; a window's queries are the cells that its tokens
///   are pooled to
///
/// Returns `[B, H / 2, W / 2, heads * D]`.
///
/// # Errors
/// If the shapes do not fit each other.
pub fn pooled_window_attention(
    query: &Tensor,
    qkv: &Tensor,
    padding_token: &Tensor,
    heads: usize,
    windows: Windows,
) -> Result<Tensor> {
    check(query, qkv, padding_token, heads, windows)?;
    #[cfg(feature = "cuda")]
    if gpu::supports(qkv) {
        return gpu::pooled_window_attention(query, qkv, padding_token, heads, windows);
    }
    match has_kernel(qkv) {
        true => {
            let set = InstructionSet::current();
            pooled_with_kernel(set, query, qkv, padding_token, heads, windows)
        }
        false => pooled_window_attention_plain(query, qkv, padding_token, heads, windows),
    }
}

pub(super) fn pooled_with_kernel(
    set: InstructionSet,
    query: &Tensor,
    qkv: &Tensor,
    padding_token: &Tensor,
    heads: usize,
    windows: Windows,
) -> Result<Tensor> {
    check(query, qkv, padding_token, heads, windows)?;
    let channels = query.dim(3)?;
    let (query, qkv) = (query.contiguous()?, qkv.contiguous()?);
    let result = kernel::pooled_window_attention(
        set,
        f32_slice(&query.storage_and_layout())?,
        f32_slice(&qkv.storage_and_layout())?,
        &f32_vec(padding_token)?,
        windows,
        (heads, channels / heads),
    );
    cpu_tensor(result, query.shape())
}

/// The same as [`pooled_window_attention`], in plain tensor operations.
///
/// # Errors
/// If the shapes do not fit each other.
pub fn pooled_window_attention_plain(
    query: &Tensor,
    qkv: &Tensor,
    padding_token: &Tensor,
    heads: usize,
    windows: Windows,
) -> Result<Tensor> {
    check(query, qkv, padding_token, heads, windows)?;
    let channels = query.dim(3)?;
    let part = |xs: &Tensor, i: usize| xs.narrow(xs.rank() - 1, i * channels, channels);
    let tokens = split_windows(qkv, padding_token, windows)?;
    // the results of queries beyond the edge are dropped
    let query = split_windows(query, &part(padding_token, 0)?, windows.halved())?;
    let (key, value) = (part(&tokens, 1)?.contiguous()?, part(&tokens, 2)?);
    let attended = attention_plain(&query, &key, &value.contiguous()?, None, heads)?;
    join_windows(&attended, windows.halved())
}

fn check(
    query: &Tensor,
    qkv: &Tensor,
    padding_token: &Tensor,
    heads: usize,
    windows: Windows,
) -> Result<()> {
    let (batch, height, width, all) = qkv.dims4()?;
    let sizes = [height, width, windows.window_height, windows.window_width];
    let fits = (windows.batch, windows.height, windows.width) == (batch, height, width)
        && windows.shift == 0
        && sizes.iter().all(|size| *size > 0 && size.is_multiple_of(2))
        && heads > 0
        && all % (3 * heads) == 0
        && query.dims() == [batch, height / 2, width / 2, all / 3]
        && padding_token.dims() == [all];
    if !fits {
        candle_core::bail!(
            "window attention with pooled queries: queries {:?}, input {:?}, padding token {:?}, {heads} heads, \
             {windows:?} do not fit",
            query.dims(),
            qkv.dims(),
            padding_token.dims()
        )
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;
    use crate::models::ops::testing::assert_close;

    /// The definition, cell by cell: a cell attends to the tokens of the window that contains its four tokens.
    #[test]
    fn a_cell_attends_to_the_tokens_of_its_window() -> Result<()> {
        let device = &Device::Cpu;
        let (height, width, window, heads, d) = (6usize, 10usize, 4usize, 2usize, 3usize);
        let channels = heads * d;
        let query = Tensor::randn(0f32, 1.0, (1, height / 2, width / 2, channels), device)?;
        let qkv = Tensor::randn(0f32, 1.0, (1, height, width, 3 * channels), device)?;
        let padding_token = Tensor::randn(0f32, 1.0, 3 * channels, device)?;
        let numbers = |xs: &Tensor| xs.flatten_all()?.to_vec1::<f32>();
        let (of_cells, of_tokens) = (numbers(&query)?, numbers(&qkv)?);
        let padding = numbers(&padding_token)?;
        let mut expected = vec![];
        for (y, x) in (0..height / 2).flat_map(|y| (0..width / 2).map(move |x| (y, x))) {
            let (top, left) = (2 * y / window * window, 2 * x / window * window);
            let tokens: Vec<&[f32]> = (0..window * window)
                .map(|i| (top + i / window, left + i % window))
                .map(|(y, x)| match y < height && x < width {
                    true => &of_tokens[(y * width + x) * 3 * channels..][..3 * channels],
                    false => &padding[..],
                })
                .collect();
            for head in 0..heads {
                let query = &of_cells[((y * width / 2 + x) * heads + head) * d..][..d];
                let weights: Vec<f32> = tokens
                    .iter()
                    .map(|token| {
                        let key = &token[channels + head * d..][..d];
                        let score: f32 = query.iter().zip(key).map(|(q, k)| q * k).sum();
                        (score / (d as f32).sqrt()).exp()
                    })
                    .collect();
                let total: f32 = weights.iter().sum();
                for i in 0..d {
                    let value = |token: &&[f32]| token[2 * channels + head * d + i];
                    let products = weights
                        .iter()
                        .zip(&tokens)
                        .map(|(w, token)| w * value(token));
                    expected.push(products.sum::<f32>() / total);
                }
            }
        }
        let expected = Tensor::from_vec(expected, query.shape(), device)?;
        let windows = Windows {
            batch: 1,
            height,
            width,
            window_height: window,
            window_width: window,
            shift: 0,
        };
        let of_kernel = pooled_window_attention(&query, &qkv, &padding_token, heads, windows)?;
        assert_close("kernel", &of_kernel, &expected, 1e-6)?;
        let plain = pooled_window_attention_plain(&query, &qkv, &padding_token, heads, windows)?;
        assert_close("plain", &plain, &expected, 1e-6)
    }

    #[test]
    fn an_error_names_the_shapes_that_do_not_fit() -> Result<()> {
        let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu);
        let windows = |shift, window_height| Windows {
            batch: 1,
            height: 4,
            width: 6,
            window_height,
            window_width: 2,
            shift,
        };
        let attend = |columns, windows| {
            let query = zeros(&[1, 2, columns, 5])?;
            let qkv = zeros(&[1, 4, 6, 15])?;
            pooled_window_attention(&query, &qkv, &zeros(&[15])?, 1, windows)
        };
        assert!(attend(3, windows(0, 4)).is_ok());
        // other queries, an odd window, and a shift
        for wrong in [
            attend(4, windows(0, 4)),
            attend(3, windows(0, 3)),
            attend(3, windows(1, 4)),
        ] {
            assert!(wrong.is_err_and(|e| e.to_string().contains("input [1, 4, 6, 15]")));
        }
        Ok(())
    }
}
