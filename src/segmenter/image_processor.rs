//! Converts images to the segmenter's input (`SamImageProcessor`).

use candle_core::{DType, Device, Tensor};
use image::RgbImage;
use serde::Deserialize;

use super::SegmentError;
use crate::geometry::{BoundingBox, ImageSize};
use crate::models::weights::InvalidConfig;
use crate::pixels::{Normalization, resize};

/// The position of an image in the model's square input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame {
    /// The size of the original image.
    pub original: ImageSize,
    /// The size of the resized image inside the model's input.
    pub resized: ImageSize,
    /// How the image was fitted into the square.
    pub fit: Fit,
}

/// How an image is fitted into a square.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fit {
    /// Scaled so that its longest side fits, at the top left.
    LongestSide,
    /// Stretched to the whole square, as in SAM 2.
    Stretched,
}

impl Frame {
    /// The frame of an image in a square of `side` pixels (`_get_preprocess_shape`).
    pub fn new(original: ImageSize, side: usize, fit: Fit) -> Self {
        let longest = original.height.max(original.width).max(1);
        let scale = side as f64 / longest as f64;
        let scaled = |length: usize| match fit {
            // a very thin image keeps at least one pixel, where the reference fails
            Fit::LongestSide => ((length as f64 * scale + 0.5) as usize).max(1),
            Fit::Stretched => side,
        };
        let resized = ImageSize {
            height: scaled(original.height),
            width: scaled(original.width),
        };
        Self {
            original,
            resized,
            fit,
        }
    }

    /// Converts a point from the image's pixels to the model's input.
    pub fn point(self, (x, y): (f32, f32)) -> (f32, f32) {
        let scale = |value: f32, to: usize, from: usize| {
            (f64::from(value) * (to as f64 / from as f64)) as f32
        };
        (
            scale(x, self.resized.width, self.original.width),
            scale(y, self.resized.height, self.original.height),
        )
    }

    /// Converts a box from the image's pixels to the corners `[x0, y0, x1, y1]` in the model's input.
    pub fn corners(self, b: BoundingBox) -> [f32; 4] {
        let (x0, y0) = self.point((b.x0, b.y0));
        let (x1, y1) = self.point((b.x1, b.y1));
        [x0, y0, x1, y1]
    }
}

/// The fields of `preprocessor_config.json`, except the size, which the model's configuration gives.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(default)]
pub struct ImageProcessor {
    #[serde(flatten)]
    normalization: Normalization,
}

impl ImageProcessor {
    /// Checks the configuration.
    ///
    /// # Errors
    /// The first field whose value is not supported.
    pub fn validate(&self) -> Result<(), InvalidConfig> {
        self.normalization.validate()
    }

    /// Resizes, normalises and zero-pads an image to `[1, 3, side, side]`.
    ///
    /// # Errors
    /// If the image has no pixels.
    pub fn process(
        &self,
        image: &RgbImage,
        (side, fit): (usize, Fit),
        dtype: DType,
        device: &Device,
    ) -> Result<(Tensor, Frame), SegmentError> {
        let frame = Frame::new(ImageSize::of(image), side, fit);
        let resized = resize(image, frame.resized)?;
        let padded = ImageSize {
            height: side,
            width: side,
        };
        let pixels = self.normalization.tensor(&resized, padded, dtype, device)?;
        Ok((pixels.unsqueeze(0)?, frame))
    }
}
