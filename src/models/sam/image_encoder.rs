//! The image encoder, in either form.

use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;

use super::config::Config;
use super::tiny_vit::TinyVit;
use super::vit::Vit;

/// From pixels to image embeddings.
#[derive(Debug, Clone)]
pub enum ImageEncoder {
    /// SAM's own, of any size, SlimSAM's too.
    Vit(Vit),
    /// MobileSAM's.
    TinyVit(TinyVit),
}

impl ImageEncoder {
    /// Loads the one that the configuration names.
    pub fn load(vb: VarBuilder, config: &Config) -> Result<Self> {
        Ok(match &config.tiny_vit {
            Some(tiny_vit) => Self::TinyVit(TinyVit::load(vb, tiny_vit)?),
            None => Self::Vit(Vit::load(vb, &config.vision_config)?),
        })
    }

    /// Normalised, zero-padded pixels `[B, 3, S, S]` with `S` the model's image size, to the image
    /// embeddings `[B, C, G, G]`.
    pub fn forward(&self, pixel_values: &Tensor) -> Result<Tensor> {
        let _span = tracing::debug_span!("image_encoder").entered();
        let size = match self {
            Self::Vit(vit) => vit.image_size(),
            Self::TinyVit(tiny_vit) => tiny_vit.image_size(),
        };
        let (_, _, height, width) = pixel_values.dims4()?;
        if (height, width) != (size, size) {
            candle_core::bail!("an image of {height}x{width} pixels; the model takes {size}x{size}")
        }
        match self {
            Self::Vit(vit) => vit.forward(pixel_values),
            Self::TinyVit(tiny_vit) => tiny_vit.forward(pixel_values),
        }
    }
}
