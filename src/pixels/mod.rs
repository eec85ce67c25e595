//! Converts image pixels to model input: resizing as in Pillow, and normalisation.

mod resize;

use candle_core::{DType, Device, Result, Tensor};
use image::RgbImage;
use rayon::prelude::*;
use serde::Deserialize;

use crate::geometry::ImageSize;
use crate::models::weights::InvalidConfig;

pub use resize::{ResizeError, resize};

/// Rescaling to 0..1 and normalisation per channel, as configured in `preprocessor_config.json`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default)]
pub struct Normalization {
    /// Whether levels are multiplied by `rescale_factor`; must be true.
    pub do_rescale: bool,
    /// Whether channels are normalised by mean and standard deviation; must be true.
    pub do_normalize: bool,
    /// The factor that converts levels 0 to 255 to 0..1.
    pub rescale_factor: f64,
    /// The mean of each channel, in 0..1.
    pub image_mean: [f32; 3],
    /// The standard deviation of each channel, in 0..1.
    pub image_std: [f32; 3],
}

impl Default for Normalization {
    /// ImageNet's mean and standard deviation.
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
    /// Checks the configuration.
    ///
    /// # Errors
    /// If a standard deviation is zero or not finite, or if rescaling or normalisation is disabled.
    pub fn validate(&self) -> std::result::Result<(), InvalidConfig> {
        let is_usable = |std: &f32| std.is_finite() && *std != 0.0;
        if !self.image_std.iter().all(is_usable) {
            return Err(InvalidConfig::new(
                "image_std",
                format!("{:?}", self.image_std),
                "it must be finite and not 0",
            ));
        }
        for (field, is_on) in [
            ("do_rescale", self.do_rescale),
            ("do_normalize", self.do_normalize),
        ] {
            if !is_on {
                return Err(InvalidConfig::new(field, is_on, "only true is supported"));
            }
        }
        Ok(())
    }

    /// An image as `[3, height, width]` of the `padded` size, at the top left, with zeros elsewhere.
    ///
    /// # Errors
    /// If the device fails.
    pub fn tensor(
        &self,
        image: &RgbImage,
        padded: ImageSize,
        dtype: DType,
        device: &Device,
    ) -> Result<Tensor> {
        if !device.is_cpu() {
            return self.tensor_on_device(image, padded, dtype, device);
        }
        let mut planes = vec![0f32; 3 * padded.area()];
        self.write_planes(image, padded, &mut planes);
        Tensor::from_vec(planes, (3, padded.height, padded.width), device)?.to_dtype(dtype)
    }

    /// The same, computed by the device: a quarter of the bytes are copied to it.
    fn tensor_on_device(
        &self,
        image: &RgbImage,
        padded: ImageSize,
        dtype: DType,
        device: &Device,
    ) -> Result<Tensor> {
        let (height, width) = (image.height() as usize, image.width() as usize);
        let levels = Tensor::from_slice(image.as_raw(), (height, width, 3), device)?;
        let channels = |numbers: &[f32; 3]| Tensor::new(numbers, device);
        let values = (levels.to_dtype(DType::F32)? * self.rescale_factor)?;
        let values = values
            .broadcast_sub(&channels(&self.image_mean)?)?
            .broadcast_div(&channels(&self.image_std)?)?;
        values
            .permute((2, 0, 1))?
            .to_dtype(dtype)?
            .pad_with_zeros(1, 0, padded.height - height)?
            .pad_with_zeros(2, 0, padded.width - width)?
            .contiguous()
    }

    /// Writes an image to the top left of three consecutive planes of `padded` size. `planes` has
    /// `3 * height * width` numbers; those outside the image are unchanged.
    fn write_planes(&self, image: &RgbImage, padded: ImageSize, planes: &mut [f32]) {
        let tables: [[f32; 256]; 3] = std::array::from_fn(|channel| {
            std::array::from_fn(|level| {
                let value = (level as f64 * self.rescale_factor) as f32;
                (value - self.image_mean[channel]) / self.image_std[channel]
            })
        });
        let (width, area) = (image.width() as usize, padded.area());
        let (red, rest) = planes.split_at_mut(area);
        let (green, blue) = rest.split_at_mut(area);
        let rows = |plane| <[f32]>::par_chunks_mut(plane, padded.width);
        (image.as_raw().par_chunks_exact(3 * width))
            .zip((rows(red), rows(green), rows(blue)).into_par_iter())
            .for_each(|(pixels, (red, green, blue))| {
                let outputs = red.iter_mut().zip(green).zip(blue);
                for ([r, g, b], ((red, green), blue)) in pixels.as_chunks().0.iter().zip(outputs) {
                    *red = tables[0][usize::from(*r)];
                    *green = tables[1][usize::from(*g)];
                    *blue = tables[2][usize::from(*b)];
                }
            });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_computes_the_same_numbers() -> Result<()> {
        let image = RgbImage::from_fn(5, 3, |x, y| image::Rgb([50 * x as u8, 80 * y as u8, 255]));
        let padded = ImageSize {
            height: 4,
            width: 7,
        };
        let (normalization, cpu) = (Normalization::default(), Device::Cpu);
        let expected = normalization.tensor(&image, padded, DType::F32, &cpu)?;
        let computed = normalization.tensor_on_device(&image, padded, DType::F32, &cpu)?;
        assert_eq!(computed.dims(), [3, 4, 7]);
        let difference = (expected - computed)?
            .abs()?
            .max_all()?
            .to_scalar::<f32>()?;
        assert!(difference < 1e-6, "{difference}");
        Ok(())
    }

    #[test]
    fn an_image_is_written_to_the_top_left_of_the_planes() {
        let image = RgbImage::from_fn(5, 3, |x, y| image::Rgb([x as u8, 40 + y as u8, 255]));
        let padded = ImageSize {
            height: 4,
            width: 7,
        };
        let mut planes = vec![9.0; 3 * padded.area()];
        let normalization = Normalization::default();
        normalization.write_planes(&image, padded, &mut planes);
        for (i, value) in planes.into_iter().enumerate() {
            let (channel, at) = (i / padded.area(), i % padded.area());
            let (y, x) = ((at / padded.width) as u32, (at % padded.width) as u32);
            let expected = match image.get_pixel_checked(x, y) {
                Some(pixel) => {
                    let level = (f64::from(pixel[channel]) / 255.0) as f32;
                    (level - normalization.image_mean[channel]) / normalization.image_std[channel]
                }
                None => 9.0,
            };
            assert!((value - expected).abs() < 1e-6, "{channel} {x} {y}");
        }
    }
}
