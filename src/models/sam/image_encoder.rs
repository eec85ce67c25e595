//! The image encoder of SAM or MobileSAM.

use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;

use super::config::Config;
use super::tiny_vit::TinyVit;
use super::vit::Vit;

/// Computes image embeddings from pixels.
#[derive(Debug, Clone)]
pub enum ImageEncoder {
    /// The vision transformer of SAM, in any size, and of SlimSAM.
    Vit(Vit),
    /// The TinyViT of MobileSAM.
    TinyVit(TinyVit),
}

impl ImageEncoder {
    /// Loads the encoder that the configuration selects.
    pub fn load(vb: VarBuilder, config: &Config) -> Result<Self> {
        Ok(match &config.tiny_vit {
            Some(tiny_vit) => Self::TinyVit(TinyVit::load(vb, tiny_vit)?),
            None => Self::Vit(Vit::load(vb, &config.vision_config)?),
        })
    }

    /// Normalised, zero-padded pixels `[B, 3, S, S]`, where `S` is the model's image size, to the image embeddings
    /// `[B, C, G, G]`.
    pub fn forward(&self, pixel_values: &Tensor) -> Result<Tensor> {
        let _span = tracing::debug_span!("image_encoder").entered();
        let size = match self {
            Self::Vit(vit) => vit.image_size(),
            Self::TinyVit(tiny_vit) => tiny_vit.image_size(),
        };
        let (_, _, height, width) = pixel_values.dims4()?;
        if (height, width) != (size, size) {
            candle_core::bail!(
                "the input has {height}x{width} pixels, but the model needs {size}x{size}"
            )
        }
        match self {
            Self::Vit(vit) => vit.forward(pixel_values),
            Self::TinyVit(tiny_vit) => tiny_vit.forward(pixel_values),
        }
    }
}
