//! `config.json` of a SAM checkpoint.

use candle_nn::Activation;
use serde::{Deserialize, Deserializer};

use super::tiny_vit;
use crate::models::weights::{
    Architecture, DeriveConfigError, InvalidConfig, ModelConfig, Weights, check_at_most,
    check_divides,
};

/// `SamConfig`, with the reference's defaults: a published file may list every field or only those that differ.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(default)]
#[allow(missing_docs)] // the reference's own field names
pub struct Config {
    #[serde(deserialize_with = "or_default")]
    pub vision_config: VisionConfig,
    /// MobileSAM's image encoder, which replaces the one in `vision_config`. It is not part of any `config.json`.
    #[serde(skip)]
    pub tiny_vit: Option<tiny_vit::Config>,
    #[serde(deserialize_with = "or_default")]
    pub prompt_encoder_config: PromptEncoderConfig,
    #[serde(deserialize_with = "or_default")]
    pub mask_decoder_config: MaskDecoderConfig,
}

/// `SamVisionConfig`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default)]
#[allow(missing_docs)]
pub struct VisionConfig {
    pub hidden_size: usize,
    pub output_channels: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    pub num_channels: usize,
    pub image_size: usize,
    pub patch_size: usize,
    pub hidden_act: Activation,
    pub layer_norm_eps: f64,
    pub qkv_bias: bool,
    pub mlp_ratio: f64,
    pub use_abs_pos: bool,
    pub use_rel_pos: bool,
    pub window_size: usize,
    pub global_attn_indexes: Vec<usize>,
    pub num_pos_feats: usize,
    pub mlp_dim: Option<usize>,
}

/// `SamPromptEncoderConfig`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default)]
#[allow(missing_docs)]
pub struct PromptEncoderConfig {
    pub hidden_size: usize,
    pub image_size: usize,
    pub patch_size: usize,
    pub mask_input_channels: usize,
    pub num_point_embeddings: usize,
    pub hidden_act: Activation,
    pub layer_norm_eps: f64,
}

/// `SamMaskDecoderConfig`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default)]
#[allow(missing_docs)]
pub struct MaskDecoderConfig {
    pub hidden_size: usize,
    pub hidden_act: Activation,
    pub mlp_dim: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    pub attention_downsample_rate: usize,
    pub num_multimask_outputs: usize,
    pub iou_head_depth: usize,
    pub iou_head_hidden_dim: usize,
    pub layer_norm_eps: f64,
}

impl Default for VisionConfig {
    fn default() -> Self {
        Self {
            hidden_size: 768,
            output_channels: 256,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            num_channels: 3,
            image_size: 1024,
            patch_size: 16,
            hidden_act: Activation::Gelu,
            layer_norm_eps: 1e-6,
            qkv_bias: true,
            mlp_ratio: 4.0,
            use_abs_pos: true,
            use_rel_pos: true,
            window_size: 14,
            global_attn_indexes: vec![2, 5, 8, 11],
            num_pos_feats: 128,
            mlp_dim: None,
        }
    }
}

impl Default for PromptEncoderConfig {
    fn default() -> Self {
        Self {
            hidden_size: 256,
            image_size: 1024,
            patch_size: 16,
            mask_input_channels: 16,
            num_point_embeddings: 4,
            hidden_act: Activation::Gelu,
            layer_norm_eps: 1e-6,
        }
    }
}

impl Default for MaskDecoderConfig {
    fn default() -> Self {
        Self {
            hidden_size: 256,
            hidden_act: Activation::Relu,
            mlp_dim: 2048,
            num_hidden_layers: 2,
            num_attention_heads: 8,
            attention_downsample_rate: 2,
            num_multimask_outputs: 3,
            iou_head_depth: 3,
            iou_head_hidden_dim: 256,
            layer_norm_eps: 1e-6,
        }
    }
}

impl VisionConfig {
    /// Number of rows, and of columns, of the image embedding.
    pub fn grid(&self) -> usize {
        self.image_size / self.patch_size.max(1)
    }

    /// Derives the configuration of a plain vision transformer from the tensors' shapes.
    fn from_weights(weights: &Weights) -> Result<Self, DeriveConfigError> {
        let [hidden_size, num_channels, patch_size, _] =
            weights.sizes("vision_encoder.patch_embed.projection.weight")?;
        let [_, grid, _, _] = weights.sizes("vision_encoder.pos_embed")?;
        let [output_channels, ..] = weights.sizes::<4>("vision_encoder.neck.conv1.weight")?;
        let [_, num_pos_feats] = weights.sizes("shared_image_embedding.positional_embedding")?;
        let layer = |i: usize, name: &str| format!("vision_encoder.layers.{i}.{name}");
        let [mlp_dim, _] = weights.sizes(&layer(0, "mlp.lin1.weight"))?;
        let num_hidden_layers = weights.count("vision_encoder.layers");
        // a table of relative positions has 2 n - 1 rows for n positions; those of global attention cover the whole
        // map
        let mut window_size = 0;
        let mut head = hidden_size;
        let mut global_attn_indexes = vec![];
        for i in 0..num_hidden_layers {
            let [rows, width] = weights.sizes(&layer(i, "attn.rel_pos_h"))?;
            head = width;
            match rows.div_ceil(2) {
                extent if extent == grid => global_attn_indexes.push(i),
                extent => window_size = extent,
            }
        }
        Ok(Self {
            hidden_size,
            output_channels,
            num_hidden_layers,
            num_attention_heads: hidden_size / head.max(1),
            num_channels,
            image_size: grid * patch_size,
            patch_size,
            qkv_bias: weights.shape(&layer(0, "attn.qkv.bias")).is_some(),
            window_size,
            global_attn_indexes,
            num_pos_feats,
            mlp_dim: Some(mlp_dim),
            ..Self::default()
        })
    }
}

impl ModelConfig for Config {
    const ARCHITECTURE: Architecture = Architecture::Sam;
    const MODEL_TYPES: &'static [&'static str] = &["sam"];

    /// The prompt encoder and the mask decoder have the same sizes in all published models.
    fn from_weights(weights: &Weights) -> Result<Self, DeriveConfigError> {
        weights.check_published_width("mask_decoder.iou_token.weight", 256)?;
        if weights.shape(tiny_vit::SIGNATURE).is_some() {
            return Ok(Self {
                tiny_vit: Some(tiny_vit::Config::from_weights(weights)?),
                ..Self::default()
            });
        }
        let vision_config = VisionConfig::from_weights(weights)?;
        Ok(Self {
            prompt_encoder_config: PromptEncoderConfig {
                image_size: vision_config.image_size,
                patch_size: vision_config.patch_size,
                ..PromptEncoderConfig::default()
            },
            vision_config,
            ..Self::default()
        })
    }

    fn validate(&self) -> Result<(), InvalidConfig> {
        let (vision, prompt, decoder) = (
            &self.vision_config,
            &self.prompt_encoder_config,
            &self.mask_decoder_config,
        );
        check_divides(
            "vision num_attention_heads",
            vision.num_attention_heads,
            vision.hidden_size,
        )?;
        check_divides("vision patch_size", vision.patch_size, vision.image_size)?;
        check_at_most("image_size", vision.image_size, 8192)?;
        check_at_most("image_size / patch_size", vision.grid(), 512)?;
        check_at_most("num_hidden_layers", vision.num_hidden_layers, 256)?;
        check_at_most(
            "mask decoder num_hidden_layers",
            decoder.num_hidden_layers,
            256,
        )?;
        if let Some(tiny_vit) = &self.tiny_vit {
            for depth in &tiny_vit.depths {
                check_at_most("depth", *depth, 256)?;
            }
        }
        for (field, width, divisor) in [
            ("mask_input_channels", prompt.mask_input_channels, 4),
            ("mask decoder hidden_size", decoder.hidden_size, 8),
        ] {
            if !width.is_multiple_of(divisor) {
                let requirement = format!("it must be divisible by {divisor}");
                return Err(InvalidConfig::new(field, width, requirement));
            }
        }
        check_divides(
            "attention_downsample_rate",
            decoder.attention_downsample_rate,
            decoder.hidden_size,
        )?;
        for rate in [2, decoder.attention_downsample_rate] {
            let inner = decoder.hidden_size / rate;
            check_divides(
                "mask decoder num_attention_heads",
                decoder.num_attention_heads,
                inner,
            )?;
        }
        let widths = [
            vision.output_channels,
            prompt.hidden_size,
            decoder.hidden_size,
            vision.num_pos_feats.saturating_mul(2),
        ];
        if widths.iter().any(|width| *width != widths[0]) {
            return Err(InvalidConfig::new(
                "output_channels, prompt encoder hidden_size, mask decoder hidden_size, 2 * num_pos_feats",
                format!("{widths:?}"),
                "all must be equal",
            ));
        }
        let sizes = [
            vision.image_size,
            prompt.image_size,
            vision.patch_size,
            prompt.patch_size,
        ];
        if sizes[0] != sizes[1] || sizes[2] != sizes[3] {
            return Err(InvalidConfig::new(
                "image_size of vision and prompt encoder, patch_size of both",
                format!("{sizes:?}"),
                "vision and prompt encoder must have the same sizes",
            ));
        }
        if prompt.num_point_embeddings != 4 {
            let points = prompt.num_point_embeddings;
            return Err(InvalidConfig::new(
                "num_point_embeddings",
                points,
                "it must be 4",
            ));
        }
        Ok(())
    }
}

fn or_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_that_overflows_is_an_error() {
        let mut config = Config::default();
        config.validate().unwrap();
        config.vision_config.num_pos_feats = usize::MAX;
        let error = config.validate().unwrap_err().to_string();
        assert!(error.contains("num_pos_feats"), "{error}");
    }
}
