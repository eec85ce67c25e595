//! Bi-directional attention between many image tokens and few text tokens.
//!
//! The reference projects both sides to `heads * width` channels (1024), and back. Here the products are
//! re-associated: the query projection is folded into the text's keys, and the output projection into the text's
//! values. The image tokens are then multiplied only with matrices of `heads * T` rows. The result is algebraically
//! the same, and for up to `T = width` text tokens it takes fewer operations.

#![allow(unsafe_code)]

use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use crate::activation::Activation;
use crate::gemm::{Rows, product};
use crate::packed::{Format, Packed, Panels};
use crate::scratch::{Scratch, SharedPointer, filled};
use crate::simd::{InstructionSet, exponentials};
use crate::tile::{Epilogue, TILE_ROWS, Tile};

/// A linear layer's weight `[output, input]` and bias `[output]`.
pub type Layer<'a> = (&'a [f32], &'a [f32]);

/// The projections of the image side, per head, in the form that is folded into the text.
#[derive(Debug, Clone)]
pub struct ImageProjections {
    set: InstructionSet,
    /// Channels per image token.
    d: usize,
    /// Channels per head.
    width: usize,
    /// Per head, the transposed query projection `[d, width]`, divided by the square root of the width.
    query: Vec<Packed>,
    query_bias: Vec<f32>,
    /// Per head, the value projection `[width, d]`.
    value: Vec<Packed>,
    value_bias: Vec<f32>,
    /// Per head, the columns `[d, width]` of the output projection, scaled.
    output: Vec<Packed>,
    output_bias: Vec<f32>,
}

impl ImageProjections {
    /// Packs the query, value and output projections. The output's rows are multiplied by `scale` `[d]`.
    pub fn new(
        set: InstructionSet,
        query: Layer,
        value: Layer,
        output: Layer,
        scale: &[f32],
        heads: usize,
    ) -> Self {
        let d = scale.len();
        let inner = query.1.len();
        let width = inner / heads;
        let score_scale = 1.0 / (width as f32).sqrt();
        let scaled = |values: &[f32]| {
            values
                .iter()
                .map(|value| value * score_scale)
                .collect::<Vec<_>>()
        };
        let query_weight = scaled(query.0);
        let output_weight: Vec<f32> = output
            .0
            .chunks_exact(inner)
            .zip(scale)
            .flat_map(|(row, scale)| row.iter().map(move |value| value * scale))
            .collect();
        let heads = 0..heads;
        Self {
            set,
            d,
            width,
            query: heads
                .clone()
                .map(|h| Packed::of_columns(set, &query_weight[h * width * d..], (d, width), d))
                .collect(),
            query_bias: scaled(query.1),
            value: heads
                .clone()
                .map(|h| {
                    Packed::of_rows(set, Format::F32, &value.0[h * width * d..], (width, d), d)
                })
                .collect(),
            value_bias: value.1.to_vec(),
            output: heads
                .map(|h| {
                    Packed::of_rows(
                        set,
                        Format::F32,
                        &output_weight[h * width..],
                        (d, width),
                        inner,
                    )
                })
                .collect(),
            output_bias: output.1.iter().zip(scale).map(|(b, s)| b * s).collect(),
        }
    }

    /// Channels per image token.
    pub fn d(&self) -> usize {
        self.d
    }

    /// Number of heads.
    fn heads(&self) -> usize {
        self.query.len()
    }
}

/// One image and its text.
#[derive(Debug, Clone, Copy)]
pub struct ImageTextPair<'a> {
    /// `[N, d]`: image tokens.
    pub vision: &'a [f32],
    /// `[N]`: 1 for image, 0 for padding; the text does not attend to padding.
    pub token_mask: Option<&'a [f32]>,
    /// `[T, heads * width]`: the text's keys.
    pub keys: &'a [f32],
    /// `[T, heads * width]`: the text's values.
    pub values: &'a [f32],
    /// `[T]`: added to the scores of the image tokens.
    pub text_bias: &'a [f32],
}

/// The attention outputs of both sides.
#[derive(Debug)]
pub struct Attended {
    /// `[N, d]`: the image tokens plus their attention output, after the scaled output projection.
    pub vision: Vec<f32>,
    /// `[T, heads * width]`: the attention output of the text tokens, before the output projection.
    pub text: Vec<f32>,
}

/// Attention of an image's tokens to its text, and of the text to the image, with the same scores.
pub fn fusion_attention(projections: &ImageProjections, pair: ImageTextPair) -> Attended {
    let ImageProjections {
        set,
        d,
        width,
        ref query,
        ..
    } = *projections;
    let heads = projections.heads();
    let inner = heads * width;
    let tokens = pair.text_bias.len();
    let columns = heads * tokens;
    let count = pair.vision.len() / d;
    // row (head, text token): the factor that gives an image token's score, and the value that it gets
    let (mut folded_keys, mut folded_values, mut key_bias) = (vec![], vec![], vec![]);
    for (head, query) in query.iter().enumerate() {
        let text = |data| Rows {
            data,
            count: tokens,
            stride: inner,
        };
        let keys = &pair.keys[head * width..];
        folded_keys.extend(product(text(keys), query, None, Activation::None, None));
        let values = text(&pair.values[head * width..]);
        let output = &projections.output[head];
        folded_values.extend(product(values, output, None, Activation::None, None));
        let bias = &projections.query_bias[head * width..][..width];
        key_bias.extend(keys.chunks(inner).take(tokens).map(|key| {
            let products = key.iter().zip(bias).map(|(key, bias)| key * bias);
            products.sum::<f32>()
        }));
    }
    let folded_keys = Packed::of_rows(set, Format::F32, &folded_keys, (columns, d), d);
    let folded_values = Packed::of_columns(set, &folded_values, (d, columns), d);

    let mut vision = vec![];
    let tiles = count.div_ceil(TILE_ROWS);
    let write_scores = |scores: SharedPointer<*mut f32>| {
        let write_vision = |output: SharedPointer<*mut f32>| {
            (0..tiles).into_par_iter().for_each(|tile| {
                let first = tile * TILE_ROWS;
                // SAFETY: the rows are inside both outputs.
                let (scores, output) = unsafe {
                    (
                        scores.get().add(first * columns),
                        output.get().add(first * d),
                    )
                };
                set.run(VisionTile {
                    vision: &pair.vision[first * d..],
                    rows: TILE_ROWS.min(count - first),
                    folded_keys: folded_keys.panels(),
                    key_bias: &key_bias,
                    text_bias: pair.text_bias,
                    folded_values: folded_values.panels(),
                    output_bias: &projections.output_bias,
                    heads,
                    scores,
                    output,
                });
            });
        };
        // SAFETY: every tile writes all of its rows.
        vision = unsafe { filled(count * d, write_vision) };
    };
    // SAFETY: as above.
    let scores = unsafe { filled(count * columns, write_scores) };

    let attended = attend_text(projections, pair, &scores, columns);
    // [head, T, d] -> [T, head, width]
    let mut text = vec![0f32; tokens * inner];
    for head in 0..heads {
        let rows = Rows {
            data: &attended[head * tokens * d..],
            count: tokens,
            stride: d,
        };
        let bias = &projections.value_bias[head * width..][..width];
        let value = &projections.value[head];
        let part = product(rows, value, Some(bias), Activation::None, None);
        for (out, part) in text.chunks_mut(inner).zip(part.chunks(width)) {
            out[head * width..][..width].copy_from_slice(part);
        }
    }
    Attended { vision, text }
}

/// The image side of some rows.
struct VisionTile<'a> {
    vision: &'a [f32],
    rows: usize,
    folded_keys: Panels,
    key_bias: &'a [f32],
    text_bias: &'a [f32],
    folded_values: Panels,
    output_bias: &'a [f32],
    heads: usize,
    scores: *mut f32,
    output: *mut f32,
}

impl WithSimd for VisionTile<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let d = self.output_bias.len();
        let tokens = self.text_bias.len();
        let columns = self.heads * tokens;
        let padded = tokens.next_multiple_of(S::F32_LANES);
        assert!(
            self.vision.len() >= self.rows * d,
            "the image has too few tokens"
        );
        let score = Tile {
            epilogue: Epilogue {
                bias: Some(self.key_bias),
                ..Epilogue::default()
            },
            ..Tile::whole(
                self.rows,
                (self.vision.as_ptr(), d),
                self.folded_keys,
                (self.scores, columns),
            )
        };
        let mut scratch = Scratch::take();
        let [weights, line] = scratch.parts([self.rows * columns, padded]);
        // SAFETY: the tile's rows are inside the image tokens and the scores.
        let scores = unsafe {
            score.compute(simd);
            std::slice::from_raw_parts(self.scores, self.rows * columns)
        };
        for (scores, weights) in scores
            .chunks_exact(tokens)
            .zip(weights.chunks_exact_mut(tokens))
        {
            let mut largest = f32::NEG_INFINITY;
            for ((line, score), bias) in line.iter_mut().zip(scores).zip(self.text_bias) {
                *line = score + bias;
                largest = largest.max(*line);
            }
            line[tokens..].fill(f32::NEG_INFINITY);
            exponentials(simd, line, largest);
            let scale = 1.0 / line[..tokens].iter().sum::<f32>();
            for (weight, e) in weights.iter_mut().zip(line.iter()) {
                *weight = e * scale;
            }
        }
        let add = Tile {
            epilogue: Epilogue {
                bias: Some(self.output_bias),
                residual: Some((self.vision.as_ptr(), d)),
                ..Epilogue::default()
            },
            ..Tile::whole(
                self.rows,
                (weights.as_ptr(), columns),
                self.folded_values,
                (self.output, d),
            )
        };
        // SAFETY: the tile's rows are inside the image tokens and the output.
        unsafe { add.compute(simd) };
    }
}

/// Rows of image tokens per task that computes a part of the text's sums.
const TEXT_ROWS: usize = 128;

/// `[heads * T, d]`: for each head and text token, the mean of the image tokens, weighted by the softmax of the
/// scores `[N, columns]` over the image tokens.
fn attend_text(
    projections: &ImageProjections,
    pair: ImageTextPair,
    scores: &[f32],
    columns: usize,
) -> Vec<f32> {
    let d = projections.d;
    let count = pair.vision.len() / d;
    if columns == 0 || count == 0 {
        return vec![0.0; columns * d];
    }
    let is_unmasked = |row: usize| pair.token_mask.is_none_or(|mask| mask[row] != 0.0);
    let part = count
        .div_ceil(4 * rayon::current_num_threads())
        .max(TEXT_ROWS);
    let largest = scores
        .par_chunks(part * columns)
        .enumerate()
        .map(|(i, scores)| {
            let mut largest = vec![f32::NEG_INFINITY; columns];
            for (row, scores) in scores.chunks_exact(columns).enumerate() {
                if is_unmasked(i * part + row) {
                    for (largest, score) in largest.iter_mut().zip(scores) {
                        *largest = largest.max(*score);
                    }
                }
            }
            largest
        })
        .reduce(
            || vec![f32::NEG_INFINITY; columns],
            |a, b| a.iter().zip(&b).map(|(a, b)| a.max(*b)).collect(),
        );
    let parts = (0..count.div_ceil(part)).into_par_iter().map(|i| {
        let rows = i * part..count.min((i + 1) * part);
        projections.set.run(TextPart {
            vision: &pair.vision[rows.start * d..rows.end * d],
            mask: pair.token_mask.map(|mask| &mask[rows.clone()]),
            scores: &scores[rows.start * columns..rows.end * columns],
            largest: &largest,
            d,
        })
    });
    let parts: Vec<(Vec<f32>, Vec<f32>)> = parts.collect();
    // added in the order of the parts, so that the result does not depend on the threads' timing
    let (mut sums, mut totals) = (vec![0f32; columns * d], vec![0f32; columns]);
    for (part_sums, part_totals) in &parts {
        for (sum, part) in sums.iter_mut().zip(part_sums) {
            *sum += part;
        }
        for (total, part) in totals.iter_mut().zip(part_totals) {
            *total += part;
        }
    }
    for (sums, total) in sums.chunks_exact_mut(d).zip(&totals) {
        for sum in sums {
            *sum /= total;
        }
    }
    sums
}

/// The text's sums over some image tokens: `[columns, d]`, and the sums of their weights, `[columns]`.
struct TextPart<'a> {
    vision: &'a [f32],
    mask: Option<&'a [f32]>,
    scores: &'a [f32],
    largest: &'a [f32],
    d: usize,
}

impl WithSimd for TextPart<'_> {
    type Output = (Vec<f32>, Vec<f32>);

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> Self::Output {
        let (d, columns) = (self.d, self.largest.len());
        let lanes = S::F32_LANES;
        let padded = columns.next_multiple_of(lanes);
        let mut sums = vec![0f32; columns * d];
        let mut totals = vec![0f32; columns];
        let mut scratch = Scratch::take();
        let [panels, weights, line] = scratch.parts([
            Panels::size(lanes, d, TEXT_ROWS),
            columns * TEXT_ROWS,
            padded,
        ]);
        let rows = self.vision.len() / d;
        for first in (0..rows).step_by(TEXT_ROWS) {
            let count = TEXT_ROWS.min(rows - first);
            let vision = &self.vision[first * d..];
            let vision = Panels::pack_columns(panels, lanes, (d, count), |i| &vision[i * d..]);
            for row in 0..count {
                let scores = &self.scores[(first + row) * columns..][..columns];
                let is_unmasked = self.mask.is_none_or(|mask| mask[first + row] != 0.0);
                for ((line, score), largest) in line.iter_mut().zip(scores).zip(self.largest) {
                    *line = score - largest;
                }
                line[columns..].fill(f32::NEG_INFINITY);
                exponentials(simd, line, 0.0);
                for (column, e) in line[..columns].iter().enumerate() {
                    let e = if is_unmasked { *e } else { 0.0 };
                    weights[column * TEXT_ROWS + row] = e;
                    totals[column] += e;
                }
            }
            let add = Tile {
                epilogue: Epilogue {
                    accumulate: true,
                    ..Epilogue::default()
                },
                ..Tile::whole(
                    columns,
                    (weights.as_ptr(), TEXT_ROWS),
                    vision,
                    (sums.as_mut_ptr(), d),
                )
            };
            // SAFETY: the weights have `columns` rows of `count` numbers, and the sums have as many rows of `d`
            // numbers.
            unsafe { add.compute(simd) };
        }
        (sums, totals)
    }
}
