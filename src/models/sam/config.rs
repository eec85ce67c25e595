//! The configuration of a SAM, SAM-HQ, SAM 2, MobileSAM or EfficientViT-SAM checkpoint.

use candle_nn::Activation;
use serde::de::{DeserializeOwned, Error};
use serde::{Deserialize, Deserializer};

use super::{efficient_vit, hiera, tiny_vit, vit};
use crate::models::weights::{
    Architecture, DeriveConfigError, InvalidConfig, ModelConfig, Weights, check_at_most,
    check_divides,
};

/// `SamConfig`, `SamHQConfig` or `Sam2Config`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(from = "Published")]
pub struct Config {
    /// Which of the models it is. They differ in the mask decoder.
    pub family: Family,
    /// The image encoder.
    pub image_encoder: ImageEncoderConfig,
    /// The prompt encoder.
    pub prompt_encoder: PromptEncoderConfig,
    /// The mask decoder.
    pub mask_decoder: MaskDecoderConfig,
}

/// The models that share SAM's prompt encoder and two-way transformer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// SAM, and MobileSAM and EfficientViT-SAM, which have other image encoders.
    Sam,
    /// SAM-HQ: another mask token, whose mask is also computed from early features of the image encoder.
    SamHq,
    /// SAM 2 on images: finer maps of the image for the mask decoder, and an object score.
    Sam2,
}

/// The configuration of the image encoder.
#[derive(Debug, Clone, PartialEq)]
pub enum ImageEncoderConfig {
    /// The vision transformer of SAM, in any size, and of SlimSAM.
    Vit(vit::Config),
    /// The TinyViT of MobileSAM.
    TinyVit(tiny_vit::Config),
    /// The EfficientViT of EfficientViT-SAM.
    EfficientVit(efficient_vit::Config),
    /// The Hiera of SAM 2.
    Hiera(hiera::Config),
}

impl ImageEncoderConfig {
    /// Rows, and columns, of the input in pixels.
    pub fn image_size(&self) -> usize {
        match self {
            Self::Vit(config) => config.image_size,
            Self::TinyVit(config) => config.image_size,
            Self::EfficientVit(config) => config.image_size,
            Self::Hiera(config) => config.image_size(),
        }
    }

    /// Channels of the image embedding.
    pub fn output_channels(&self) -> usize {
        match self {
            Self::Vit(config) => config.output_channels,
            Self::TinyVit(config) => config.output_channels,
            Self::EfficientVit(config) => config.output_channels,
            Self::Hiera(config) => config.fpn_hidden_size,
        }
    }

    fn validate(&self) -> Result<(), InvalidConfig> {
        match self {
            Self::Vit(config) => config.validate(),
            Self::TinyVit(config) => config.validate(),
            Self::EfficientVit(config) => config.validate(),
            Self::Hiera(config) => config.validate(),
        }
    }
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

/// `SamMaskDecoderConfig`, with the additional fields of SAM-HQ and SAM 2.
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
    /// SAM-HQ: channels of the early features.
    pub vit_dim: usize,
    /// SAM 2: whether an unstable single mask is replaced by the best of several masks.
    pub dynamic_multimask_via_stability: bool,
    /// SAM 2: a mask is stable if its area hardly changes between these two thresholds, plus and minus this number.
    pub dynamic_multimask_stability_delta: f64,
    /// SAM 2: the smallest ratio of both areas of a stable mask.
    pub dynamic_multimask_stability_thresh: f64,
    /// Ratio of the full width to the width of the blocks' cross attention. In SAM it is a constant: there,
    /// `attention_downsample_rate` applies only to the final attention.
    #[serde(skip)]
    pub block_downsample_rate: usize,
    /// The epsilon of the norm after the final attention.
    #[serde(skip)]
    pub final_norm_eps: f64,
}

impl Default for Config {
    /// SAM ViT-B.
    fn default() -> Self {
        Self {
            family: Family::Sam,
            image_encoder: ImageEncoderConfig::Vit(vit::Config::default()),
            prompt_encoder: PromptEncoderConfig::default(),
            mask_decoder: MaskDecoderConfig::default(),
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
            vit_dim: 768,
            dynamic_multimask_via_stability: true,
            dynamic_multimask_stability_delta: 0.05,
            dynamic_multimask_stability_thresh: 0.98,
            block_downsample_rate: 2,
            final_norm_eps: 1e-5,
        }
    }
}

impl MaskDecoderConfig {
    /// The values that SAM 2 does not read from its configuration: ReLU, and torch's default for the norms.
    fn of_sam2(self) -> Self {
        Self {
            hidden_act: Activation::Relu,
            layer_norm_eps: 1e-5,
            block_downsample_rate: self.attention_downsample_rate,
            ..self
        }
    }

    /// EfficientViT-SAM sets one epsilon for all norms (`set_norm_eps` in `sam_model_zoo.py`).
    fn of_efficient_vit(self) -> Self {
        Self {
            layer_norm_eps: efficient_vit::NORM_EPS,
            final_norm_eps: efficient_vit::NORM_EPS,
            ..self
        }
    }
}

/// `config.json` as it is published. It may list every field or only those that differ from the reference's defaults.
#[derive(Deserialize)]
#[serde(tag = "model_type", rename_all = "snake_case")]
enum Published {
    Sam(Parts<VisionTransformer>),
    SamHq(Parts<VisionTransformer>),
    /// The published checkpoints also contain the part for videos.
    #[serde(alias = "sam2_video")]
    Sam2(Parts<hiera::Config>),
    /// Its authors publish no `config.json`; this one has the fields of SAM's.
    EfficientvitSam(Parts<efficient_vit::Config>),
}

/// The `vision_config` of SAM or SAM-HQ: a ViT, or with the `model_type` `tiny_vit` a TinyViT.
struct VisionTransformer(ImageEncoderConfig);

impl Default for VisionTransformer {
    fn default() -> Self {
        Self(ImageEncoderConfig::Vit(vit::Config::default()))
    }
}

impl<'de> Deserialize<'de> for VisionTransformer {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let fields = serde_json::Value::deserialize(deserializer)?;
        let is_tiny_vit = fields
            .get("model_type")
            .is_some_and(|kind| kind == "tiny_vit");
        let encoder = match is_tiny_vit {
            true => serde_json::from_value(fields).map(ImageEncoderConfig::TinyVit),
            false => serde_json::from_value(fields).map(ImageEncoderConfig::Vit),
        };
        encoder.map(Self).map_err(D::Error::custom)
    }
}

#[derive(Deserialize)]
#[serde(bound = "E: DeserializeOwned + Default")]
struct Parts<E> {
    #[serde(default, deserialize_with = "or_default")]
    vision_config: E,
    #[serde(default, deserialize_with = "or_default")]
    prompt_encoder_config: PromptEncoderConfig,
    #[serde(default, deserialize_with = "or_default")]
    mask_decoder_config: MaskDecoderConfig,
}

impl<E> Parts<E> {
    fn config(self, family: Family, encoder: impl FnOnce(E) -> ImageEncoderConfig) -> Config {
        Config {
            family,
            image_encoder: encoder(self.vision_config),
            prompt_encoder: self.prompt_encoder_config,
            mask_decoder: self.mask_decoder_config,
        }
    }
}

impl From<Published> for Config {
    fn from(published: Published) -> Self {
        match published {
            Published::Sam(parts) => parts.config(Family::Sam, |encoder| encoder.0),
            Published::SamHq(parts) => parts.config(Family::SamHq, |encoder| encoder.0),
            Published::Sam2(mut parts) => {
                parts.mask_decoder_config = parts.mask_decoder_config.of_sam2();
                parts.config(Family::Sam2, ImageEncoderConfig::Hiera)
            }
            Published::EfficientvitSam(mut parts) => {
                parts.mask_decoder_config = parts.mask_decoder_config.of_efficient_vit();
                parts.config(Family::Sam, ImageEncoderConfig::EfficientVit)
            }
        }
    }
}

impl Config {
    /// Rows, and columns, of the image encoder's input in pixels.
    pub fn input_side(&self) -> usize {
        self.image_encoder.image_size()
    }

    /// Rows, and columns, of the square in which prompts have their coordinates. It is the encoder's input, except for
    /// EfficientViT-SAM with its smaller inputs.
    pub fn prompt_side(&self) -> usize {
        self.prompt_encoder.image_size
    }

    /// Number of rows, and of columns, of the image embedding.
    pub fn grid(&self) -> usize {
        self.prompt_encoder.image_size / self.prompt_encoder.patch_size.max(1)
    }

    /// The shapes of an image's embeddings: `[C, G, G]` of the coarse map, and rows, columns and channels of each finer
    /// map.
    pub fn embedding_shapes(&self) -> Vec<[usize; 3]> {
        let (grid, width) = (self.grid(), self.mask_decoder.hidden_size);
        let mut shapes = vec![[self.image_encoder.output_channels(), grid, grid]];
        if self.family != Family::Sam {
            shapes.push([4 * grid, 4 * grid, width / 8]);
        }
        if self.family == Family::Sam2 {
            shapes.push([2 * grid, 2 * grid, width / 4]);
        }
        shapes
    }

    fn validate_decoder(&self) -> Result<(), InvalidConfig> {
        let (prompt, decoder) = (&self.prompt_encoder, &self.mask_decoder);
        check_at_most(
            "mask decoder num_hidden_layers",
            decoder.num_hidden_layers,
            256,
        )?;
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
        for rate in [
            decoder.block_downsample_rate,
            decoder.attention_downsample_rate,
        ] {
            let inner = decoder.hidden_size / rate.max(1);
            check_divides(
                "mask decoder num_attention_heads",
                decoder.num_attention_heads,
                inner,
            )?;
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

impl ModelConfig for Config {
    const ARCHITECTURE: Architecture = Architecture::Sam;
    const MODEL_TYPES: &'static [&'static str] =
        &["sam", "sam_hq", "sam2", "sam2_video", "efficientvit_sam"];

    /// The prompt encoder and the mask decoder have the same sizes in all published models.
    fn from_weights(weights: &Weights) -> Result<Self, DeriveConfigError> {
        weights.check_published_width("mask_decoder.iou_token.weight", 256)?;
        let has = |name: &str| weights.shape(name).is_some();
        let default = MaskDecoderConfig::default();
        if has(hiera::SIGNATURE) {
            return Ok(Self {
                family: Family::Sam2,
                image_encoder: ImageEncoderConfig::Hiera(hiera::Config::from_weights(weights)?),
                prompt_encoder: PromptEncoderConfig::default(),
                mask_decoder: default.of_sam2(),
            });
        }
        if has(efficient_vit::SIGNATURE) {
            let config = efficient_vit::Config::from_weights(weights)?;
            return Ok(Self {
                image_encoder: ImageEncoderConfig::EfficientVit(config),
                mask_decoder: default.of_efficient_vit(),
                ..Self::default()
            });
        }
        let mut config = Self::default();
        if has("mask_decoder.hq_token.weight") {
            config.family = Family::SamHq;
            let [vit_dim, ..] = weights.sizes::<4>("mask_decoder.compress_vit_conv1.weight")?;
            config.mask_decoder.vit_dim = vit_dim;
        }
        if has(tiny_vit::SIGNATURE) {
            let tiny_vit = tiny_vit::Config::from_weights(weights)?;
            config.image_encoder = ImageEncoderConfig::TinyVit(tiny_vit);
        } else {
            let vit = vit::Config::from_weights(weights)?;
            config.prompt_encoder.image_size = vit.image_size;
            config.prompt_encoder.patch_size = vit.patch_size;
            config.image_encoder = ImageEncoderConfig::Vit(vit);
        }
        Ok(config)
    }

    fn validate(&self) -> Result<(), InvalidConfig> {
        self.image_encoder.validate()?;
        self.validate_decoder()?;
        check_at_most("image_size", self.input_side(), 8192)?;
        check_at_most("image_size", self.prompt_side(), 8192)?;
        let prompt = &self.prompt_encoder;
        check_divides("patch_size", prompt.patch_size, prompt.image_size)?;
        for (field, size) in [
            ("image_size", self.input_side()),
            ("image_size / patch_size", self.grid()),
        ] {
            if size == 0 {
                return Err(InvalidConfig::new(field, size, "it must be at least 1"));
            }
        }
        let widths = [
            self.image_encoder.output_channels(),
            prompt.hidden_size,
            self.mask_decoder.hidden_size,
        ];
        if widths.iter().any(|width| *width != widths[0]) {
            return Err(InvalidConfig::new(
                "output_channels (fpn_hidden_size), prompt encoder hidden_size, mask decoder hidden_size",
                format!("{widths:?}"),
                "all must be equal",
            ));
        }
        let grid = match &self.image_encoder {
            ImageEncoderConfig::Vit(vit) => vit.grid(),
            ImageEncoderConfig::TinyVit(tiny_vit) => tiny_vit.image_size / 16,
            ImageEncoderConfig::Hiera(hiera) => hiera.grid(),
            // its maps are scaled to the prompt encoder's grid
            ImageEncoderConfig::EfficientVit(_) => return Ok(()),
        };
        let sizes = [self.input_side(), prompt.image_size, grid, self.grid()];
        if sizes[0] != sizes[1] || sizes[2] != sizes[3] {
            return Err(InvalidConfig::new(
                "image_size of vision and prompt encoder, rows of the image embedding of both",
                format!("{sizes:?}"),
                "vision and prompt encoder must have the same sizes",
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
        config.image_encoder = ImageEncoderConfig::Vit(vit::Config {
            num_pos_feats: usize::MAX,
            ..vit::Config::default()
        });
        let error = config.validate().unwrap_err().to_string();
        assert!(error.contains("num_pos_feats"), "{error}");
    }
}
