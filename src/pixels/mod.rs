//! Image pixels to model input: resizing as Pillow does it, and normalisation.

mod resize;

use image::RgbImage;
use serde::Deserialize;

use crate::geometry::ImageSize;

pub use resize::{ResizeError, resize};

/// Rescaling to 0..1 and normalisation by channel, as `preprocessor_config.json` says.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default)]
#[allow(missing_docs)] // the reference's own field names
pub struct Normalization {
    pub do_rescale: bool,
    pub do_normalize: bool,
    pub rescale_factor: f64,
    pub image_mean: [f32; 3],
    pub image_std: [f32; 3],
}

impl Default for Normalization {
    /// ImageNet's.
    fn default() -> Self {
        Self {
            do_rescale: true,
            do_normalize: true,
            rescale_factor: 1.0 / 255.0,
            image_mean: [0.485, 0.456, 0.406],
            image_std: [0.229, 0.224, 0.225],
        }
    }
}

impl Normalization {
    /// Whether images can be normalised so.
    ///
    /// # Errors
    /// The field and what is wrong with it.
    pub fn validate(&self) -> Result<(), String> {
        let is_usable = |std: &f32| std.is_finite() && *std != 0.0;
        if !self.image_std.iter().all(is_usable) {
            return Err(format!(
                "image_std={:?} cannot be divided by",
                self.image_std
            ));
        }
        for (field, is_on) in [
            ("do_rescale", self.do_rescale),
            ("do_normalize", self.do_normalize),
        ] {
            if !is_on {
                return Err(format!(
                    "{field}=false is not supported; published models have true"
                ));
            }
        }
        Ok(())
    }

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
