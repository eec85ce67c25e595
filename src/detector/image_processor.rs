//! Converts images to the detector's input (`GroundingDinoImageProcessor`).

use candle_core::{DType, Device, Tensor};
use image::RgbImage;
use serde::Deserialize;

use super::DetectError;
use crate::geometry::ImageSize;
use crate::models::weights::InvalidConfig;
use crate::pixels::{Normalization, resize};

/// The fields of `preprocessor_config.json`, with the reference's defaults.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default)]
pub struct ImageProcessor {
    size: SizeConfig,
    /// The limit of the long side in older files, whose `size` is a single number.
    max_size: Option<usize>,
    #[serde(flatten)]
    normalization: Normalization,
}

impl Default for ImageProcessor {
    fn default() -> Self {
        Self {
            size: SizeConfig::Named {
                shortest_edge: 800,
                longest_edge: Some(1333),
            },
            max_size: None,
            normalization: Normalization::default(),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(
    untagged,
    expecting = "size must be {\"shortest_edge\": 800, \"longest_edge\": 1333} or a number"
)]
enum SizeConfig {
    /// The short side, and the limit of the long side, in pixels.
    Named {
        shortest_edge: usize,
        longest_edge: Option<usize>,
    },
    /// Older files have only the short side here.
    Shortest(usize),
}

/// A batch of images as one tensor.
#[derive(Debug, Clone)]
pub struct ImageBatch {
    /// `[B, 3, H, W]`, normalised, zero-padded at the bottom and the right.
    pub pixel_values: Tensor,
    /// The `(height, width)` of each image inside the padded tensor, in pixels.
    pub valid_sizes: Vec<(usize, usize)>,
}

impl ImageProcessor {
    /// Checks the configuration.
    ///
    /// # Errors
    /// The first field whose value is not supported.
    pub fn validate(&self) -> Result<(), InvalidConfig> {
        let (shortest, longest) = self.edges();
        // the encoder's attention relates every 8x8 pixel cell to all others
        const LIMIT: usize = 8192;
        for edge in [Some(shortest), longest].into_iter().flatten() {
            if !(1..=LIMIT).contains(&edge) {
                let requirement = format!("an edge must have 1 to {LIMIT} pixels");
                return Err(InvalidConfig::new("size", edge, requirement));
            }
        }
        self.normalization.validate()
    }

    /// Sets another short side in pixels, and scales the limit of the long side by the same factor.
    pub fn resize_to(&mut self, short_side: usize) {
        let (shortest, longest) = self.edges();
        let longest = longest.map(|longest| longest * short_side / shortest.max(1));
        self.size = SizeConfig::Named {
            shortest_edge: short_side,
            longest_edge: longest,
        };
    }

    /// The short side, and the limit of the long side, in pixels.
    fn edges(&self) -> (usize, Option<usize>) {
        match self.size {
            SizeConfig::Named {
                shortest_edge,
                longest_edge,
            } => (shortest_edge, longest_edge),
            SizeConfig::Shortest(shortest) => (shortest, self.max_size),
        }
    }

    /// The size that an image is resized to: the configured short side, reduced if the long side would exceed its
    /// limit (`get_size_with_aspect_ratio`).
    pub fn target_size(&self, size: ImageSize) -> ImageSize {
        let (mut shortest, longest) = self.edges();
        let (height, width) = (size.height as f64, size.width as f64);
        let (short, long) = (height.min(width), height.max(width));
        // the unrounded short side if the long side is limited; the long side is computed from it
        let mut exact = shortest as f64;
        if let Some(limit) = longest.map(|limit| limit as f64)
            && long / short * exact > limit
        {
            exact = limit * short / long;
            shortest = exact.round_ties_even() as usize;
        }
        if size.height.min(size.width) == shortest {
            return size;
        }
        // Python's int() truncates; a very thin image keeps at least one pixel, where the reference fails
        let target = if width < height {
            ImageSize {
                height: (exact * height / width) as usize,
                width: shortest,
            }
        } else {
            ImageSize {
                height: shortest,
                width: (exact * width / height) as usize,
            }
        };
        ImageSize {
            height: target.height.max(1),
            width: target.width.max(1),
        }
    }

    /// Resizes and normalises images, and pads them to the largest height and width of the batch.
    ///
    /// # Errors
    /// If an image has no pixels.
    pub fn process(
        &self,
        images: &[&RgbImage],
        dtype: DType,
        device: &Device,
    ) -> Result<ImageBatch, DetectError> {
        let resized = images
            .iter()
            .map(|image| resize(image, self.target_size(ImageSize::of(image))))
            .collect::<Result<Vec<_>, _>>()?;
        let sizes = resized.iter().map(|image| ImageSize::of(image));
        let padded = ImageSize {
            height: sizes.clone().map(|size| size.height).max().unwrap_or(0),
            width: sizes.clone().map(|size| size.width).max().unwrap_or(0),
        };
        let pixels = resized.iter();
        let pixels = pixels.map(|image| self.normalization.tensor(image, padded, dtype, device));
        Ok(ImageBatch {
            pixel_values: Tensor::stack(&pixels.collect::<candle_core::Result<Vec<_>>>()?, 0)?,
            valid_sizes: sizes.map(|size| (size.height, size.width)).collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resizing_to_another_short_side_scales_the_limit_of_the_long_side() {
        let size = |height, width| ImageSize { height, width };
        let mut processor = ImageProcessor::default();
        assert_eq!(processor.target_size(size(1280, 1920)), size(800, 1200));
        processor.resize_to(400);
        assert_eq!(processor.target_size(size(1280, 1920)), size(400, 600));
        // the limit of the long side is now 666
        assert_eq!(processor.target_size(size(500, 5000)).width, 666);
    }
}
