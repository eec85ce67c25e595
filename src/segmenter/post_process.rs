//! Converts low-resolution mask logits to masks of the image's size (`post_process_masks`).
//!
//! The reference scales twice: the logits (256x256) to the model's input (1024x1024), and the unpadded part of that
//! to the image; that of SAM 2 once. Most pixels of an image need neither: if all logits that a pixel depends on have the same sign, the
//! pixel has this sign too. Only the other pixels, along the outline, are computed.

use rayon::prelude::*;

use super::band::{BandScaler, LogitMap};
use super::bilinear::Tap;
use super::image_processor::Frame;
use super::scaling::Scaling;
use crate::geometry::{Mask, Runs};

/// Bands per task of the thread pool: a map of 256x256 has one band per row of logits.
const BANDS_PER_TASK: usize = 8;

/// Converts the logits of a square map, row by row, to a mask of the original image: bilinear scaling to the model's
/// input of `input_side` pixels, removal of the padding, bilinear scaling to the image. In SAM 2, it is one scaling to
/// the image. Values greater than 0 are set.
pub fn upscale_mask(logits: &[f32], input_side: usize, frame: Frame) -> Mask {
    let map = LogitMap::new(logits);
    if map.side == 0 {
        return Mask::from_runs(frame.original, Runs::default());
    }
    let scaling = Scaling::new(map.side, input_side, frame);
    let column_bands = scaling.column_bands();
    let parts: Vec<Runs> = scaling
        .row_bands()
        .par_chunks(BANDS_PER_TASK)
        .map(|bands| {
            let mut scaler = BandScaler::default();
            let mut runs = Runs::default();
            for band in bands {
                scaler.append(&map, &scaling, &column_bands, band, &mut runs);
            }
            runs
        })
        .collect();
    let mut runs = Runs::default();
    for part in &parts {
        runs.extend(part);
    }
    Mask::from_runs(frame.original, runs)
}

/// The values of [`upscale_mask`] before the threshold: `height * width` numbers of the original image. It computes
/// both maps in full, as a reference for tests.
pub fn upscale_logits(logits: &[f32], input_side: usize, frame: Frame) -> Vec<f32> {
    let side = logits.len().isqrt();
    let scaling = Scaling::new(side, input_side, frame);
    let [input_rows, rows] = &scaling.rows;
    let [input_columns, columns] = &scaling.columns;
    let input = resample(logits, side, input_rows, input_columns);
    resample(&input, input_columns.len(), rows, columns)
}

/// Samples a map of `width` columns at every pair of a row tap and a column tap.
fn resample(map: &[f32], width: usize, rows: &[Tap], columns: &[Tap]) -> Vec<f32> {
    let mut output = vec![0f32; rows.len() * columns.len()];
    output
        .par_chunks_mut(columns.len().max(1))
        .zip(rows)
        .for_each(|(output, row)| {
            let first = &map[row.first as usize * width..][..width];
            let second = &map[row.second as usize * width..][..width];
            for (out, column) in output.iter_mut().zip(columns) {
                *out = row.interpolate(column.sample(first, 0), column.sample(second, 0));
            }
        });
    output
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    use super::*;
    use crate::geometry::ImageSize;
    use crate::segmenter::image_processor::Fit;

    /// Logits with special signs, rounding or overflow.
    const SPECIAL: [f32; 16] = [
        0.0,
        -0.0,
        1e-45,
        -1e-45,
        f32::MIN_POSITIVE,
        16.0 * f32::MIN_POSITIVE,
        1e-36,
        -1e-40,
        1.0,
        -1.0,
        f32::MAX,
        f32::MIN,
        f32::MAX / 16.0,
        f32::INFINITY,
        f32::NEG_INFINITY,
        f32::NAN,
    ];

    /// The mask computed from the full maps.
    fn thresholded(logits: &[f32], input_side: usize, frame: Frame) -> Mask {
        let pixels = upscale_logits(logits, input_side, frame);
        Mask::from_pixels(frame.original, pixels.into_iter().map(|logit| logit > 0.0))
    }

    #[track_caller]
    fn check(logits: &[f32], input_side: usize, (height, width): (usize, usize), what: &str) {
        for fit in [Fit::LongestSide, Fit::Stretched] {
            let frame = Frame::new(ImageSize { height, width }, input_side, fit);
            let (ours, full) = (
                upscale_mask(logits, input_side, frame),
                thresholded(logits, input_side, frame),
            );
            // not assert_eq: the runs can be too long to print
            assert!(
                ours == full,
                "{what}, {} logits, input {input_side}, image {height}x{width}, {fit:?}",
                logits.len()
            );
        }
    }

    fn special_logit(rng: &mut StdRng) -> f32 {
        SPECIAL[rng.random_range(0..SPECIAL.len())]
    }

    /// Logits that are similar to SAM's for one object: far from zero both inside and outside it.
    fn blob(side: usize, rng: &mut StdRng) -> Vec<f32> {
        let mut within = || rng.random_range(0.0..side as f32);
        let (x, y, radius) = (within(), within(), within() / 2.0);
        let distance = |i: usize| ((i % side) as f32 - x).hypot(1.3 * ((i / side) as f32 - y));
        (0..side * side)
            .map(|i| (radius - distance(i)).clamp(-20.0, 12.0))
            .collect()
    }

    fn map(kind: usize, side: usize, rng: &mut StdRng) -> (Vec<f32>, &'static str) {
        let area = side * side;
        let with_special_logits = |mut map: Vec<f32>, share: f64, rng: &mut StdRng| {
            for logit in &mut map {
                if rng.random_bool(share) {
                    *logit = special_logit(rng);
                }
            }
            map
        };
        match kind {
            0 => (vec![special_logit(rng); area], "one number"),
            1 => {
                let noise = (0..area).map(|_| rng.random_range(-1.0..1.0));
                (noise.collect(), "noise")
            }
            2 => (blob(side, rng), "a blob"),
            3 => (
                with_special_logits(blob(side, rng), 0.02, rng),
                "a blob with special numbers",
            ),
            4 => (
                with_special_logits(vec![0.0; area], 1.0, rng),
                "special numbers",
            ),
            5 => (
                with_special_logits(vec![1.0; area], 0.01, rng),
                "mostly set",
            ),
            _ => (
                with_special_logits(vec![-1.0; area], 0.01, rng),
                "mostly unset",
            ),
        }
    }

    #[test]
    fn masks_equal_the_thresholded_full_maps() {
        let mut rng = StdRng::seed_from_u64(7);
        for case in 0..2_000 {
            let side = [1, 2, 3, 5, 16, 31, 64][rng.random_range(0..7)];
            // four times the map as in SAM, or any other size
            let input_side = match rng.random_bool(0.7) {
                true => 4 * side,
                false => rng.random_range(1..=5 * side),
            };
            let mut length = || match rng.random_range(0..5) {
                0 => rng.random_range(1..=3),
                1 => rng.random_range(1..=6 * side),
                _ => rng.random_range(1..=180),
            };
            let size = (length(), length());
            let (logits, what) = map(case % 7, side, &mut rng);
            check(&logits, input_side, size, what);
        }
    }

    #[test]
    fn masks_of_photographs_equal_the_thresholded_full_maps() {
        let mut rng = StdRng::seed_from_u64(8);
        let sizes = [(1280, 1920), (1067, 800), (480, 640), (37, 2500), (1024, 1)];
        for (case, size) in sizes.into_iter().enumerate() {
            for kind in [1 + case % 3, 3 + case % 4] {
                let (logits, what) = map(kind, 256, &mut rng);
                check(&logits, 1024, size, what);
            }
        }
    }

    #[test]
    fn a_mask_without_logits_or_pixels_is_unset() {
        let frame = |height, width| Frame::new(ImageSize { height, width }, 16, Fit::LongestSide);
        assert_eq!(upscale_mask(&[], 16, frame(2, 3)).runs(), [6]);
        assert_eq!(upscale_mask(&[1.0], 16, frame(0, 3)).runs(), [0]);
        assert_eq!(upscale_mask(&[1.0], 16, frame(3, 0)).runs(), [0]);
    }
}
