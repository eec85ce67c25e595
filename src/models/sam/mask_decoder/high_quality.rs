//! SAM-HQ: another mask token, whose mask is computed from finer features and added to SAM's masks (Ke et al. 2023,
//! <https://arxiv.org/abs/2306.01567>).

use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;

use super::mlp;
use crate::models::layers::{LayerNorm, Mlp, Upscale2x, layer_norm};
use crate::models::ops::{Activation, Conv3x3, conv3x3, products_by_image};
use crate::models::sam::config::MaskDecoderConfig;
use crate::models::sam::image_encoder::ImageMaps;

/// The layers of `SamHQMaskDecoder` that SAM does not have.
#[derive(Debug, Clone)]
pub(super) struct HighQuality {
    hypernetwork: Mlp,
    early_features: Upscaling,
    image_embedding: Upscaling,
    mask_conv1: Conv3x3,
    mask_norm: LayerNorm,
    mask_conv2: Conv3x3,
}

impl HighQuality {
    /// Loads `hq_mask_mlp`, `compress_vit_*`, `encoder_*` and `mask_*` of the mask decoder.
    pub(super) fn load(vb: VarBuilder, config: &MaskDecoderConfig) -> Result<Self> {
        let width = config.hidden_size;
        let conv3x3 = |name: &str, input: usize, output: usize| {
            let vb = vb.pp(name);
            let kernel = vb.get((output, input, 3, 3), "weight")?;
            Conv3x3::new(&kernel, Some(vb.get(output, "bias")?), 1)
        };
        Ok(Self {
            hypernetwork: mlp([width, width, width / 8], 3, vb.pp("hq_mask_mlp"))?,
            early_features: Upscaling::load(
                [config.vit_dim, width, width / 8],
                [
                    "compress_vit_conv1",
                    "compress_vit_norm",
                    "compress_vit_conv2",
                ]
                .map(|n| vb.pp(n)),
            )?,
            image_embedding: Upscaling::load(
                [width, width / 4, width / 8],
                ["encoder_conv1", "encoder_norm", "encoder_conv2"].map(|n| vb.pp(n)),
            )?,
            mask_conv1: conv3x3("mask_conv1", width / 8, width / 4)?,
            mask_norm: layer_norm(width / 4, 1e-6, vb.pp("mask_norm"))?,
            mask_conv2: conv3x3("mask_conv2", width / 4, width / 8)?,
        })
    }

    /// The features of an image, `[B, 4 G, 4 G, C / 8]`: from its embedding and from early features of the encoder.
    pub(super) fn features(&self, image: &ImageMaps) -> Result<Tensor> {
        let Some(early) = image.details.first() else {
            candle_core::bail!(
                "SAM-HQ needs early features, which this image encoder does not have"
            )
        };
        let embedding = image.embeddings.permute((0, 2, 3, 1))?.contiguous()?;
        self.image_embedding.forward(&embedding)? + self.early_features.forward(early)?
    }

    /// The mask `[K, 1, 16 G^2]` of the tokens `[K, C]` and the upscaled cells `[K, 4 G, 4 G, C / 8]`.
    pub(super) fn mask(
        &self,
        token: &Tensor,
        upscaled: &Tensor,
        features: &[Tensor],
    ) -> Result<Tensor> {
        let Some(features) = features.first() else {
            candle_core::bail!("the image embeddings do not have the features that SAM-HQ needs")
        };
        let hidden = conv3x3(upscaled, &self.mask_conv1, Activation::None)?;
        let hidden = self
            .mask_norm
            .forward_activated(&hidden, Activation::Gelu)?;
        let hidden = conv3x3(&hidden, &self.mask_conv2, Activation::None)?;
        let pixels = hidden.broadcast_add(features)?.flatten(1, 2)?;
        let weights = self.hypernetwork.forward(token)?.unsqueeze(1)?;
        products_by_image(&weights, &pixels)
    }
}

/// Two transposed convolutions with a norm and GELU between them.
#[derive(Debug, Clone)]
struct Upscaling {
    conv1: Upscale2x,
    norm: LayerNorm,
    conv2: Upscale2x,
}

impl Upscaling {
    fn load([input, hidden, output]: [usize; 3], vbs: [VarBuilder; 3]) -> Result<Self> {
        let [conv1, norm, conv2] = vbs;
        Ok(Self {
            conv1: Upscale2x::load(input, hidden, conv1)?,
            norm: layer_norm(hidden, 1e-6, norm)?,
            conv2: Upscale2x::load(hidden, output, conv2)?,
        })
    }

    /// `[B, H, W, input]` to `[B, 4 H, 4 W, output]`.
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let xs = self.conv1.forward(xs, Activation::None)?;
        let xs = self.norm.forward_activated(&xs, Activation::Gelu)?;
        self.conv2.forward(&xs, Activation::None)
    }
}
