//! The sampling of multi-scale deformable attention: softmax, locations and bilinear samples in one pass.

#![allow(unsafe_code)]

use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use crate::scratch::{Scratch, SharedPointer, filled};
use crate::simd::{InstructionSet, exponentials, load, load_part, multiply_add};

/// The sizes of a call.
#[derive(Debug, Clone, Copy)]
pub struct Sizes<'a> {
    /// Number of images.
    pub batch: usize,
    /// Number of queries per image.
    pub queries: usize,
    /// Number of heads.
    pub heads: usize,
    /// Channels per head.
    pub width: usize,
    /// Sampled positions per head and level.
    pub points: usize,
    /// `(height, width)` of each level's map.
    pub shapes: &'a [(usize, usize)],
    /// Numbers per reference point: 2 for a centre, 4 for a box.
    pub reference: usize,
}

impl Sizes<'_> {
    /// Samples per query and head.
    fn samples(&self) -> usize {
        self.shapes.len() * self.points
    }

    /// Cells of all maps of an image.
    fn tokens(&self) -> usize {
        self.shapes
            .iter()
            .map(|(rows, columns)| rows * columns)
            .sum()
    }
}

/// Queries per task.
const TASK_QUERIES: usize = 64;

/// Limit of integers that the fraction bits of `2^23 + n` can hold.
const MAX_CELLS: usize = 1 << 23;

/// - `value` `[B, heads, N, width]`
/// - `samples` `[B, Q, 3 * heads * L * P]`: the offsets in x of all heads, then those in y, then the logits of all
///   heads
/// - `reference` `[B, Q, L, 2 or 4]`
///
/// Returns `[B, Q, heads * width]`.
pub fn deformable_sampling(
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
        "the values do not have the given size"
    );
    assert_eq!(
        samples.len(),
        rows * sizes.heads * sizes.samples() * 3,
        "the samples do not have the given size"
    );
    assert_eq!(
        reference.len(),
        rows * sizes.shapes.len() * sizes.reference,
        "the reference points do not have the given size"
    );
    assert!(sizes.tokens() < MAX_CELLS, "the maps have too many cells");
    let run = |output: SharedPointer<*mut f32>| {
        (0..rows.div_ceil(TASK_QUERIES))
            .into_par_iter()
            .for_each(|task| {
                set.run(Part {
                    value,
                    samples,
                    reference,
                    sizes,
                    first: task * TASK_QUERIES,
                    count: TASK_QUERIES.min(rows - task * TASK_QUERIES),
                    output,
                });
            });
    };
    // SAFETY: every task writes all rows of its queries.
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
    output: SharedPointer<*mut f32>,
}

impl WithSimd for Part<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Sizes { heads, width, .. } = self.sizes;
        let padded = self.sizes.samples().next_multiple_of(S::F32_LANES);
        let mut scratch = Scratch::take();
        let lengths = [
            3 * padded,
            4 * padded * self.count,
            padded,
            4 * padded,
            4 * padded,
        ];
        let [maps, positions, attention_weights, weights, cells] = scratch.parts(lengths);
        self.maps(maps, padded);
        for (i, positions) in positions.chunks_exact_mut((4 * padded).max(1)).enumerate() {
            self.positions(self.first + i, positions, padded);
        }
        let channels = heads * width;
        // head by head, because neighbouring queries sample neighbouring positions
        for head in 0..heads {
            for (i, positions) in positions.chunks_exact((4 * padded).max(1)).enumerate() {
                let row = self.first + i;
                self.attention(simd, row, head, attention_weights);
                let to = (&mut *cells, &mut *weights);
                self.corners(simd, (row, head), (maps, positions, attention_weights), to);
                let image = row / self.sizes.queries;
                let of_head = self.sizes.tokens() * width;
                let from = Cells {
                    value: &self.value[(image * heads + head) * of_head..][..of_head],
                    width,
                    cells,
                    weights,
                };
                // SAFETY: the cells are in the image's maps; only this task writes this row and head of the output.
                unsafe { from.add(simd, self.output.get().add(row * channels + head * width)) };
            }
        }
    }
}

impl Part<'_> {
    /// For each sample, the width, the height and the first cell of its map; zeros after the last sample.
    fn maps(&self, maps: &mut [f32], padded: usize) {
        maps.fill(0.0);
        let mut start = 0;
        for (level, &(rows, columns)) in self.sizes.shapes.iter().enumerate() {
            for sample in level * self.sizes.points..(level + 1) * self.sizes.points {
                maps[sample] = columns as f32;
                maps[padded + sample] = rows as f32;
                maps[2 * padded + sample] = start as f32;
            }
            start += rows * columns;
        }
    }

    /// For each sample of a query, its position `x, y` without an offset, and the factors of the offsets, in cells.
    fn positions(&self, row: usize, positions: &mut [f32], padded: usize) {
        let Sizes {
            points,
            shapes,
            reference,
            ..
        } = self.sizes;
        positions.fill(0.0);
        let references = &self.reference[row * shapes.len() * reference..];
        for (level, &(rows, columns)) in shapes.iter().enumerate() {
            let at = &references[level * reference..][..reference];
            let (height, width) = (rows as f32, columns as f32);
            // offsets are in cells, or in halves of a box's sides divided by the number of points
            let (step_x, step_y) = match at {
                [_, _, w, h] => {
                    let share = 0.5 / points as f32;
                    (share * w * width, share * h * height)
                }
                _ => (1.0, 1.0),
            };
            let centre = (at[0] * width - 0.5, at[1] * height - 0.5);
            for sample in level * points..(level + 1) * points {
                for (part, value) in [centre.0, centre.1, step_x, step_y].into_iter().enumerate() {
                    positions[part * padded + sample] = value;
                }
            }
        }
    }

    /// The softmax of a query's logits; zeros after the last sample.
    #[inline(always)]
    fn attention<S: Simd>(&self, simd: S, row: usize, head: usize, attention_weights: &mut [f32]) {
        let samples = self.sizes.samples();
        let of_heads = self.sizes.heads * samples;
        let logits = &self.samples[row * 3 * of_heads + 2 * of_heads + head * samples..][..samples];
        attention_weights[..samples].copy_from_slice(logits);
        attention_weights[samples..].fill(f32::NEG_INFINITY);
        let mut largest = simd.splat_f32s(f32::NEG_INFINITY);
        for vector in S::as_simd_f32s(attention_weights).0 {
            largest = simd.max_f32s(largest, *vector);
        }
        exponentials(simd, attention_weights, simd.reduce_max_f32s(largest));
        attention_weights[samples..].fill(0.0);
        let mut total = simd.splat_f32s(0.0);
        for vector in S::as_simd_f32s(attention_weights).0 {
            total = simd.add_f32s(total, *vector);
        }
        let scale = simd.splat_f32s(1.0 / simd.reduce_sum_f32s(total));
        for vector in S::as_mut_simd_f32s(attention_weights).0 {
            *vector = simd.mul_f32s(*vector, scale);
        }
    }

    /// The four cells around each position as bits, corner by corner, and their weights. A corner outside the map, or
    /// of a position that is NaN, is cell 0 with weight 0.
    #[inline(always)]
    fn corners<S: Simd>(
        &self,
        simd: S,
        (row, head): (usize, usize),
        (maps, positions, attention_weights): (&[f32], &[f32], &[f32]),
        (cells, weights): (&mut [f32], &mut [f32]),
    ) {
        let lanes = S::F32_LANES;
        let samples = self.sizes.samples();
        let padded = attention_weights.len();
        let of_heads = self.sizes.heads * samples;
        let offsets = &self.samples[row * 3 * of_heads + head * samples..];
        let (offsets_x, offsets_y) = (&offsets[..samples], &offsets[of_heads..][..samples]);
        for first in (0..padded).step_by(lanes) {
            // SAFETY: `lanes` numbers from `first` on, inside a slice of `padded` numbers.
            let at = |part: usize, from: &[f32]| unsafe {
                load::<S>(from[part * padded + first..][..lanes].as_ptr())
            };
            let offset = |from: &[f32]| {
                let count = lanes.min(samples.saturating_sub(first));
                let from = from.as_ptr().wrapping_add(first);
                // SAFETY: the remaining samples of the head, at most one vector.
                unsafe {
                    if count == lanes {
                        load::<S>(from)
                    } else {
                        load_part(simd, from, count)
                    }
                }
            };
            let (width, height, start) = (at(0, maps), at(1, maps), at(2, maps));
            let x = multiply_add(simd, offset(offsets_x), at(2, positions), at(0, positions));
            let y = multiply_add(simd, offset(offsets_y), at(3, positions), at(1, positions));
            let columns = Neighbours::new(simd, x, width);
            let rows = Neighbours::new(simd, y, height);
            let attention_weight = at(0, attention_weights);
            for corner in 0..4 {
                let (row, row_weight) = rows.0[corner / 2];
                let (column, column_weight) = columns.0[corner % 2];
                let weight =
                    simd.mul_f32s(simd.mul_f32s(attention_weight, row_weight), column_weight);
                let cell = multiply_add(simd, row, width, simd.add_f32s(start, column));
                let shifted = simd.add_f32s(cell, simd.splat_f32s(MAX_CELLS as f32));
                // SAFETY: as above.
                unsafe {
                    let at = corner * padded + first;
                    let cells = cells[at..][..lanes].as_mut_ptr();
                    cells.cast::<S::f32s>().write_unaligned(shifted);
                    let weights = weights[at..][..lanes].as_mut_ptr();
                    weights.cast::<S::f32s>().write_unaligned(weight);
                }
            }
        }
    }
}

/// The two neighbouring cells of some positions along one side of a map, with their weights. A cell outside the map
/// is cell 0 with weight 0.
struct Neighbours<S: Simd>([(S::f32s, S::f32s); 2]);

impl<S: Simd> Neighbours<S> {
    #[inline(always)]
    fn new(simd: S, at: S::f32s, size: S::f32s) -> Self {
        let splat = |value: f32| simd.splat_f32s(value);
        let (zero, one) = (splat(0.0), splat(1.0));
        // every position far outside has weight 0, so clamp it to just outside, where rounding is exact
        let at = simd.max_f32s(simd.min_f32s(at, simd.add_f32s(size, one)), splat(-2.0));
        let magic = splat(12_582_912.0);
        let rounded = simd.sub_f32s(simd.add_f32s(at, magic), magic);
        let is_above = simd.greater_than_f32s(rounded, at);
        let low = simd.select_f32s(is_above, simd.sub_f32s(rounded, one), rounded);
        let high_share = simd.sub_f32s(at, low);
        let inside = |cell: S::f32s, share: S::f32s| {
            // a NaN position fails the comparisons
            let is_not_before = simd.greater_than_or_equal_f32s(cell, zero);
            let is_not_beyond = simd.less_than_f32s(cell, size);
            let keep = |value| {
                simd.select_f32s(
                    is_not_before,
                    simd.select_f32s(is_not_beyond, value, zero),
                    zero,
                )
            };
            (keep(cell), keep(share))
        };
        Self([
            inside(low, simd.sub_f32s(one, high_share)),
            inside(simd.add_f32s(low, one), high_share),
        ])
    }
}

/// Cells of an image's maps, for one head.
struct Cells<'a> {
    value: &'a [f32],
    /// Channels per cell.
    width: usize,
    /// Cell indices, in the low bits of `2^23 + n`.
    cells: &'a [f32],
    weights: &'a [f32],
}

impl Cells<'_> {
    /// Writes the weighted sum of the cells.
    ///
    /// # Safety
    /// Every cell must be inside the maps, and `out` must be valid for writes of one cell.
    #[inline(always)]
    unsafe fn add<S: Simd>(&self, simd: S, out: *mut f32) {
        let (width, lanes) = (self.width, S::F32_LANES);
        let vectors = width / lanes;
        let mut vector = 0;
        // SAFETY: the vectors are inside the head's channels.
        unsafe {
            while vector + 4 <= vectors {
                self.add_vectors::<S, 4>(simd, vector * lanes, out);
                vector += 4;
            }
            while vector + 2 <= vectors {
                self.add_vectors::<S, 2>(simd, vector * lanes, out);
                vector += 2;
            }
            while vector < vectors {
                self.add_vectors::<S, 1>(simd, vector * lanes, out);
                vector += 1;
            }
        }
        for channel in vectors * lanes..width {
            let mut sum = 0.0;
            for (cell, weight) in self.cells.iter().zip(self.weights) {
                sum += weight * self.value[cell_index(*cell) * self.width + channel];
            }
            // SAFETY: one of the head's channels.
            unsafe { out.add(channel).write(sum) };
        }
    }

    /// # Safety
    /// See [`Cells::add`]; `N` vectors from `first` on must be inside a cell.
    #[inline(always)]
    unsafe fn add_vectors<S: Simd, const N: usize>(&self, simd: S, first: usize, out: *mut f32) {
        let lanes = S::F32_LANES;
        // two independent sums, because each addition of a single sum would wait for the one before
        let mut totals = [[simd.splat_f32s(0.0); N]; 2];
        let (cells, _) = self.cells.as_chunks::<2>();
        let (weights, _) = self.weights.as_chunks::<2>();
        for (cells, weights) in cells.iter().zip(weights) {
            for ((cell, weight), totals) in cells.iter().zip(weights).zip(&mut totals) {
                let at = cell_index(*cell) * self.width + first;
                debug_assert!(at + N * lanes <= self.value.len());
                let weight = simd.splat_f32s(*weight);
                for (v, total) in totals.iter_mut().enumerate() {
                    // SAFETY: guaranteed by the caller.
                    let value = unsafe { load::<S>(self.value.as_ptr().add(at + v * lanes)) };
                    *total = multiply_add(simd, weight, value, *total);
                }
            }
        }
        let [even, odd] = totals;
        for (v, (even, odd)) in even.into_iter().zip(odd).enumerate() {
            let total = simd.add_f32s(even, odd);
            // SAFETY: as above.
            unsafe {
                out.add(first + v * lanes)
                    .cast::<S::f32s>()
                    .write_unaligned(total)
            };
        }
    }
}

/// The integer in the low bits of `2^23 + n`.
#[inline(always)]
fn cell_index(shifted: f32) -> usize {
    (shifted.to_bits() & (MAX_CELLS as u32 - 1)) as usize
}
