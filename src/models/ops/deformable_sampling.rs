//! The core of deformable attention: weighted bilinear samples from several feature maps.

use candle_core::{DType, Result, Tensor, bail};

#[cfg(feature = "cuda")]
use super::gpu;
use super::kernels::sampling::{self, Sizes};
use super::kernels::simd::InstructionSet;
use super::{cpu_tensor, f32_slice, has_kernel};

/// The parameters of the sampling.
#[derive(Debug, Clone, Copy)]
pub struct Sampling<'a> {
    /// Number of heads.
    pub heads: usize,
    /// Sampled positions per head and level.
    pub points: usize,
    /// `(height, width)` of each level's map.
    pub shapes: &'a [(usize, usize)],
}

/// Sums bilinear samples of `value`, with zeros outside the maps and `align_corners=false`
/// (`multi_scale_deformable_attention` of the reference, including the softmax and the locations before it).
///
/// - `value` `[B, heads, N, D]`: the flattened maps, one after the other
/// - `samples` `[B, Q, 3 * heads * L * P]`: the `L * P` offsets in x of every head, then those in y, then the logits
///   of the attention weights
/// - `reference` `[B, Q, L, 2]` (centres; offsets are in cells) or `[B, Q, L, 4]` (boxes cxcywh; offsets are in
///   halves of the box sides, divided by `P`), 0..1. It is f32 even if the other tensors are not, because positions
///   in the image need this precision.
///
/// Returns `[B, Q, heads * D]`.
///
/// # Errors
/// If the shapes do not fit each other.
pub fn deformable_sampling(
    value: &Tensor,
    samples: &Tensor,
    reference: &Tensor,
    sampling: Sampling,
) -> Result<Tensor> {
    check(value, samples, reference, sampling)?;
    #[cfg(feature = "cuda")]
    if gpu::supports(value) {
        return gpu::deformable_sampling(value, samples, reference, sampling);
    }
    match has_kernel(value) {
        true => with_kernel(
            InstructionSet::current(),
            value,
            samples,
            reference,
            sampling,
        ),
        false => deformable_sampling_plain(value, samples, reference, sampling),
    }
}

pub(super) fn with_kernel(
    set: InstructionSet,
    value: &Tensor,
    samples: &Tensor,
    reference: &Tensor,
    sampling: Sampling,
) -> Result<Tensor> {
    let (batch, heads, _, width) = value.dims4()?;
    let queries = samples.dim(1)?;
    let sizes = Sizes {
        batch,
        queries,
        heads,
        width,
        points: sampling.points,
        shapes: sampling.shapes,
        reference: reference.dim(3)?,
    };
    let tensors = [
        value.contiguous()?,
        samples.contiguous()?,
        reference.contiguous()?,
    ];
    let [value, samples, reference] = tensors.each_ref().map(Tensor::storage_and_layout);
    let result = sampling::deformable_sampling(
        set,
        f32_slice(&value)?,
        f32_slice(&samples)?,
        f32_slice(&reference)?,
        sizes,
    );
    cpu_tensor(result, (batch, queries, heads * width))
}

/// The same as [`deformable_sampling`], in plain tensor operations.
///
/// # Errors
/// If the shapes do not fit each other.
pub fn deformable_sampling_plain(
    value: &Tensor,
    samples: &Tensor,
    reference: &Tensor,
    sampling: Sampling,
) -> Result<Tensor> {
    check(value, samples, reference, sampling)?;
    let Sampling {
        heads,
        points,
        shapes,
    } = sampling;
    let batch = value.dim(0)?;
    let (queries, levels) = (samples.dim(1)?, shapes.len());
    let count = heads * levels * points;
    let offsets = samples.narrow(2, 0, 2 * count)?;
    let offsets = offsets
        .reshape(&[batch, queries, 2, heads, levels, points])?
        .permute([0, 1, 3, 4, 5, 2])?
        .reshape((batch, queries, heads, levels, points * 2))?;
    let logits = samples.narrow(2, 2 * count, count)?;
    let logits = logits.reshape((batch, queries, heads, levels * points))?;
    let weights = candle_nn::ops::softmax_last_dim(&logits.contiguous()?)?;
    let locations = locations(&offsets, reference, sampling)?;
    sample(value, &locations, &weights, shapes)
}

/// The sampling locations, `(x, y)` in 0..1 of each level: `[B, Q, heads, L, P * 2]`.
fn locations(offsets: &Tensor, reference: &Tensor, sampling: Sampling) -> Result<Tensor> {
    let (offsets, reference) = (
        offsets.to_dtype(DType::F32)?,
        reference.to_dtype(DType::F32)?,
    );
    let device = offsets.device();
    let (points, levels) = (sampling.points, sampling.shapes.len());
    // [B, Q, L, c] -> [B, Q, 1, L, c], with each pair repeated for every point
    let reference = reference.unsqueeze(2)?;
    let centres = reference.narrow(4, 0, 2)?.repeat((1, 1, 1, 1, points))?;
    let offsets = if reference.dim(4)? == 2 {
        let sizes: Vec<f32> = sampling
            .shapes
            .iter()
            .flat_map(|(height, width)| [*width as f32, *height as f32].repeat(points))
            .collect();
        let sizes = Tensor::from_vec(sizes, (1, 1, 1, levels, points * 2), device)?;
        offsets.broadcast_div(&sizes)?
    } else {
        let sides = reference.narrow(4, 2, 2)?.repeat((1, 1, 1, 1, points))?;
        (offsets / points as f64)?.broadcast_mul(&(sides * 0.5)?)?
    };
    offsets.broadcast_add(&centres)
}

/// The weighted samples of `value` `[B, heads, N, D]` at `locations` `[B, Q, heads, L, P * 2]`, with `weights`
/// `[B, Q, heads, L * P]`.
fn sample(
    value: &Tensor,
    locations: &Tensor,
    weights: &Tensor,
    shapes: &[(usize, usize)],
) -> Result<Tensor> {
    let (batch, heads, _, width) = value.dims4()?;
    let (_, queries, _, levels, pairs) = locations.dims5()?;
    let (points, dtype, device) = (pairs / 2, value.dtype(), value.device());
    let samples = (batch * heads, queries * points);
    // [B, Q, heads, L, ...] -> [L][B * heads, Q * P]
    let locations = locations.reshape((batch, queries, heads, levels, points, 2))?;
    let weights = weights
        .to_dtype(DType::F32)?
        .reshape((batch, queries, heads, levels, points))?;
    let mut sum = Tensor::zeros((batch * heads, queries, width), DType::F32, device)?;
    let mut start = 0;
    for (level, &(rows, columns)) in shapes.iter().enumerate() {
        let tokens = rows * columns;
        // [B, heads, tokens, D] -> [B * heads * tokens, D]
        let map = value
            .narrow(2, start, tokens)?
            .reshape((batch * heads * tokens, width))?;
        start += tokens;
        let positions = |coordinate: usize, size: usize| -> Result<Tensor> {
            let unit = locations
                .narrow(3, level, 1)?
                .narrow(5, coordinate, 1)?
                .reshape((batch, queries, heads, points))?
                .transpose(1, 2)?
                .reshape(samples)?;
            // every sample far outside is zero, so clamp it to just outside, where its index is exact
            ((unit * size as f64)? - 0.5)?.clamp(-2.0, size as f64 + 1.0)
        };
        let (x, y) = (positions(0, columns)?, positions(1, rows)?);
        let weight = weights
            .narrow(3, level, 1)?
            .reshape((batch, queries, heads, points))?
            .transpose(1, 2)?
            .reshape(samples)?;
        let first = Tensor::arange(0, (batch * heads) as u32, device)?
            .affine(tokens as f64, 0.0)?
            .unsqueeze(1)?;
        let (left, top) = (x.floor()?, y.floor()?);
        for (dy, dx) in [(0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (1.0, 1.0)] {
            let (column, row) = ((&left + dx)?, (&top + dy)?);
            // 1 - distance, and 0 outside the map
            let cell_weight = |at: &Tensor, cell: &Tensor, size: usize| -> Result<Tensor> {
                let inside = (cell.ge(0f32)? * cell.lt(size as f32)?)?.to_dtype(DType::F32)?;
                (1.0 - (at - cell)?.abs()?)? * inside
            };
            let share = (cell_weight(&x, &column, columns)? * cell_weight(&y, &row, rows)?)?;
            let index = ((row.clamp(0.0, rows as f64 - 1.0)? * columns as f64)?
                + column.clamp(0.0, columns as f64 - 1.0)?)?
            .to_dtype(DType::U32)?
            .broadcast_add(&first)?;
            let sampled = map
                .index_select(&index.flatten_all()?, 0)?
                .to_dtype(DType::F32)?
                .reshape((batch * heads, queries, points, width))?;
            let share = (share * &weight)?.reshape((batch * heads, queries, points, 1))?;
            sum = (sum + sampled.broadcast_mul(&share)?.sum(2)?)?;
        }
    }
    sum.reshape((batch, heads, queries, width))?
        .transpose(1, 2)?
        .reshape((batch, queries, heads * width))?
        .to_dtype(dtype)
}

fn check(value: &Tensor, samples: &Tensor, reference: &Tensor, sampling: Sampling) -> Result<()> {
    let Sampling {
        heads,
        points,
        shapes,
    } = sampling;
    let (batch, value_heads, tokens, _) = value.dims4()?;
    let (_, queries, numbers) = samples.dims3()?;
    let (_, _, _, coordinates) = reference.dims4()?;
    let cells: usize = shapes.iter().map(|(rows, columns)| rows * columns).sum();
    let fits = heads > 0
        && value_heads == heads
        && numbers == heads * shapes.len() * points * 3
        && samples.dim(0)? == batch
        && reference.dims() == [batch, queries, shapes.len(), coordinates]
        && [2, 4].contains(&coordinates)
        && cells == tokens;
    if !fits {
        bail!(
            "deformable sampling: value {:?}, samples {:?}, reference points {:?}, {sampling:?} do not fit",
            value.dims(),
            samples.dims(),
            reference.dims()
        )
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::super::testing::assert_close;
    use super::*;

    #[test]
    fn no_queries_give_an_empty_result() -> Result<()> {
        let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu);
        let sampling = Sampling {
            heads: 2,
            points: 4,
            shapes: &[(2, 3)],
        };
        let (value, samples) = (zeros(&[1, 2, 6, 8])?, zeros(&[1, 0, 24])?);
        for set in InstructionSet::available() {
            let result = with_kernel(set, &value, &samples, &zeros(&[1, 0, 1, 2])?, sampling)?;
            assert_eq!(result.dims(), [1, 0, 16]);
        }
        Ok(())
    }

    #[test]
    fn positions_outside_the_map_and_nan_have_weight_zero() -> Result<()> {
        let device = &Device::Cpu;
        let sampling = Sampling {
            heads: 1,
            points: 4,
            shapes: &[(3, 5)],
        };
        let value = Tensor::randn(0f32, 1.0, (1, 1, 15, 8), device)?;
        let reference = Tensor::full(0.5f32, (1, 1, 1, 2), device)?;
        // offsets in x, offsets in y, logits; the last position is the centre of the middle cell
        let nan = f32::NAN;
        let numbers = vec![
            1e30, -1e30, nan, 0.0, 0.0, nan, 1e9, 0.0, 0.0, 0.0, 0.0, 0.0,
        ];
        let samples = Tensor::from_vec(numbers, (1, 1, 12), device)?;
        let quarter = (value.narrow(2, 7, 1)? * 0.25)?.reshape((1, 1, 8))?;
        for set in InstructionSet::available() {
            let fast = with_kernel(set, &value, &samples, &reference, sampling)?;
            assert_close(set.name(), &fast, &quarter, 1e-6)?;
        }
        Ok(())
    }

    #[test]
    fn an_error_names_the_shapes_that_do_not_fit() -> Result<()> {
        let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu);
        let sampling = Sampling {
            heads: 1,
            points: 1,
            shapes: &[(2, 3)],
        };
        let (value, samples) = (zeros(&[1, 1, 4, 2])?, zeros(&[1, 1, 3])?);
        let error = deformable_sampling(&value, &samples, &zeros(&[1, 1, 1, 2])?, sampling);
        assert!(error.is_err_and(|e| e.to_string().contains("[(2, 3)]")));
        Ok(())
    }
}
