//! SAM 2's image encoder: Hiera, a hierarchical vision transformer (Ryali et al. 2023,
//! <https://arxiv.org/abs/2306.00989>; Bolya et al. 2023 for its positions, <https://arxiv.org/abs/2311.05613>), and a
//! feature pyramid (Ravi et al. 2024, <https://arxiv.org/abs/2408.00714>).
//!
//! The reference is `modeling_sam2.py` of transformers; its class is named above each block. Maps are channels last.

mod block;
mod config;
mod neck;

use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;

use self::block::Block;
pub use self::config::{BackboneConfig, Config, SIGNATURE};
use self::neck::Neck;
pub(super) use self::neck::lateral;
use super::image_encoder::ImageMaps;
use crate::models::layers::BicubicResize;
use crate::models::ops::{Activation, Conv7x7, conv7x7};

/// `Sam2VisionModel`.
#[derive(Debug, Clone)]
pub struct Hiera {
    patch_embed: Conv7x7,
    /// `[1, H, W, C]`.
    positions: Tensor,
    stages: Vec<Vec<Block>>,
    neck: Neck,
    image_size: usize,
}

impl Hiera {
    /// Loads `vision_encoder.backbone`, `vision_encoder.neck` and `no_memory_embedding` from the root of a checkpoint.
    pub fn load(vb: VarBuilder, config: &Config) -> Result<Self> {
        let backbone = &config.backbone_config;
        let vb_backbone = vb.pp("vision_encoder.backbone");
        let mut first = 0;
        let mut stages = vec![];
        for (stage, count) in backbone.blocks_per_stage.iter().enumerate() {
            let load = |i: usize| {
                let vb = vb_backbone.pp("blocks").pp(first + i);
                let is_global = backbone.global_attention_blocks.contains(&(first + i));
                Block::load(vb, backbone, (stage, i), is_global)
            };
            stages.push((0..*count).map(load).collect::<Result<_>>()?);
            first += count;
        }
        Ok(Self {
            patch_embed: load_patch_embed(vb_backbone.pp("patch_embed.projection"), backbone)?,
            positions: load_positions(vb_backbone, config)?,
            stages,
            neck: Neck::load(vb, config)?,
            image_size: config.image_size(),
        })
    }

    /// Number of rows, and of columns, of the input pixels.
    pub(super) fn image_size(&self) -> usize {
        self.image_size
    }

    /// Normalised pixels `[B, 3, S, S]` to the image embeddings `[B, C, S / 16, S / 16]` and the maps of the first two
    /// stages, `[B, S / 4, S / 4, C0]` and `[B, S / 8, S / 8, C1]`.
    pub fn forward(&self, pixel_values: &Tensor) -> Result<ImageMaps> {
        let maps = self.stages(pixel_values)?;
        let [first, second, third, fourth] = &maps[..] else {
            candle_core::bail!("Hiera has {} stages instead of 4", maps.len())
        };
        Ok(ImageMaps {
            embeddings: self.neck.forward(third, fourth)?,
            details: vec![first.clone(), second.clone()],
        })
    }

    /// The output of each stage, `[B, H, W, C]` (`Sam2HieraDetModel`).
    pub fn stages(&self, pixel_values: &Tensor) -> Result<Vec<Tensor>> {
        let pixels = pixel_values.permute((0, 2, 3, 1))?.contiguous()?;
        let patches = conv7x7(&pixels, &self.patch_embed, Activation::None)?;
        let mut hidden_states = patches.broadcast_add(&self.positions)?;
        let mut outputs = vec![];
        for stage in &self.stages {
            for block in stage {
                hidden_states = block.forward(&hidden_states)?;
            }
            outputs.push(hidden_states.clone());
        }
        Ok(outputs)
    }
}

/// `Sam2PatchEmbeddings`: overlapping patches.
fn load_patch_embed(vb: VarBuilder, config: &BackboneConfig) -> Result<Conv7x7> {
    let (input, output) = (config.num_channels, config.hidden_size);
    let kernel = vb.get((output, input, 7, 7), "weight")?;
    Conv7x7::new(
        &kernel,
        Some(vb.get(output, "bias")?),
        config.patch_stride[0],
    )
}

/// The position embeddings of all patches: a small map that is scaled to all of them, plus one of a window, which is
/// repeated.
fn load_positions(vb: VarBuilder, config: &Config) -> Result<Tensor> {
    let backbone = &config.backbone_config;
    let width = backbone.hidden_size;
    let [rows, columns] = backbone.window_positional_embedding_background_size;
    let window = backbone.window_size_per_stage[0];
    let grid = config.stage_grids()[0];
    let background = vb.get((1, width, rows, columns), "pos_embed")?;
    let background = background.permute((0, 2, 3, 1))?.contiguous()?;
    let resize = BicubicResize::new((rows, columns), (grid, grid), &background)?;
    let of_window = vb.get((1, width, window, window), "pos_embed_window")?;
    let repeated = of_window
        .permute((0, 2, 3, 1))?
        .repeat((1, grid / window, grid / window, 1))?;
    resize.forward(&background)? + repeated
}
