//! The sizes of TinyViT.

use serde::Deserialize;

use crate::models::weights::{
    DeriveConfigError, InvalidConfig, Weights, check_at_most, check_divides,
};

/// A tensor that only TinyViT has.
pub const SIGNATURE: &str = "vision_encoder.patch_embed.seq.0.c.weight";

/// The sizes of the four stages. The first stage has convolutions, the others have windowed attention. In a `config.json`,
/// which its authors do not publish, it is the `vision_config` with the `model_type` `tiny_vit`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default)]
pub struct Config {
    /// Rows, and columns, of the input in pixels.
    pub image_size: usize,
    /// Channels of each stage.
    pub embed_dims: Vec<usize>,
    /// Blocks of each stage.
    pub depths: Vec<usize>,
    /// Attention heads of each stage; not used for the first stage.
    pub num_heads: Vec<usize>,
    /// Rows, and columns, of the windows of each stage; not used for the first stage.
    pub window_sizes: Vec<usize>,
    /// Ratio of the hidden channels of the convolution blocks to their channels.
    pub mbconv_expand_ratio: usize,
    /// Channels of the image embedding.
    pub output_channels: usize,
}

impl Default for Config {
    /// MobileSAM.
    fn default() -> Self {
        Self {
            image_size: 1024,
            embed_dims: vec![64, 128, 160, 320],
            depths: vec![2, 2, 6, 2],
            num_heads: vec![2, 4, 5, 10],
            window_sizes: vec![7, 7, 14, 7],
            mbconv_expand_ratio: 4,
            output_channels: 256,
        }
    }
}

impl Config {
    /// Derives the configuration from the tensors' shapes.
    ///
    /// # Errors
    /// If a tensor is missing or has another number of dimensions.
    pub fn from_weights(weights: &Weights) -> Result<Self, DeriveConfigError> {
        let stages = weights.count("vision_encoder.layers");
        let block = |stage: usize| format!("vision_encoder.layers.{stage}.blocks");
        let [first, ..] = weights.sizes::<4>("vision_encoder.patch_embed.seq.2.c.weight")?;
        let [hidden_dim, ..] = weights.sizes::<4>(&format!("{}.0.conv1.c.weight", block(0)))?;
        let [output_channels, ..] = weights.sizes::<4>("vision_encoder.neck.conv1.weight")?;
        let mut config = Self {
            // not visible in any shape: convolutions and windows work for any size
            image_size: 1024,
            embed_dims: vec![first],
            depths: (0..stages).map(|i| weights.count(&block(i))).collect(),
            num_heads: vec![0],
            window_sizes: vec![0],
            mbconv_expand_ratio: hidden_dim / first.max(1),
            output_channels,
        };
        for stage in 1..stages {
            let attention = format!("{}.0.attn", block(stage));
            // one bias per distance in rows and columns
            let [heads, biases] = weights.sizes(&format!("{attention}.attention_biases"))?;
            let [width, _] = weights.sizes(&format!("{attention}.proj.weight"))?;
            config.embed_dims.push(width);
            config.num_heads.push(heads);
            config.window_sizes.push(biases.isqrt());
        }
        Ok(config)
    }

    pub(in crate::models::sam) fn validate(&self) -> Result<(), InvalidConfig> {
        for depth in &self.depths {
            check_at_most("depth", *depth, 256)?;
        }
        let stages = self.embed_dims.len();
        for (field, values) in [
            ("depths", &self.depths),
            ("num_heads", &self.num_heads),
            ("window_sizes", &self.window_sizes),
        ] {
            if values.len() != stages || stages == 0 {
                let requirement = format!("it must have as many values as embed_dims, {stages}");
                return Err(InvalidConfig::new(
                    field,
                    format!("{values:?}"),
                    requirement,
                ));
            }
        }
        for stage in 1..stages {
            check_divides("num_heads", self.num_heads[stage], self.embed_dims[stage])?;
            if self.window_sizes[stage] == 0 {
                return Err(InvalidConfig::new(
                    "window_sizes",
                    0,
                    "it must be at least 1",
                ));
            }
        }
        Ok(())
    }
}
