//! Low-resolution mask logits to masks of the image's size (`post_process_masks`).

use rayon::prelude::*;

use super::image_processor::Frame;
use crate::geometry::Mask;

/// A logit above this is mask.
const MASK_THRESHOLD: f32 = 0.0;

/// Logits of a square map, row by row, to a mask of the original image: bilinearly to the model's
/// input size `input_side`, the padding cut off, bilinearly to the image, the threshold last.
pub fn upscale_mask(logits: &[f32], input_side: usize, frame: Frame) -> Mask {
    let pixels = upscale_logits(logits, input_side, frame);
    Mask::from_pixels(
        frame.original,
        pixels.into_iter().map(|logit| logit > MASK_THRESHOLD),
    )
}

/// [`upscale_mask`] before the threshold: `height * width` numbers of the original image.
pub fn upscale_logits(logits: &[f32], input_side: usize, frame: Frame) -> Vec<f32> {
    let side = logits.len().isqrt();
    let to_input = Axis::new(side, input_side);
    let input = resample(
        logits,
        side,
        &to_input.taps(frame.resized.height),
        &to_input.taps(frame.resized.width),
    );
    let (resized, original) = (frame.resized, frame.original);
    resample(
        &input,
        resized.width,
        &Axis::new(resized.height, original.height).taps(original.height),
        &Axis::new(resized.width, original.width).taps(original.width),
    )
}

/// Bilinear sampling along one axis with `align_corners=false` (`torch.nn.functional.interpolate`).
struct Axis {
    from: usize,
    scale: f32,
}

/// Two neighbours and the share of the second.
struct Tap {
    first: usize,
    second: usize,
    share: f32,
}

impl Axis {
    fn new(from: usize, to: usize) -> Self {
        Self {
            from,
            scale: from as f32 / to as f32,
        }
    }

    /// The taps of the first `count` results.
    fn taps(&self, count: usize) -> Vec<Tap> {
        (0..count)
            .map(|i| {
                let at = (self.scale * (i as f32 + 0.5) - 0.5).max(0.0);
                let first = (at as usize).min(self.from - 1);
                Tap {
                    first,
                    second: (first + 1).min(self.from - 1),
                    share: (at - first as f32).clamp(0.0, 1.0),
                }
            })
            .collect()
    }
}

/// A map of `width` columns sampled at every pair of a row's and a column's taps.
fn resample(map: &[f32], width: usize, rows: &[Tap], columns: &[Tap]) -> Vec<f32> {
    let mut output = vec![0f32; rows.len() * columns.len()];
    output
        .par_chunks_mut(columns.len().max(1))
        .zip(rows)
        .for_each(|(output, row)| {
            let first = &map[row.first * width..][..width];
            let second = &map[row.second * width..][..width];
            for (out, column) in output.iter_mut().zip(columns) {
                let along = |line: &[f32]| {
                    line[column.first] * (1.0 - column.share) + line[column.second] * column.share
                };
                *out = along(first) * (1.0 - row.share) + along(second) * row.share;
            }
        });
    output
}
