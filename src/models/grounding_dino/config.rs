//! `config.json` of a Grounding DINO checkpoint.

use candle_nn::Activation;
use serde::Deserialize;

use crate::models::weights::{
    Architecture, DeriveConfigError, InvalidConfig, ModelConfig, Weights, check_at_most,
    check_divides,
};
use crate::models::{bert, swin};

/// `GroundingDinoConfig`, with the reference's defaults: a published file may list every field or only those that
/// differ.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default)]
#[allow(missing_docs)] // the reference's own field names
pub struct Config {
    pub model_type: String,
    #[serde(deserialize_with = "swin_config")]
    pub backbone_config: swin::Config,
    #[serde(deserialize_with = "bert_config")]
    pub text_config: bert::Config,
    pub use_timm_backbone: bool,
    pub num_queries: usize,
    pub encoder_layers: usize,
    pub encoder_ffn_dim: usize,
    pub encoder_attention_heads: usize,
    pub decoder_layers: usize,
    pub decoder_ffn_dim: usize,
    pub decoder_attention_heads: usize,
    pub activation_function: Activation,
    pub d_model: usize,
    pub position_embedding_type: String,
    pub num_feature_levels: usize,
    pub encoder_n_points: usize,
    pub decoder_n_points: usize,
    pub two_stage: bool,
    pub max_text_len: usize,
    pub embedding_init_target: bool,
    pub query_dim: usize,
    pub decoder_bbox_embed_share: bool,
    pub positional_embedding_temperature: f32,
    pub layer_norm_eps: f64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            model_type: GROUNDING_DINO.to_owned(),
            backbone_config: default_backbone(),
            text_config: bert::Config::default(),
            use_timm_backbone: false,
            num_queries: 900,
            encoder_layers: 6,
            encoder_ffn_dim: 2048,
            encoder_attention_heads: 8,
            decoder_layers: 6,
            decoder_ffn_dim: 2048,
            decoder_attention_heads: 8,
            activation_function: Activation::Relu,
            d_model: 256,
            position_embedding_type: "sine".to_owned(),
            num_feature_levels: 4,
            encoder_n_points: 4,
            decoder_n_points: 4,
            two_stage: true,
            max_text_len: 256,
            embedding_init_target: true,
            query_dim: 4,
            decoder_bbox_embed_share: true,
            positional_embedding_temperature: 20.0,
            layer_norm_eps: 1e-5,
        }
    }
}

/// The `model_type` of Grounding DINO.
const GROUNDING_DINO: &str = "grounding-dino";
/// The `model_type` of MM-Grounding-DINO.
const MM_GROUNDING_DINO: &str = "mm-grounding-dino";

impl Config {
    /// Whether it is an MM-Grounding-DINO.
    pub fn is_mm(&self) -> bool {
        self.model_type == MM_GROUNDING_DINO
    }

    /// Whether all decoder layers share one box head. Those of MM-Grounding-DINO never do, although its configuration
    /// does not say so.
    pub fn shares_box_head(&self) -> bool {
        self.decoder_bbox_embed_share && !self.is_mm()
    }
}

/// The backbone if the configuration names none: Swin-T with its last three stages.
fn default_backbone() -> swin::Config {
    swin::Config {
        out_indices: Some(vec![2, 3, 4]),
        ..swin::Config::default()
    }
}

impl ModelConfig for Config {
    const ARCHITECTURE: Architecture = Architecture::GroundingDino;
    const MODEL_TYPES: &'static [&'static str] = &[GROUNDING_DINO, MM_GROUNDING_DINO];

    fn from_weights(weights: &Weights) -> Result<Self, DeriveConfigError> {
        weights.check_published_width("model.text_projection.bias", 256)?;
        let defaults = Self::default();
        let [num_feature_levels, d_model] = weights.sizes("model.level_embed")?;
        let encoder = "model.encoder.layers.0.deformable_layer";
        let decoder = "model.decoder.layers.0";
        let [encoder_ffn_dim, _] = weights.sizes(&format!("{encoder}.fc1.weight"))?;
        let [decoder_ffn_dim, _] = weights.sizes(&format!("{decoder}.fc1.weight"))?;
        // the number of heads is not visible in any shape; all published models have the default
        let points = |name: String, heads: usize| -> Result<usize, DeriveConfigError> {
            let [samples, _] = weights.sizes(&name)?;
            Ok(samples / (heads * num_feature_levels).max(1))
        };
        // only the MM family has this tensor
        let is_mm = weights
            .shape("model.encoder_output_class_embed.bias")
            .is_some();
        let queries = weights.sizes("model.query_position_embeddings.weight");
        Ok(Self {
            model_type: if is_mm {
                MM_GROUNDING_DINO
            } else {
                GROUNDING_DINO
            }
            .to_owned(),
            backbone_config: swin::Config::from_weights(
                weights,
                "model.backbone.conv_encoder.model",
            )?,
            text_config: bert::Config::from_weights(weights, "model.text_backbone")?,
            encoder_n_points: points(
                format!("{encoder}.self_attn.attention_weights.weight"),
                defaults.encoder_attention_heads,
            )?,
            decoder_n_points: points(
                format!("{decoder}.encoder_attn.attention_weights.weight"),
                defaults.decoder_attention_heads,
            )?,
            embedding_init_target: queries.is_ok(),
            num_queries: queries.map_or(defaults.num_queries, |[queries, _]| queries),
            encoder_layers: weights.count("model.encoder.layers"),
            decoder_layers: weights.count("model.decoder.layers"),
            num_feature_levels,
            d_model,
            encoder_ffn_dim,
            decoder_ffn_dim,
            ..defaults
        })
    }

    fn validate(&self) -> Result<(), InvalidConfig> {
        let stages = self.backbone_config.output_stages()?.len();
        let (d, levels) = (self.d_model, self.num_feature_levels);
        let depths = &self.backbone_config.depths;
        for (name, value, limit) in [
            ("num_queries", self.num_queries, 100_000),
            ("encoder_layers", self.encoder_layers, 256),
            ("decoder_layers", self.decoder_layers, 256),
            ("num_feature_levels", levels, 16),
            ("d_model", d, 1 << 16),
            ("depths", depths.iter().copied().max().unwrap_or(0), 256),
            ("number of depths", depths.len(), 16),
            ("window_size", self.backbone_config.window_size, 256),
            ("num_hidden_layers", self.text_config.num_hidden_layers, 256),
        ] {
            check_at_most(name, value, limit)?;
        }
        if self.use_timm_backbone {
            let requirement = "it must be false; only a Swin backbone is supported";
            return Err(InvalidConfig::new("use_timm_backbone", true, requirement));
        }
        if self.position_embedding_type != "sine" {
            let found = format!("{:?}", self.position_embedding_type);
            return Err(InvalidConfig::new(
                "position_embedding_type",
                found,
                "it must be \"sine\"",
            ));
        }
        if levels < stages {
            let requirement = format!("it must be at least the backbone's {stages} outputs");
            return Err(InvalidConfig::new(
                "num_feature_levels",
                levels,
                requirement,
            ));
        }
        if self.query_dim != 4 {
            return Err(InvalidConfig::new(
                "query_dim",
                self.query_dim,
                "it must be 4",
            ));
        }
        if !self.two_stage {
            let requirement = "it must be true, as in published models";
            return Err(InvalidConfig::new("two_stage", false, requirement));
        }
        // the group norms have 32 groups
        if !d.is_multiple_of(32) {
            return Err(InvalidConfig::new(
                "d_model",
                d,
                "it must be divisible by 32",
            ));
        }
        check_divides("encoder_attention_heads", self.encoder_attention_heads, d)?;
        check_divides("decoder_attention_heads", self.decoder_attention_heads, d)?;
        let fusion_heads = self.encoder_attention_heads / 2;
        check_divides(
            "encoder_attention_heads / 2",
            fusion_heads,
            self.encoder_ffn_dim / 2,
        )?;
        for (i, heads) in self.backbone_config.num_heads.iter().enumerate() {
            check_divides("num_heads", *heads, self.backbone_config.channels(i + 1))?;
        }
        check_divides(
            "num_attention_heads",
            self.text_config.num_attention_heads,
            self.text_config.hidden_size,
        )
    }
}

/// Deserializes a nested configuration, which may be null. Its model type must be `expected`.
fn nested<'de, D, T>(deserializer: D, expected: &str, default: T) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: serde::de::DeserializeOwned,
{
    use serde::de::Error;
    let value = Option::<serde_json::Value>::deserialize(deserializer)?;
    let Some(value) = value else {
        return Ok(default);
    };
    let found = value.get("model_type").and_then(|v| v.as_str());
    if let Some(found) = found.filter(|found| *found != expected) {
        return Err(D::Error::custom(format!(
            "model_type={found:?} is not supported: it must be {expected:?}"
        )));
    }
    serde_json::from_value(value).map_err(D::Error::custom)
}

fn swin_config<'de, D: serde::Deserializer<'de>>(d: D) -> Result<swin::Config, D::Error> {
    nested(d, "swin", default_backbone())
}

fn bert_config<'de, D: serde::Deserializer<'de>>(d: D) -> Result<bert::Config, D::Error> {
    nested(d, "bert", bert::Config::default())
}
