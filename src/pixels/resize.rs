//! Antialiased bilinear resizing, level for level as Pillow does it.
//!
//! The detector's scores move by a hundredth when single pixels move by one level, so the arithmetic is
//! Pillow's own (`src/libImaging/Resample.c`): weights in double precision, rounded to 22 bits; rows
//! first, then columns, each pass rounded to 8 bits. Pillow 13 turns the order around where the aspect
//! ratio changes and that saves work; then a pixel can differ by one level.

use std::borrow::Cow;

use image::RgbImage;
use rayon::prelude::*;

use crate::geometry::ImageSize;

/// An image that cannot be resized.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("cannot resize an image of {from_width}x{from_height} pixels to {width}x{height}")]
#[allow(missing_docs)]
pub struct ResizeError {
    pub from_width: u32,
    pub from_height: u32,
    pub width: usize,
    pub height: usize,
}

/// Resizes as Pillow's `Image.resize` does with `BILINEAR`.
///
/// # Errors
/// If either size is empty.
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

/// Bits behind the point of a weight: 8 are the level's, 2 spare.
const PRECISION: u32 = 32 - 8 - 2;

/// The neighbours that make one pixel.
struct Window {
    first: usize,
    weights: Vec<i32>,
}

/// The windows of a line of `from` pixels resized to `to`: triangles as wide as the scale, at least one
/// pixel to each side.
fn windows(from: usize, to: usize) -> Vec<Window> {
    let scale = from as f64 / to as f64;
    let support = scale.max(1.0);
    (0..to)
        .map(|i| {
            let center = (i as f64 + 0.5) * scale;
            // the casts cut towards zero, as in C
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

/// A weighted sum to a level.
fn level(sum: i32) -> u8 {
    (sum >> PRECISION).clamp(0, 255) as u8
}

const HALF: i32 = 1 << (PRECISION - 1);

/// RGB rows of `from` pixels to rows of `to` pixels.
fn resize_rows(pixels: &[u8], from: usize, to: usize) -> Vec<u8> {
    let windows = windows(from, to);
    let mut output = vec![0; pixels.len() / from * to];
    output
        .par_chunks_mut(3 * to)
        .zip(pixels.par_chunks(3 * from))
        .for_each(|(output, row)| {
            for (out, window) in output.chunks_mut(3).zip(&windows) {
                let mut sums = [HALF; 3];
                let neighbours = row[3 * window.first..].chunks(3);
                for (pixel, weight) in neighbours.zip(&window.weights) {
                    for (sum, value) in sums.iter_mut().zip(pixel) {
                        *sum += i32::from(*value) * weight;
                    }
                }
                out.copy_from_slice(&sums.map(level));
            }
        });
    output
}

/// `from` rows of `stride` bytes to `to` rows.
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
