//! Images to the segmenter's input (`SamImageProcessor`).

use candle_core::{DType, Device, Tensor};
use image::RgbImage;
use serde::Deserialize;

use super::SegmentError;
use crate::geometry::{BoundingBox, ImageSize};
use crate::pixels::{Normalization, resize};

/// How an image lies in the model's square input: resized by its longest side, at the top left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame {
    /// The image's own size.
    pub original: ImageSize,
    /// Its size in the model's input.
    pub resized: ImageSize,
}

impl Frame {
    /// The frame of an image whose longest side becomes `side` pixels (`_get_preprocess_shape`).
    pub fn new(original: ImageSize, side: usize) -> Self {
        let longest = original.height.max(original.width).max(1);
        let scale = side as f64 / longest as f64;
        // a sliver keeps at least one pixel, where the reference fails
        let scaled = |length: usize| ((length as f64 * scale + 0.5) as usize).max(1);
        let resized = ImageSize {
            height: scaled(original.height),
            width: scaled(original.width),
        };
        Self { original, resized }
    }

    /// A place in the image's pixels to the model's input.
    pub fn point(self, (x, y): (f32, f32)) -> (f32, f32) {
        let by = |value: f32, to: usize, from: usize| {
            (f64::from(value) * (to as f64 / from as f64)) as f32
        };
        (
            by(x, self.resized.width, self.original.width),
            by(y, self.resized.height, self.original.height),
        )
    }

    /// A box in the image's pixels to the model's input.
    pub fn corners(self, b: BoundingBox) -> [f32; 4] {
        let (x0, y0) = self.point((b.x0, b.y0));
        let (x1, y1) = self.point((b.x1, b.y1));
        [x0, y0, x1, y1]
    }
}

/// `preprocessor_config.json`, as far as the model's own image size does not say it.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(default)]
pub struct ImageProcessor {
    #[serde(flatten)]
    normalization: Normalization,
}

impl ImageProcessor {
    /// Whether images can be processed so.
    ///
    /// # Errors
    /// The field and what is wrong with it.
    pub fn validate(&self) -> Result<(), String> {
        self.normalization.validate()
    }

    /// Resizes, normalises and zero-pads to `[1, 3, side, side]`.
    ///
    /// # Errors
    /// If the image has no pixels.
    pub fn process(
        &self,
        image: &RgbImage,
        side: usize,
        dtype: DType,
        device: &Device,
    ) -> Result<(Tensor, Frame), SegmentError> {
        let frame = Frame::new(ImageSize::of(image), side);
        let resized = resize(image, frame.resized)?;
        let padded = ImageSize {
            height: side,
            width: side,
        };
        let mut pixels = vec![0f32; 3 * padded.area()];
        self.normalization
            .write_planes(&resized, padded, &mut pixels);
        let pixels = Tensor::from_vec(pixels, (1, 3, side, side), device)?;
        Ok((pixels.to_dtype(dtype)?, frame))
    }
}
