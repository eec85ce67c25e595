//! SAM 2: the maps of Hiera's first two stages, which are added while the mask decoder scales its cells up.

use candle_core::{Module, Result, Tensor};
use candle_nn::VarBuilder;

use crate::models::layers::Linear;
use crate::models::sam::config::{Config, ImageEncoderConfig};
use crate::models::sam::hiera::lateral;
use crate::models::sam::image_encoder::ImageMaps;

/// `conv_s0` and `conv_s1`, each after the projection of its level in the feature pyramid. Nothing is between these two
/// linear layers, so that their product is computed once, when the model loads.
#[derive(Debug, Clone)]
pub(super) struct HighResolution {
    first: Linear,
    second: Linear,
}

impl HighResolution {
    /// Loads `mask_decoder.conv_s{0, 1}` and `vision_encoder.neck.convs.{3, 2}` from the root of a checkpoint.
    pub(super) fn load(vb: VarBuilder, config: &Config) -> Result<Self> {
        let ImageEncoderConfig::Hiera(hiera) = &config.image_encoder else {
            candle_core::bail!("the mask decoder of SAM 2 needs Hiera as its image encoder")
        };
        let width = config.mask_decoder.hidden_size;
        let level = |stage: usize, output: usize| {
            let vb_level = vb.pp("mask_decoder").pp(format!("conv_s{stage}"));
            let (lateral, lateral_bias) = lateral(&vb, hiera, stage)?;
            let weight = vb_level.get((output, width, 1, 1), "weight")?;
            let weight = weight.reshape((output, width))?;
            let bias = weight.matmul(&lateral_bias.unsqueeze(1)?)?.squeeze(1)?;
            let bias = (bias + vb_level.get(output, "bias")?)?;
            Linear::new(weight.matmul(&lateral)?, Some(bias))
        };
        Ok(Self {
            first: level(0, width / 8)?,
            second: level(1, width / 4)?,
        })
    }

    /// `[B, 4 G, 4 G, C / 8]` and `[B, 2 G, 2 G, C / 4]`.
    pub(super) fn fine_maps(&self, image: &ImageMaps) -> Result<Vec<Tensor>> {
        let [first, second] = &image.details[..] else {
            candle_core::bail!(
                "the image encoder has {} earlier maps, not 2",
                image.details.len()
            )
        };
        Ok(vec![
            self.first.forward(first)?,
            self.second.forward(second)?,
        ])
    }
}
