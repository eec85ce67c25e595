//! Scaled dot-product attention, head by head and block by block, without storing all scores (Dao et al. 2022,
//! "FlashAttention", <https://arxiv.org/abs/2205.14135>).

#![allow(unsafe_code)]

use std::ops::Range;

use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use crate::packed::Panels;
use crate::scratch::{Scratch, SharedPointer, filled};
use crate::simd::{InstructionSet, exponentials};
use crate::tile::{Epilogue, Tile};

/// Queries of one block of scores.
const BLOCK_QUERIES: usize = 96;
/// Keys of one block of scores.
const BLOCK_KEYS: usize = 256;

/// The sizes of an attention.
#[derive(Debug, Clone, Copy)]
pub struct Sizes {
    /// Number of images or windows.
    pub groups: usize,
    /// Number of heads.
    pub heads: usize,
    /// Number of queries per group.
    pub queries: usize,
    /// Number of keys per group.
    pub keys: usize,
    /// Channels per head.
    pub width: usize,
}

/// The inputs and the output layout of an attention. A row is the `width` numbers of one head of one token.
///
/// # Safety
/// The rows of [`Rows::output`] must cover the whole output without overlaps.
pub(crate) unsafe trait Rows: Sync {
    /// Length of the output.
    fn length(&self) -> usize;

    fn query(&self, group: usize, head: usize, index: usize) -> &[f32];
    fn key(&self, group: usize, head: usize, index: usize) -> &[f32];
    fn value(&self, group: usize, head: usize, index: usize) -> &[f32];

    /// The start of a query's row in the output; `None` for a query without a row there, whose result is dropped. All
    /// starts are different.
    fn output(&self, group: usize, head: usize, index: usize) -> Option<usize>;

    /// Length of the buffer of [`Rows::prepare`] for this number of queries.
    fn prepared(&self, _queries: usize) -> usize {
        0
    }

    /// Computes the part of the bias that depends on the queries. `scaled` are their rows, divided by the square root
    /// of the width, one after the other.
    #[inline(always)]
    fn prepare<S: Simd>(
        &self,
        _simd: S,
        _head: usize,
        _queries: Range<usize>,
        _scaled: &[f32],
        _prepared: &mut [f32],
    ) {
    }

    /// Adds the bias to a query's scores for the keys from `first_key` on.
    fn add_bias(&self, query: Query, first_key: usize, scores: &mut [f32]);
}

/// The query whose scores are being computed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Query<'a> {
    pub group: usize,
    pub head: usize,
    pub index: usize,
    /// The prepared numbers of the queries from `first` on.
    pub prepared: &'a [f32],
    pub first: usize,
}

/// `softmax(Q K^T / sqrt(width) + bias) V` for every group and head.
pub(crate) fn attend<R: Rows>(set: InstructionSet, rows: &R, sizes: Sizes) -> Vec<f32> {
    let length = rows.length();
    let pairs = sizes.groups * sizes.heads;
    // a head's queries are split among threads only if there are too few heads, because every part packs the keys
    // again
    let wanted = (4 * rayon::current_num_threads()).div_ceil(pairs.max(1));
    let parts = wanted.clamp(1, sizes.queries.div_ceil(2 * BLOCK_QUERIES).max(1));
    let part = sizes.queries.div_ceil(parts).max(1);
    let run = |output: SharedPointer<*mut f32>| {
        let task = |index: usize| {
            let (pair, part_index) = (index / parts, index % parts);
            let first = (part_index * part).min(sizes.queries);
            set.run(HeadPart {
                rows,
                sizes,
                group: pair / sizes.heads,
                head: pair % sizes.heads,
                queries: first..(first + part).min(sizes.queries),
                output,
                length,
            });
        };
        let work = pairs * sizes.queries * sizes.keys * sizes.width;
        if work < 1 << 15 {
            (0..pairs * parts).for_each(task);
        } else {
            (0..pairs * parts).into_par_iter().for_each(task);
        }
    };
    // SAFETY: the rows cover the output, as `Rows` requires.
    unsafe { filled(length, run) }
}

/// A part of the queries of one head of one group.
struct HeadPart<'a, R> {
    rows: &'a R,
    sizes: Sizes,
    group: usize,
    head: usize,
    queries: Range<usize>,
    output: SharedPointer<*mut f32>,
    length: usize,
}

impl<R: Rows> WithSimd for HeadPart<'_, R> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Sizes { keys, width, .. } = self.sizes;
        let (rows, group, head) = (self.rows, self.group, self.head);
        let count = self.queries.len();
        let lanes = S::F32_LANES;
        let block = BLOCK_QUERIES.min(count.max(1));
        let lengths = [
            Panels::size(lanes, keys, width),
            Panels::size(lanes, width, keys),
            count * width,
            rows.prepared(count),
            block * BLOCK_KEYS,
            block * width,
            2 * block,
        ];
        let mut scratch = Scratch::take();
        let [
            keys_buffer,
            values_buffer,
            scaled,
            prepared,
            scores,
            sums,
            stats,
        ] = scratch.parts(lengths);
        let keys_panels = Panels::pack_rows(keys_buffer, lanes, (keys, width), |i| {
            rows.key(group, head, i)
        });
        let values_panels = Panels::pack_columns(values_buffer, lanes, (width, keys), |i| {
            rows.value(group, head, i)
        });
        let scale = 1.0 / (width as f32).sqrt();
        for (i, out) in scaled.chunks_exact_mut(width).enumerate() {
            let query = rows.query(group, head, self.queries.start + i);
            for (out, value) in out.iter_mut().zip(query) {
                *out = value * scale;
            }
        }
        rows.prepare(simd, head, self.queries.clone(), scaled, prepared);
        for first in (0..count).step_by(BLOCK_QUERIES) {
            let block = Block {
                part: &self,
                first,
                count: BLOCK_QUERIES.min(count - first),
                keys: keys_panels,
                values: values_panels,
                scaled,
                prepared,
            };
            block.compute(simd, scores, sums, stats);
        }
    }
}

/// Up to [`BLOCK_QUERIES`] queries of a part.
struct Block<'a, R> {
    part: &'a HeadPart<'a, R>,
    first: usize,
    count: usize,
    keys: Panels,
    values: Panels,
    scaled: &'a [f32],
    prepared: &'a [f32],
}

impl<R: Rows> Block<'_, R> {
    /// Uses the buffers `scores` `[count, BLOCK_KEYS]`, `sums` `[count, width]`, and `stats`, which has the largest
    /// score and the sum of exponentials so far for each query.
    #[inline(always)]
    fn compute<S: Simd>(&self, simd: S, scores: &mut [f32], sums: &mut [f32], stats: &mut [f32]) {
        let Sizes { keys, width, .. } = self.part.sizes;
        let panel = Panels::width(S::F32_LANES);
        let (largest, totals) = stats.split_at_mut(self.count);
        largest.fill(f32::NEG_INFINITY);
        totals.fill(0.0);
        sums.fill(0.0);
        for first_key in (0..keys).step_by(BLOCK_KEYS) {
            let count = BLOCK_KEYS.min(keys - first_key);
            let score = Tile {
                panels: (first_key / panel, count.div_ceil(panel)),
                ..Tile::whole(
                    self.count,
                    (self.scaled[self.first * width..].as_ptr(), width),
                    self.keys,
                    (scores.as_mut_ptr(), BLOCK_KEYS),
                )
            };
            // SAFETY: the queries' rows exist, and the scores' rows are `BLOCK_KEYS` numbers apart.
            unsafe { score.compute(simd) };
            for (i, scores) in scores
                .chunks_exact_mut(BLOCK_KEYS)
                .take(self.count)
                .enumerate()
            {
                let query = Query {
                    group: self.part.group,
                    head: self.part.head,
                    index: self.part.queries.start + self.first + i,
                    prepared: self.prepared,
                    first: self.part.queries.start,
                };
                self.part
                    .rows
                    .add_bias(query, first_key, &mut scores[..count]);
                let rescale = softmax_part(simd, scores, count, &mut largest[i], &mut totals[i]);
                if first_key > 0 && rescale != 1.0 {
                    for sum in &mut sums[i * width..][..width] {
                        *sum *= rescale;
                    }
                }
            }
            let add = Tile {
                depth: (first_key, count),
                epilogue: Epilogue {
                    accumulate: true,
                    ..Epilogue::default()
                },
                ..Tile::whole(
                    self.count,
                    (scores.as_ptr(), BLOCK_KEYS),
                    self.values,
                    (sums.as_mut_ptr(), width),
                )
            };
            // SAFETY: as above; the sums are initialised.
            unsafe { add.compute(simd) };
        }
        for (i, sums) in sums.chunks_exact(width).take(self.count).enumerate() {
            let index = self.part.queries.start + self.first + i;
            let Some(at) = self
                .part
                .rows
                .output(self.part.group, self.part.head, index)
            else {
                continue;
            };
            assert!(
                at + width <= self.part.length,
                "the output row is beyond the end of the output"
            );
            let scale = 1.0 / totals[i];
            for (j, sum) in sums.iter().enumerate() {
                // SAFETY: inside the output, in a row of this task only.
                unsafe { self.part.output.get().add(at + j).write(sum * scale) };
            }
        }
    }
}

/// Replaces scores by their exponentials `e^(score - largest)`, where `largest` is the largest score so far. Returns
/// the factor by which earlier sums must be multiplied.
#[inline(always)]
fn softmax_part<S: Simd>(
    simd: S,
    scores: &mut [f32],
    count: usize,
    largest: &mut f32,
    total: &mut f32,
) -> f32 {
    let padded = count.next_multiple_of(S::F32_LANES);
    // padding of the last vector: never the largest, and not added to the sum
    scores[count..padded].fill(f32::NEG_INFINITY);
    let scores = &mut scores[..padded];
    let mut new_largest = simd.splat_f32s(*largest);
    for vector in S::as_simd_f32s(scores).0 {
        new_largest = simd.max_f32s(new_largest, *vector);
    }
    let new_largest = simd.reduce_max_f32s(new_largest);
    exponentials(simd, scores, new_largest);
    let (vectors, rest) = S::as_simd_f32s(&scores[..count]);
    let mut sums = simd.splat_f32s(0.0);
    for vector in vectors {
        sums = simd.add_f32s(sums, *vector);
    }
    let sum = simd.reduce_sum_f32s(sums) + rest.iter().sum::<f32>();
    let rescale = if *largest == new_largest {
        1.0
    } else {
        (*largest - new_largest).exp()
    };
    *total = *total * rescale + sum;
    *largest = new_largest;
    rescale
}

/// `softmax(Q K^T / sqrt(width) + bias) V` of tokens to tokens: `[groups, queries, heads * width]`.
pub fn multihead_attention(set: InstructionSet, rows: &Multihead, sizes: Sizes) -> Vec<f32> {
    attend(set, rows, sizes)
}

/// Rows of a tensor `[B, N, C]` whose heads are side by side.
#[derive(Debug, Clone, Copy)]
pub struct Heads<'a> {
    pub data: &'a [f32],
    /// Number of tokens per image.
    pub tokens: usize,
    /// Numbers per token.
    pub stride: usize,
    /// Whether one image is shared by all groups.
    pub is_shared: bool,
}

impl Heads<'_> {
    #[inline(always)]
    fn row(&self, width: usize, group: usize, head: usize, index: usize) -> &[f32] {
        let group = if self.is_shared { 0 } else { group };
        &self.data[(group * self.tokens + index) * self.stride + head * width..][..width]
    }
}

/// Attention between two sequences of tokens.
pub struct Multihead<'a> {
    pub query: Heads<'a>,
    pub key: Heads<'a>,
    pub value: Heads<'a>,
    /// An additive bias, and its strides for groups, heads and queries.
    pub bias: Option<(&'a [f32], [usize; 3])>,
    pub width: usize,
    pub heads: usize,
    pub groups: usize,
}

// SAFETY: a query's row is determined by group, index and head in this order, so the rows have no gaps.
unsafe impl Rows for Multihead<'_> {
    fn length(&self) -> usize {
        self.groups * self.query.tokens * self.heads * self.width
    }

    #[inline(always)]
    fn query(&self, group: usize, head: usize, index: usize) -> &[f32] {
        self.query.row(self.width, group, head, index)
    }

    #[inline(always)]
    fn key(&self, group: usize, head: usize, index: usize) -> &[f32] {
        self.key.row(self.width, group, head, index)
    }

    #[inline(always)]
    fn value(&self, group: usize, head: usize, index: usize) -> &[f32] {
        self.value.row(self.width, group, head, index)
    }

    #[inline(always)]
    fn output(&self, group: usize, head: usize, index: usize) -> Option<usize> {
        let token = group * self.query.tokens + index;
        Some((token * self.heads + head) * self.width)
    }

    #[inline(always)]
    fn add_bias(&self, query: Query, first_key: usize, scores: &mut [f32]) {
        if let Some((bias, [groups, heads, queries])) = self.bias {
            let at = query.group * groups + query.head * heads + query.index * queries;
            let bias = &bias[at + first_key..][..scores.len()];
            for (score, bias) in scores.iter_mut().zip(bias) {
                *score += bias;
            }
        }
    }
}
