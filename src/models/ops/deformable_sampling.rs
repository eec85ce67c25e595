//! Weighted bilinear samples of several feature maps, the core of deformable attention.

use candle_core::{CpuStorage, CustomOp3, DType, Device, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::contiguous_f32;

/// Sums bilinear samples of `value`, with zeros outside the maps and `align_corners=false`
/// (`multi_scale_deformable_attention` of the reference).
///
/// - `value` `[B, N, heads, D]`: the maps, flattened one after the other as `shapes`
///   (height, width) tells
/// - `locations` `[B, Q, heads, L, P * 2]`: pairs `(x, y)`, 0..1 of each level
/// - `weights` `[B, Q, heads, L * P]`
///
/// Returns `[B, Q, heads * D]`. On the CPU in f32 one pass over the queries does it all; elsewhere
/// [`deformable_sampling_plain`] runs.
///
/// # Errors
/// If the shapes do not fit each other.
pub fn deformable_sampling(
    value: &Tensor,
    locations: &Tensor,
    weights: &Tensor,
    shapes: &[(usize, usize)],
) -> Result<Tensor> {
    check(value, locations, weights, shapes)?;
    if matches!(value.device(), Device::Cpu) && value.dtype() == DType::F32 {
        let op = DeformableSampling(shapes.to_vec());
        return value.contiguous()?.apply_op3_no_bwd(
            &locations.contiguous()?,
            &weights.contiguous()?,
            &op,
        );
    }
    deformable_sampling_plain(value, locations, weights, shapes)
}

/// The same as [`deformable_sampling`], in plain tensor operations.
///
/// # Errors
/// If the shapes do not fit each other.
pub fn deformable_sampling_plain(
    value: &Tensor,
    locations: &Tensor,
    weights: &Tensor,
    shapes: &[(usize, usize)],
) -> Result<Tensor> {
    check(value, locations, weights, shapes)?;
    let (batch, _, heads, width) = value.dims4()?;
    let (_, queries, _, levels, pairs) = locations.dims5()?;
    let (points, dtype, device) = (pairs / 2, value.dtype(), value.device());
    let samples = (batch * heads, queries * points);
    // [B, Q, heads, L, ...] -> [L][B * heads, Q * P]
    let locations = locations
        .to_dtype(DType::F32)?
        .reshape((batch, queries, heads, levels, points, 2))?;
    let weights = weights
        .to_dtype(DType::F32)?
        .reshape((batch, queries, heads, levels, points))?;
    let mut sum = Tensor::zeros((batch * heads, queries, width), DType::F32, device)?;
    let mut start = 0;
    for (level, &(rows, columns)) in shapes.iter().enumerate() {
        let tokens = rows * columns;
        // [B, tokens, heads, D] -> [B * heads * tokens, D]
        let map = value
            .narrow(1, start, tokens)?
            .transpose(1, 2)?
            .reshape((batch * heads * tokens, width))?;
        start += tokens;
        let at = |coordinate: usize, size: usize| -> Result<Tensor> {
            let unit = locations
                .narrow(3, level, 1)?
                .narrow(5, coordinate, 1)?
                .reshape((batch, queries, heads, points))?
                .transpose(1, 2)?
                .reshape(samples)?;
            // a far sample is as empty as a near one outside, and its index stays exact
            ((unit * size as f64)? - 0.5)?.clamp(-2.0, size as f64 + 1.0)
        };
        let (x, y) = (at(0, columns)?, at(1, rows)?);
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
            // 1 - distance, and 0 outside
            let share = |at: &Tensor, cell: &Tensor, size: usize| -> Result<Tensor> {
                let inside = (cell.ge(0f32)? * cell.lt(size as f32)?)?.to_dtype(DType::F32)?;
                (1.0 - (at - cell)?.abs()?)? * inside
            };
            let share = (share(&x, &column, columns)? * share(&y, &row, rows)?)?;
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

fn check(
    value: &Tensor,
    locations: &Tensor,
    weights: &Tensor,
    shapes: &[(usize, usize)],
) -> Result<()> {
    let (batch, tokens, heads, _) = value.dims4()?;
    let (_, queries, _, levels, pairs) = locations.dims5()?;
    let cells: usize = shapes.iter().map(|(rows, columns)| rows * columns).sum();
    let fits = locations.dims() == [batch, queries, heads, levels, pairs]
        && weights.dims() == [batch, queries, heads, levels * pairs / 2]
        && shapes.len() == levels
        && pairs % 2 == 0
        && cells == tokens;
    if !fits {
        bail!(
            "deformable sampling: value {:?}, locations {:?}, weights {:?}, maps {shapes:?} do not fit",
            value.dims(),
            locations.dims(),
            weights.dims()
        )
    }
    Ok(())
}

/// The CPU pass; holds the maps' (height, width).
#[derive(Debug)]
struct DeformableSampling(Vec<(usize, usize)>);

impl CustomOp3 for DeformableSampling {
    fn name(&self) -> &'static str {
        "deformable-sampling"
    }

    fn cpu_fwd(
        &self,
        value: &CpuStorage,
        value_layout: &Layout,
        locations: &CpuStorage,
        locations_layout: &Layout,
        weights: &CpuStorage,
        weights_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (batch, tokens, heads, width) = value_layout.shape().dims4()?;
        let (_, queries, _, levels, pairs) = locations_layout.shape().dims5()?;
        let points = pairs / 2;
        let value = contiguous_f32(self.name(), value, value_layout)?;
        let locations = contiguous_f32(self.name(), locations, locations_layout)?;
        let weights = contiguous_f32(self.name(), weights, weights_layout)?;

        let row = heads * width;
        let samples = levels * points;
        let mut output = vec![0f32; batch * queries * row];
        output
            .par_chunks_mut(row)
            .enumerate()
            .for_each(|(query, output)| {
                let image = query / queries;
                let value = &value[image * tokens * row..(image + 1) * tokens * row];
                for (head, output) in output.chunks_mut(width).enumerate() {
                    let at = (query * heads + head) * samples;
                    let locations = &locations[at * 2..(at + samples) * 2];
                    let weights = &weights[at..at + samples];
                    let mut start = 0;
                    for (level, &(rows, columns)) in self.0.iter().enumerate() {
                        let map = Map {
                            value: &value[start * row..(start + rows * columns) * row],
                            rows,
                            columns,
                            row,
                            channel: head * width,
                        };
                        for point in level * points..(level + 1) * points {
                            let (x, y) = (locations[point * 2], locations[point * 2 + 1]);
                            map.add_sample(x, y, weights[point], output);
                        }
                        start += rows * columns;
                    }
                }
            });
        Ok((CpuStorage::F32(output), Shape::from((batch, queries, row))))
    }
}

/// One level of one image, as one head sees it.
struct Map<'a> {
    value: &'a [f32],
    rows: usize,
    columns: usize,
    /// Numbers from one cell to the next.
    row: usize,
    /// Where the head's channels start.
    channel: usize,
}

impl Map<'_> {
    /// Adds `weight` times the sample at `(x, y)`, 0..1, to `output`.
    #[inline]
    fn add_sample(&self, x: f32, y: f32, weight: f32, output: &mut [f32]) {
        let x = x * self.columns as f32 - 0.5;
        let y = y * self.rows as f32 - 0.5;
        let (left, top) = (x.floor(), y.floor());
        let (right_share, bottom_share) = (x - left, y - top);
        for (row, row_share) in [(top, 1.0 - bottom_share), (top + 1.0, bottom_share)] {
            // a location that is not a number fails both comparisons and adds nothing
            if !(row >= 0.0 && row < self.rows as f32) {
                continue;
            }
            for (column, share) in [(left, 1.0 - right_share), (left + 1.0, right_share)] {
                if !(column >= 0.0 && column < self.columns as f32) {
                    continue;
                }
                let cell = row as usize * self.columns + column as usize;
                let from = cell * self.row + self.channel;
                let share = weight * row_share * share;
                let sample = &self.value[from..from + output.len()];
                for (out, v) in output.iter_mut().zip(sample) {
                    *out += share * v;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_pass_equals_plain_tensors() -> Result<()> {
        let device = &Device::Cpu;
        let shapes = [(5, 7), (3, 4), (1, 2)];
        let tokens = 35 + 12 + 2;
        let (batch, queries, heads, width, points) = (2, 11, 3, 8, 4);
        let value = Tensor::randn(0f32, 1.0, (batch, tokens, heads, width), device)?;
        // some locations lie outside the maps
        let locations = Tensor::rand(-0.3f32, 1.3, (batch, queries, heads, 3, points * 2), device)?;
        let weights = Tensor::rand(0f32, 1.0, (batch, queries, heads, 3 * points), device)?;
        let fast = deformable_sampling(&value, &locations, &weights, &shapes)?;
        let plain = deformable_sampling_plain(&value, &locations, &weights, &shapes)?;
        let difference = (fast - plain)?.abs()?.max_all()?.to_scalar::<f32>()?;
        assert!(difference < 1e-5, "largest difference {difference:e}");
        Ok(())
    }

    #[test]
    fn shapes_that_do_not_fit_are_named() -> Result<()> {
        let value = Tensor::zeros((1, 4, 1, 2), DType::F32, &Device::Cpu)?;
        let locations = Tensor::zeros((1, 1, 1, 1, 2), DType::F32, &Device::Cpu)?;
        let weights = Tensor::zeros((1, 1, 1, 1), DType::F32, &Device::Cpu)?;
        let error = deformable_sampling(&value, &locations, &weights, &[(2, 3)]);
        assert!(error.is_err_and(|e| e.to_string().contains("[(2, 3)] do not fit")));
        Ok(())
    }
}
