//! Attention between two sequences of tokens.

use candle_core::{Result, Tensor};

#[cfg(feature = "cuda")]
use super::gpu;
use super::kernels::attention::{Heads, Multihead, Sizes, multihead_attention};
use super::kernels::simd::InstructionSet;
use super::{cpu_tensor, f32_slice, has_kernel};

/// Scaled dot-product attention. The heads are side by side in the channels.
///
/// - `query` `[B, N, heads * D]`
/// - `key`, `value` `[B, M, heads * D]`
///
///   either side may be `[1, ...]`, and is then shared by all images of the other side
/// - `bias`, added to the scores, broadcasts to `[B, heads, N, M]`
///
/// Returns `[B, N, heads * D]`.
///
/// # Errors
/// If the shapes do not fit each other.
pub fn attention(
    query: &Tensor,
    key: &Tensor,
    value: &Tensor,
    bias: Option<&Tensor>,
    heads: usize,
) -> Result<Tensor> {
    check(query, key, value, bias, heads)?;
    #[cfg(feature = "cuda")]
    if gpu::supports(query) {
        return gpu::attention(query, key, value, bias, heads);
    }
    match has_kernel(query) {
        true => with_kernel(InstructionSet::current(), query, key, value, bias, heads),
        false => attention_plain(query, key, value, bias, heads),
    }
}

/// The same as [`attention`], in plain tensor operations.
///
/// # Errors
/// If the shapes do not fit each other.
pub fn attention_plain(
    query: &Tensor,
    key: &Tensor,
    value: &Tensor,
    bias: Option<&Tensor>,
    heads: usize,
) -> Result<Tensor> {
    check(query, key, value, bias, heads)?;
    let (images, tokens, channels) = query.dims3()?;
    let batch = batch_size(images, key.dim(0)?);
    // [B, N, heads * D] -> [B, heads, N, D]
    let split = |xs: &Tensor| -> Result<Tensor> {
        let (images, tokens, _) = xs.dims3()?;
        xs.reshape((images, tokens, heads, channels / heads))?
            .transpose(1, 2)?
            .broadcast_as((batch, heads, tokens, channels / heads))?
            .contiguous()
    };
    let (query, key, value) = (split(query)?, split(key)?, split(value)?);
    let scale = 1.0 / ((channels / heads) as f64).sqrt();
    let scores = (query * scale)?.matmul(&key.transpose(2, 3)?)?;
    let scores = match bias {
        Some(bias) => scores.broadcast_add(bias)?,
        None => scores,
    };
    candle_nn::ops::softmax_last_dim(&scores)?
        .matmul(&value)?
        .transpose(1, 2)?
        .reshape((batch, tokens, channels))
}

pub(super) fn with_kernel(
    set: InstructionSet,
    query: &Tensor,
    key: &Tensor,
    value: &Tensor,
    bias: Option<&Tensor>,
    heads: usize,
) -> Result<Tensor> {
    let (images, queries, channels) = query.dims3()?;
    let keys = key.dim(1)?;
    let batch = batch_size(images, key.dim(0)?);
    let tensors = [query.contiguous()?, key.contiguous()?, value.contiguous()?];
    let [query_view, key_view, value_view] = tensors.each_ref().map(Tensor::storage_and_layout);
    let heads_of = |data, tokens, images: usize| Heads {
        data,
        tokens,
        stride: channels,
        is_shared: images == 1,
    };
    let bias = bias.map(Tensor::contiguous).transpose()?;
    let bias_view = bias.as_ref().map(Tensor::storage_and_layout);
    let bias = match (&bias, &bias_view) {
        (Some(bias), Some(view)) => {
            let (images, heads, rows, columns) = bias.dims4()?;
            let step = |count: usize, size: usize| if count == 1 { 0 } else { size };
            let steps = [
                step(images, heads * rows * columns),
                step(heads, rows * columns),
                step(rows, columns),
            ];
            Some((f32_slice(view)?, steps))
        }
        _ => None,
    };
    let rows = Multihead {
        query: heads_of(f32_slice(&query_view)?, queries, images),
        key: heads_of(f32_slice(&key_view)?, keys, key.dim(0)?),
        value: heads_of(f32_slice(&value_view)?, keys, value.dim(0)?),
        bias,
        width: channels / heads,
        heads,
        groups: batch,
    };
    let sizes = Sizes {
        groups: batch,
        heads,
        queries,
        keys,
        width: channels / heads,
    };
    cpu_tensor(
        multihead_attention(set, &rows, sizes),
        (batch, queries, channels),
    )
}

/// The batch size; one of the two sides may have a single image that is shared by all.
fn batch_size(queries: usize, keys: usize) -> usize {
    if queries == 1 { keys } else { queries }
}

fn check(
    query: &Tensor,
    key: &Tensor,
    value: &Tensor,
    bias: Option<&Tensor>,
    heads: usize,
) -> Result<()> {
    let (query_images, queries, channels) = query.dims3()?;
    let (images, keys, _) = key.dims3()?;
    let batch = batch_size(query_images, images);
    let bias_fits = |bias: &Tensor| match bias.dims() {
        [b, h, n, m] => {
            [1, batch].contains(b)
                && [1, heads].contains(h)
                && [1, queries].contains(n)
                && *m == keys
        }
        _ => false,
    };
    let fits = (images == batch || images == 1)
        && heads > 0
        && channels % heads == 0
        && keys > 0
        && key.dims() == [images, keys, channels]
        && value.dims() == key.dims()
        && bias.is_none_or(bias_fits);
    if !fits {
        candle_core::bail!(
            "attention: query {:?}, key {:?}, value {:?}, bias {:?}, {heads} heads do not fit",
            query.dims(),
            key.dims(),
            value.dims(),
            bias.map(Tensor::dims)
        )
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;

    #[test]
    fn an_empty_batch_gives_an_empty_result() -> Result<()> {
        let zeros = |shape: (usize, usize, usize)| Tensor::zeros(shape, DType::F32, &Device::Cpu);
        let (query, key) = (zeros((0, 3, 16))?, zeros((1, 4, 16))?);
        for set in InstructionSet::available() {
            let result = with_kernel(set, &query, &key, &key, None, 2)?;
            assert_eq!(result.dims(), [0, 3, 16]);
        }
        Ok(())
    }

    #[test]
    fn an_error_names_the_shapes_that_do_not_fit() -> Result<()> {
        let xs = |tokens| Tensor::zeros((1, tokens, 6), DType::F32, &Device::Cpu);
        let error = attention(&xs(2)?, &xs(3)?, &xs(4)?, None, 2);
        assert!(error.is_err_and(|e| e.to_string().contains("value [1, 4, 6]")));
        Ok(())
    }
}
