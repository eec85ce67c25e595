//! The sizes of SAM's vision transformer.

use candle_nn::Activation;
use serde::Deserialize;

use crate::models::weights::{
    DeriveConfigError, InvalidConfig, Weights, check_at_most, check_divides,
};

/// `SamVisionConfig`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default)]
#[allow(missing_docs)] // the reference's own field names
pub struct Config {
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

impl Default for Config {
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

impl Config {
    /// Number of rows, and of columns, of the image embedding.
    pub fn grid(&self) -> usize {
        self.image_size / self.patch_size.max(1)
    }

    /// Derives the configuration of a plain vision transformer from the tensors' shapes.
    pub(in crate::models::sam) fn from_weights(
        weights: &Weights,
    ) -> Result<Self, DeriveConfigError> {
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

    pub(in crate::models::sam) fn validate(&self) -> Result<(), InvalidConfig> {
        check_divides(
            "vision num_attention_heads",
            self.num_attention_heads,
            self.hidden_size,
        )?;
        check_divides("vision patch_size", self.patch_size, self.image_size)?;
        check_at_most("image_size / patch_size", self.grid(), 512)?;
        check_at_most("num_hidden_layers", self.num_hidden_layers, 256)?;
        let position_width = self.num_pos_feats.saturating_mul(2);
        if position_width != self.output_channels {
            return Err(InvalidConfig::new(
                "2 * num_pos_feats",
                position_width,
                format!(
                    "it must equal output_channels, which is {}",
                    self.output_channels
                ),
            ));
        }
        Ok(())
    }
}
