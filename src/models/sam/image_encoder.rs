//! The image encoder of SAM, SAM-HQ, SAM 2, MobileSAM or EfficientViT-SAM.

use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;

use super::config::{Config, ImageEncoderConfig};
use super::efficient_vit::EfficientVit;
use super::hiera::Hiera;
use super::tiny_vit::TinyVit;
use super::vit::Vit;

/// Computes the maps of an image from its pixels.
#[derive(Debug, Clone)]
pub enum ImageEncoder {
    /// The vision transformer of SAM, in any size, and of SlimSAM.
    Vit(Vit),
    /// The TinyViT of MobileSAM.
    TinyVit(TinyVit),
    /// The EfficientViT of EfficientViT-SAM.
    EfficientVit(EfficientVit),
    /// The Hiera of SAM 2.
    Hiera(Hiera),
}

/// The maps that an image encoder computes.
#[derive(Debug, Clone)]
pub struct ImageMaps {
    /// `[B, C, G, G]`: the image embedding.
    pub embeddings: Tensor,
    /// Maps of earlier layers for the mask decoder, channels last, `[B, rows, columns, channels]`: those of the first two
    /// stages of Hiera, or one of a vision transformer (ViT, TinyViT).
    pub details: Vec<Tensor>,
}

impl ImageEncoder {
    /// Loads the encoder that the configuration selects, from the root of the checkpoint.
    pub fn load(vb: VarBuilder, config: &Config) -> Result<Self> {
        let vision = vb.pp("vision_encoder");
        Ok(match &config.image_encoder {
            ImageEncoderConfig::Vit(vit) => Self::Vit(Vit::load(vision, vit)?),
            ImageEncoderConfig::TinyVit(tiny_vit) => {
                Self::TinyVit(TinyVit::load(vision, tiny_vit)?)
            }
            ImageEncoderConfig::EfficientVit(efficient_vit) => {
                Self::EfficientVit(EfficientVit::load(vision, efficient_vit, config.grid())?)
            }
            ImageEncoderConfig::Hiera(hiera) => Self::Hiera(Hiera::load(vb, hiera)?),
        })
    }

    /// Normalised pixels `[B, 3, S, S]`, where `S` is the model's image size, to the maps of the image. The pixels are
    /// padded with zeros, or stretched in SAM 2.
    pub fn forward(&self, pixel_values: &Tensor) -> Result<ImageMaps> {
        let size = match self {
            Self::Vit(vit) => vit.image_size(),
            Self::TinyVit(tiny_vit) => tiny_vit.image_size(),
            Self::EfficientVit(efficient_vit) => efficient_vit.image_size(),
            Self::Hiera(hiera) => hiera.image_size(),
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
            Self::EfficientVit(efficient_vit) => efficient_vit.forward(pixel_values),
            Self::Hiera(hiera) => hiera.forward(pixel_values),
        }
    }
}
