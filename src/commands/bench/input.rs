//! The inputs of the measurement: an image file or noise, and boxes at fixed positions.

use std::borrow::Cow;
use std::fs;

use anyhow::{Context, bail};
use image::RgbImage;
use rand::rngs::StdRng;
use rand::{RngCore, SeedableRng};

use crate::config::BenchArgs;
use crate::geometry::{BoundingBox, ImageSize};
use crate::media::decode;

/// The source of the image.
#[derive(Debug)]
pub(super) enum Input {
    /// A file, read once and decoded in every repetition.
    File {
        name: String,
        bytes: Vec<u8>,
        max_pixels: usize,
    },
    /// Noise, generated once.
    Noise(RgbImage),
}

impl Input {
    /// The configured image file, or noise of the configured size.
    ///
    /// # Errors
    /// If the file cannot be read or is too large.
    pub(super) fn new(args: &BenchArgs) -> anyhow::Result<Self> {
        let Some(file) = &args.image else {
            return Ok(Self::Noise(noise(args.image_size.0)));
        };
        let bytes =
            fs::read(file).with_context(|| format!("cannot read the file {}", file.display()))?;
        let (length, limit) = (bytes.len(), args.limits.max_image_bytes);
        if length > limit {
            bail!("the file has {length} bytes, but MAX_IMAGE_BYTES allows only {limit}");
        }
        Ok(Self::File {
            name: file.display().to_string(),
            bytes,
            max_pixels: args.limits.max_image_pixels,
        })
    }

    /// The decoded image.
    ///
    /// # Errors
    /// If the file cannot be decoded.
    pub(super) fn image(&self) -> anyhow::Result<Cow<'_, RgbImage>> {
        match self {
            Self::File {
                name,
                bytes,
                max_pixels,
            } => {
                let _span = tracing::debug_span!("decode").entered();
                let image = decode(bytes, *max_pixels).with_context(|| name.clone())?;
                Ok(Cow::Owned(image))
            }
            Self::Noise(image) => Ok(Cow::Borrowed(image)),
        }
    }

    /// The file's name, or `noise`.
    pub(super) fn describe(&self) -> String {
        match self {
            Self::File { name, .. } => name.clone(),
            Self::Noise(_) => "noise".to_owned(),
        }
    }
}

/// Noise from a fixed seed, the same on every run.
fn noise(size: ImageSize) -> RgbImage {
    let mut image = RgbImage::new(size.width as u32, size.height as u32);
    StdRng::seed_from_u64(0).fill_bytes(&mut image);
    image
}

/// Boxes with a quarter of the image's height and width, on a regular grid over the image.
pub(super) fn fixed_boxes(count: u32, image: ImageSize) -> Vec<BoundingBox> {
    let columns = (f64::from(count).sqrt().ceil() as u32).max(1);
    let rows = count.div_ceil(columns).max(1);
    let (height, width) = (image.height as f32, image.width as f32);
    // the first box starts at 0, and the last one ends at 1
    let place = |index: u32, count: u32| match count {
        0 | 1 => 0.375,
        _ => 0.75 * index as f32 / (count - 1) as f32,
    };
    (0..count)
        .map(|i| {
            let (x, y) = (place(i % columns, columns), place(i / columns, rows));
            BoundingBox {
                x0: x * width,
                y0: y * height,
                x1: (x + 0.25) * width,
                y1: (y + 0.25) * height,
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fixed_boxes_are_inside_the_image_and_distinct() {
        let size = ImageSize {
            height: 80,
            width: 120,
        };
        for count in [1, 2, 20, 200] {
            let boxes = fixed_boxes(count, size);
            assert_eq!(boxes.len(), count as usize);
            for (i, one) in boxes.iter().enumerate() {
                assert_eq!(one.clamped(size), *one);
                assert!(boxes[..i].iter().all(|other| other != one));
            }
        }
    }

    #[test]
    fn noise_is_the_same_in_every_run() {
        let size = ImageSize {
            height: 5,
            width: 7,
        };
        let (a, b) = (noise(size), noise(size));
        assert_eq!((a.height(), a.width()), (5, 7));
        assert_eq!(a, b);
        assert!(a.pixels().any(|pixel| *pixel != a[(0, 0)]));
    }
}
