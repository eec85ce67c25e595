//! The sampling of multi-scale deformable attention: softmax, locations and bilinear samples in one pass.

#![allow(unsafe_code)]

use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use super::gemm::load;
use super::scratch::{Scratch, Shared, filled};
use super::simd::{InstructionSet, exponentials};

/// The sizes of a call.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sizes<'a> {
    pub(crate) batch: usize,
    pub(crate) queries: usize,
    pub(crate) heads: usize,
    /// Channels of a head.
    pub(crate) width: usize,
    /// Places that a head looks at on each level.
    pub(crate) points: usize,
    /// (height, width) of each level's map.
    pub(crate) shapes: &'a [(usize, usize)],
    /// Numbers of a reference point: 2 for a centre, 4 for a box.
    pub(crate) reference: usize,
}

impl Sizes<'_> {
    fn samples(&self) -> usize {
        self.shapes.len() * self.points
    }

    fn tokens(&self) -> usize {
        self.shapes
            .iter()
            .map(|(rows, columns)| rows * columns)
            .sum()
    }
}

/// Queries of one task.
const QUERIES: usize = 64;

/// - `value` `[B, N, heads * width]`
/// - `samples` `[B, Q, heads * L * P * 3]`: all heads' offsets `(x, y)`, then all heads' logits
/// - `reference` `[B, Q, L, 2 or 4]`
///
/// Returns `[B, Q, heads * width]`.
pub(crate) fn deformable_sampling(
    set: InstructionSet,
    value: &[f32],
    samples: &[f32],
    reference: &[f32],
    sizes: Sizes,
) -> Vec<f32> {
    let channels = sizes.heads * sizes.width;
    let rows = sizes.batch * sizes.queries;
    assert_eq!(
        value.len(),
        sizes.batch * sizes.tokens() * channels,
        "value"
    );
    assert_eq!(
        samples.len(),
        rows * sizes.heads * sizes.samples() * 3,
        "samples"
    );
    assert_eq!(
        reference.len(),
        rows * sizes.shapes.len() * sizes.reference,
        "reference points"
    );
    let run = |output: Shared<*mut f32>| {
        (0..rows.div_ceil(QUERIES))
            .into_par_iter()
            .for_each(|task| {
                set.run(Part {
                    value,
                    samples,
                    reference,
                    sizes,
                    first: task * QUERIES,
                    count: QUERIES.min(rows - task * QUERIES),
                    output,
                });
            });
    };
    // SAFETY: every task writes the rows of its queries.
    unsafe { filled(rows * channels, run) }
}

/// The queries of one task.
struct Part<'a> {
    value: &'a [f32],
    samples: &'a [f32],
    reference: &'a [f32],
    sizes: Sizes<'a>,
    first: usize,
    count: usize,
    output: Shared<*mut f32>,
}

impl WithSimd for Part<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Sizes { heads, width, .. } = self.sizes;
        let samples = self.sizes.samples();
        let padded = samples.next_multiple_of(S::F32_LANES);
        let mut scratch = Scratch::take();
        let [shares, weights, sums] = scratch.parts([padded, 4 * samples, width]);
        let mut cells = vec![0u32; 4 * samples];
        let channels = heads * width;
        // head by head: the places of neighbouring queries are neighbours
        for head in 0..heads {
            for row in self.first..self.first + self.count {
                self.attention(simd, row, head, shares);
                self.corners(row, head, shares, &mut cells, weights);
                let image = row / self.sizes.queries;
                let value = &self.value[image * self.sizes.tokens() * channels..];
                let from = Cells {
                    value: &value[..self.sizes.tokens() * channels],
                    stride: channels,
                    channel: head * width,
                    cells: &cells,
                    weights,
                };
                from.add(simd, sums);
                // SAFETY: the row and head of this task alone.
                unsafe {
                    let at = self.output.get().add(row * channels + head * width);
                    at.copy_from_nonoverlapping(sums.as_ptr(), width);
                }
            }
        }
    }
}

impl Part<'_> {
    /// The softmax of a query's logits.
    #[inline(always)]
    fn attention<S: Simd>(&self, simd: S, row: usize, head: usize, shares: &mut [f32]) {
        let samples = self.sizes.samples();
        let of_heads = self.sizes.heads * samples;
        let logits = &self.samples[row * 3 * of_heads + 2 * of_heads + head * samples..][..samples];
        let mut most = f32::NEG_INFINITY;
        for logit in logits {
            most = most.max(*logit);
        }
        shares[..samples].copy_from_slice(logits);
        shares[samples..].fill(f32::NEG_INFINITY);
        exponentials(simd, shares, most);
        let mut total = 0.0;
        for share in &shares[..samples] {
            total += share;
        }
        let scale = 1.0 / total;
        for share in &mut shares[..samples] {
            *share *= scale;
        }
    }

    /// The four cells around each place, and their weights: 0 outside the map.
    #[inline(always)]
    fn corners(
        &self,
        row: usize,
        head: usize,
        shares: &[f32],
        cells: &mut [u32],
        weights: &mut [f32],
    ) {
        let Sizes {
            points,
            shapes,
            reference,
            ..
        } = self.sizes;
        let samples = self.sizes.samples();
        let offsets = row * 3 * self.sizes.heads * samples + head * samples * 2;
        let offsets = &self.samples[offsets..][..samples * 2];
        let references = &self.reference[row * shapes.len() * reference..];
        let mut start = 0;
        for (level, &(rows, columns)) in shapes.iter().enumerate() {
            let at = &references[level * reference..][..reference];
            let (height, width) = (rows as f32, columns as f32);
            // offsets are in cells, or in halves of a box's sides shared among the points
            let (step_x, step_y) = match at {
                [_, _, w, h] => {
                    let share = 0.5 / points as f32;
                    (share * w * width, share * h * height)
                }
                _ => (1.0, 1.0),
            };
            let (centre_x, centre_y) = (at[0] * width - 0.5, at[1] * height - 0.5);
            for point in 0..points {
                let sample = level * points + point;
                let x = centre_x + offsets[2 * sample] * step_x;
                let y = centre_y + offsets[2 * sample + 1] * step_y;
                let (left, top) = (x.floor(), y.floor());
                let (right_share, bottom_share) = (x - left, y - top);
                let share = shares[sample];
                // a location that is not a number fails all comparisons and weighs nothing
                let inside = |cell: f32, size: f32| cell >= 0.0 && cell < size;
                let weigh = |is_inside: bool, weight: f32| if is_inside { weight } else { 0.0 };
                let columns_of = [
                    (left, weigh(inside(left, width), 1.0 - right_share)),
                    (left + 1.0, weigh(inside(left + 1.0, width), right_share)),
                ];
                let rows_of = [
                    (top, weigh(inside(top, height), 1.0 - bottom_share)),
                    (top + 1.0, weigh(inside(top + 1.0, height), bottom_share)),
                ];
                for (i, (y, y_share)) in rows_of.into_iter().enumerate() {
                    for (j, (x, x_share)) in columns_of.into_iter().enumerate() {
                        let corner = 4 * sample + 2 * i + j;
                        let y = (y.max(0.0) as u32).min(rows as u32 - 1);
                        let x = (x.max(0.0) as u32).min(columns as u32 - 1);
                        cells[corner] = start + y * columns as u32 + x;
                        weights[corner] = share * y_share * x_share;
                    }
                }
            }
            start += (rows * columns) as u32;
        }
    }
}

/// Cells of an image's maps, as one head sees them.
struct Cells<'a> {
    value: &'a [f32],
    /// Numbers from one cell to the next.
    stride: usize,
    /// Where the head's channels start.
    channel: usize,
    cells: &'a [u32],
    weights: &'a [f32],
}

impl Cells<'_> {
    /// The weighted sum of the cells.
    #[inline(always)]
    fn add<S: Simd>(&self, simd: S, sums: &mut [f32]) {
        let lanes = S::F32_LANES;
        let whole = sums.len() / lanes;
        let mut vector = 0;
        while vector + 4 <= whole {
            self.add_vectors::<S, 4>(simd, vector * lanes, sums);
            vector += 4;
        }
        while vector < whole {
            self.add_vectors::<S, 1>(simd, vector * lanes, sums);
            vector += 1;
        }
        for (channel, sum) in sums.iter_mut().enumerate().skip(whole * lanes) {
            *sum = 0.0;
            for (cell, weight) in self.cells.iter().zip(self.weights) {
                *sum += weight * self.value[*cell as usize * self.stride + self.channel + channel];
            }
        }
    }

    #[inline(always)]
    fn add_vectors<S: Simd, const N: usize>(&self, simd: S, first: usize, sums: &mut [f32]) {
        let mut totals = [simd.splat_f32s(0.0); N];
        for (cell, weight) in self.cells.iter().zip(self.weights) {
            let at = *cell as usize * self.stride + self.channel + first;
            let weight = simd.splat_f32s(*weight);
            let from = &self.value[at..at + N * S::F32_LANES];
            for (v, total) in totals.iter_mut().enumerate() {
                // SAFETY: vector `v` of the slice.
                let value = unsafe { load::<S>(from.as_ptr().add(v * S::F32_LANES)) };
                *total = simd.mul_add_e_f32s(weight, value, *total);
            }
        }
        for (out, total) in sums[first..].chunks_exact_mut(S::F32_LANES).zip(totals) {
            // SAFETY: the chunk is one vector.
            unsafe { out.as_mut_ptr().cast::<S::f32s>().write_unaligned(total) };
        }
    }
}
