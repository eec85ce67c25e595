//! Antialiased bilinear resizing that reproduces Pillow's levels.
//!
//! The detector's scores change by a hundredth when single pixels change by one level, so the arithmetic is Pillow's
//! own (`src/libImaging/Resample.c`): weights in double precision, rounded to 22 bits; rows first, then columns, each
//! pass rounded to 8 bits. If the aspect ratio changes and it saves work, Pillow 13 reverses the order; then a pixel
//! can differ by one level.

use std::borrow::Cow;

use image::RgbImage;
use rayon::prelude::*;

use crate::geometry::ImageSize;

/// The source or the target size is empty.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("cannot resize an image of {from_width}x{from_height} pixels to {width}x{height}")]
pub struct ResizeError {
    /// Width of the source, in pixels.
    pub from_width: u32,
    /// Height of the source, in pixels.
    pub from_height: u32,
    /// Width of the target, in pixels.
    pub width: usize,
    /// Height of the target, in pixels.
    pub height: usize,
}

/// Resizes as Pillow's `Image.resize` does with `BILINEAR`.
///
/// # Errors
/// If the source or the target size is empty.
pub fn resize(image: &RgbImage, size: ImageSize) -> Result<Cow<'_, RgbImage>, ResizeError> {
    let error = || ResizeError {
        from_width: image.width(),
        from_height: image.height(),
        width: size.width,
        height: size.height,
    };
    let from = ImageSize::of(image);
    if from.area() == 0 || size.area() == 0 {
        return Err(error());
    }
    let mut pixels = Cow::Borrowed(image.as_raw());
    if size.width != from.width {
        pixels = Cow::Owned(resize_rows(&pixels, from.width, size.width));
    }
    if size.height != from.height {
        pixels = Cow::Owned(resize_columns(
            &pixels,
            3 * size.width,
            from.height,
            size.height,
        ));
    }
    match pixels {
        Cow::Borrowed(_) => Ok(Cow::Borrowed(image)),
        Cow::Owned(pixels) => RgbImage::from_raw(size.width as u32, size.height as u32, pixels)
            .map(Cow::Owned)
            .ok_or_else(error),
    }
}

/// Fractional bits of a weight: 32 bits, without 8 for the level and 2 spare ones.
const PRECISION: u32 = 32 - 8 - 2;

/// The source pixels of one output pixel, and their weights.
struct Window {
    first: usize,
    weights: Vec<i32>,
}

/// The windows of a line of `from` pixels that is resized to `to`. Each is a triangle filter whose support is the
/// scale, and at least one pixel, to each side.
fn windows(from: usize, to: usize) -> Vec<Window> {
    let scale = from as f64 / to as f64;
    let support = scale.max(1.0);
    (0..to)
        .map(|i| {
            let center = (i as f64 + 0.5) * scale;
            // the casts truncate towards zero, as in C
            let first = (center - support + 0.5).max(0.0) as usize;
            let end = ((center + support + 0.5) as usize).min(from);
            let triangle: Vec<f64> = (first..end)
                .map(|x| (1.0 - ((x as f64 - center + 0.5) / support).abs()).max(0.0))
                .collect();
            let sum: f64 = triangle.iter().sum();
            let fixed = |w: &f64| (w / sum * f64::from(1 << PRECISION) + 0.5) as i32;
            Window {
                first,
                weights: triangle.iter().map(fixed).collect(),
            }
        })
        .collect()
}

/// Converts a weighted sum to a level.
fn level(sum: i32) -> u8 {
    (sum >> PRECISION).clamp(0, 255) as u8
}

/// One half of a level; added to a sum, it makes the conversion round to the nearest level.
const HALF: i32 = 1 << (PRECISION - 1);

/// Rows that are resized together with the same windows. With two rows, the sums stay in the CPU's registers.
const ROWS_PER_PASS: usize = 2;

/// Resizes RGB rows of `from` pixels to rows of `to` pixels.
fn resize_rows(pixels: &[u8], from: usize, to: usize) -> Vec<u8> {
    let windows = windows(from, to);
    let (stride, output_stride) = (3 * from, 3 * to);
    let mut output = vec![0; pixels.len() / from * to];
    output
        .par_chunks_mut(ROWS_PER_PASS * output_stride)
        .zip(pixels.par_chunks(ROWS_PER_PASS * stride))
        .for_each_init(
            // pixels are read as four levels, so the last pixel of a row needs one more
            || [(); ROWS_PER_PASS].map(|()| vec![0; stride + 1]),
            |rows, (output, pixels)| {
                for (row, pixels) in rows.iter_mut().zip(pixels.chunks(stride)) {
                    row[..stride].copy_from_slice(pixels);
                }
                // a single row remains if their number is odd
                let mut lines = output.chunks_mut(output_stride);
                let mut outputs = [(); ROWS_PER_PASS].map(|()| {
                    let line = lines.next().unwrap_or_default();
                    line.as_chunks_mut::<3>().0.iter_mut()
                });
                for window in &windows {
                    let sums = weighted_sums(rows, window);
                    for (output, [red, green, blue, _]) in outputs.iter_mut().zip(sums) {
                        if let Some(pixel) = output.next() {
                            *pixel = [level(red), level(green), level(blue)];
                        }
                    }
                }
            },
        );
    output
}

/// The weighted sums of a window in each row, per channel. A fourth sum, over the next pixel's first level, is
/// computed too: every x86-64 and AArch64 CPU has registers of four 32-bit numbers.
#[inline(always)]
fn weighted_sums(rows: &[Vec<u8>; ROWS_PER_PASS], window: &Window) -> [[i32; 4]; ROWS_PER_PASS] {
    let count = 3 * window.weights.len() + 1;
    let rows = rows.each_ref().map(|row| &row[3 * window.first..][..count]);
    let mut sums = [[HALF; 4]; ROWS_PER_PASS];
    for (i, weight) in window.weights.iter().enumerate() {
        for (sums, row) in sums.iter_mut().zip(rows) {
            let levels = &row[3 * i..][..4];
            for (sum, value) in sums.iter_mut().zip(levels) {
                *sum += i32::from(*value) * weight;
            }
        }
    }
    sums
}

/// Resizes `from` rows of `stride` bytes to `to` rows.
fn resize_columns(pixels: &[u8], stride: usize, from: usize, to: usize) -> Vec<u8> {
    let windows = windows(from, to);
    let mut output = vec![0; stride * to];
    output
        .par_chunks_mut(stride)
        .zip(&windows)
        .for_each(|(output, window)| {
            let mut sums = vec![HALF; stride];
            let rows = pixels[stride * window.first..].chunks(stride);
            for (row, weight) in rows.zip(&window.weights) {
                for (sum, value) in sums.iter_mut().zip(row) {
                    *sum += i32::from(*value) * weight;
                }
            }
            for (out, sum) in output.iter_mut().zip(sums) {
                *out = level(sum);
            }
        });
    output
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    use super::*;

    /// A plain implementation: one channel at a time, pixel by pixel.
    fn resize_plain(image: &RgbImage, size: ImageSize) -> RgbImage {
        let (width, height) = (size.width as u32, size.height as u32);
        let along =
            |width: u32, height: u32, windows: Vec<Window>, is_row: bool, from: &RgbImage| {
                RgbImage::from_fn(width, height, |x, y| {
                    let window = &windows[if is_row { x } else { y } as usize];
                    let mut sums = [HALF; 3];
                    for (at, weight) in (window.first as u32..).zip(&window.weights) {
                        let (x, y) = if is_row { (at, y) } else { (x, at) };
                        for (sum, value) in sums.iter_mut().zip(from.get_pixel(x, y).0) {
                            *sum += i32::from(value) * weight;
                        }
                    }
                    image::Rgb(sums.map(level))
                })
            };
        let mut resized = image.clone();
        if width != image.width() {
            let windows = windows(image.width() as usize, size.width);
            resized = along(width, image.height(), windows, true, &resized);
        }
        if height != image.height() {
            let windows = windows(image.height() as usize, size.height);
            resized = along(width, height, windows, false, &resized);
        }
        resized
    }

    #[test]
    fn resizing_several_rows_at_once_gives_the_levels_of_single_pixels() {
        let mut rng = StdRng::seed_from_u64(5);
        for case in 0..300 {
            let mut length = || match rng.random_range(0..4) {
                0 => rng.random_range(1..=4),
                1 => rng.random_range(1..=400),
                _ => rng.random_range(1..=70),
            };
            let (width, height) = (length(), length());
            let size = ImageSize {
                height: length() as usize,
                width: length() as usize,
            };
            // every other case has extreme levels, for the largest sums
            let mut image = RgbImage::new(width, height);
            for value in image.iter_mut() {
                *value = match case % 2 {
                    0 => rng.random(),
                    _ => [0, 255, 255][rng.random_range(0..3)],
                };
            }
            let resized = resize(&image, size).unwrap();
            assert!(
                *resized == resize_plain(&image, size),
                "{width}x{height} to {size:?}"
            );
        }
    }
}
