//! The sizes of TinyViT.

use crate::models::weights::{DeriveConfigError, Weights};

/// A tensor that only TinyViT has.
pub const SIGNATURE: &str = "vision_encoder.patch_embed.seq.0.c.weight";

/// The sizes of the four stages. The first stage has convolutions, the others have windowed attention.
#[derive(Debug, Clone, PartialEq)]
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
    /// Hidden channels of the convolution blocks.
    pub hidden_dim: usize,
    /// Channels of the image embedding.
    pub output_channels: usize,
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
            hidden_dim,
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
}
