//! Image pixels to model input: resizing as Pillow does it, and normalisation.

use std::borrow::Cow;

use fast_image_resize::images::{Image, ImageRef};
use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer};
use image::RgbImage;
use serde::Deserialize;

use crate::geometry::ImageSize;

/// An image that cannot be resized.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot resize an image of {from_width}x{from_height} pixels to {width}x{height}: {reason}"
)]
#[allow(missing_docs)]
pub struct ResizeError {
    pub from_width: u32,
    pub from_height: u32,
    pub width: usize,
    pub height: usize,
    pub reason: String,
}

/// Antialiased bilinear resizing, the resampling of Pillow's `BILINEAR`; a level differs by at most 1.
///
/// # Errors
/// If either size is empty.
pub fn resize(image: &RgbImage, size: ImageSize) -> Result<Cow<'_, RgbImage>, ResizeError> {
    let error = |reason: String| ResizeError {
        from_width: image.width(),
        from_height: image.height(),
        width: size.width,
        height: size.height,
        reason,
    };
    if image.width() == 0 || image.height() == 0 || size.area() == 0 {
        return Err(error("there are no pixels".to_owned()));
    }
    // Pillow goes along the rows first and rounds to 8 bits in between; the library would go along the
    // columns first, which moves every fifth pixel of a noisy picture by a level
    let (width, height) = (size.width as u32, size.height as u32);
    let mut resized = Cow::Borrowed(image);
    for (width, height) in [(width, image.height()), (width, height)] {
        if resized.dimensions() != (width, height) {
            resized = Cow::Owned(convolve(&resized, width, height).map_err(error)?);
        }
    }
    Ok(resized)
}

fn convolve(image: &RgbImage, width: u32, height: u32) -> Result<RgbImage, String> {
    let source = ImageRef::new(
        image.width(),
        image.height(),
        image.as_raw(),
        PixelType::U8x3,
    )
    .map_err(|e| e.to_string())?;
    let mut target = Image::new(width, height, PixelType::U8x3);
    let options = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(FilterType::Bilinear));
    Resizer::new()
        .resize(&source, &mut target, &options)
        .map_err(|e| e.to_string())?;
    RgbImage::from_raw(width, height, target.into_vec())
        .ok_or_else(|| "the result has another size".to_owned())
}

/// Rescaling to 0..1 and normalisation by channel, as `preprocessor_config.json` says.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default)]
#[allow(missing_docs)] // the reference's own field names
pub struct Normalization {
    pub rescale_factor: f64,
    pub image_mean: [f32; 3],
    pub image_std: [f32; 3],
}

impl Default for Normalization {
    /// ImageNet's.
    fn default() -> Self {
        Self {
            rescale_factor: 1.0 / 255.0,
            image_mean: [0.485, 0.456, 0.406],
            image_std: [0.229, 0.224, 0.225],
        }
    }
}

impl Normalization {
    /// Writes an image to the top left of three planes of `padded` size, one after the other; the rest
    /// of `planes` (3 * height * width numbers) is left as it is.
    pub fn write_planes(&self, image: &RgbImage, padded: ImageSize, planes: &mut [f32]) {
        let tables: [[f32; 256]; 3] = std::array::from_fn(|channel| {
            std::array::from_fn(|level| {
                let value = (level as f64 * self.rescale_factor) as f32;
                (value - self.image_mean[channel]) / self.image_std[channel]
            })
        });
        let width = image.width() as usize;
        for (channel, plane) in planes.chunks_mut(padded.area()).take(3).enumerate() {
            let rows = image.as_raw().chunks(3 * width);
            for (pixels, row) in rows.zip(plane.chunks_mut(padded.width)) {
                for (pixel, out) in pixels.chunks(3).zip(row) {
                    *out = tables[channel][usize::from(pixel[channel])];
                }
            }
        }
    }
}
