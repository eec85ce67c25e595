//! MobileSAM's image encoder: TinyViT whose last stage keeps the resolution of the stage before (Zhang et al. 2023,
//! <https://arxiv.org/abs/2306.14289>; Wu et al. 2022, <https://arxiv.org/abs/2207.10666>).
//!
//! The reference is `tiny_vit_sam.py` of the `mobile_sam` package; its class is named above each block. Maps are
//! channels last here. Batch norms are folded into their convolutions when the model loads.

mod attention;
mod config;
mod convolution;

use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;

use self::attention::AttentionBlock;
pub use self::config::{Config, SIGNATURE};
pub use self::convolution::PatchEmbed;
use self::convolution::{MbConv, PatchMerging};
use super::image_encoder::ImageMaps;
use super::neck::Neck;

/// The epsilon of the attention blocks' norms and of the batch norms; torch's default for both.
const NORM_EPS: f64 = 1e-5;

/// The stage whose output Light HQ-SAM's mask decoder uses (`tiny_vit_sam.py` of `segment_anything_hq`).
const DETAIL_STAGE: usize = 1;

/// `TinyViT`.
#[derive(Debug, Clone)]
pub struct TinyVit {
    patch_embed: PatchEmbed,
    stages: Vec<Stage>,
    neck: Neck,
    image_size: usize,
}

impl TinyVit {
    /// Loads `patch_embed.seq`, `layers.{i}` and `neck`.
    ///
    /// # Errors
    /// If a tensor is missing or has another shape; the message names it.
    pub fn load(vb: VarBuilder, config: &Config) -> Result<Self> {
        let dims = &config.embed_dims;
        let (Some(first), Some(last)) = (dims.first(), dims.last()) else {
            candle_core::bail!("TinyViT has no stages: embed_dims is empty")
        };
        let stages = (0..dims.len())
            .map(|i| Stage::load(vb.pp("layers").pp(i), config, i))
            .collect::<Result<_>>()?;
        Ok(Self {
            patch_embed: PatchEmbed::load(*first, vb.pp("patch_embed"))?,
            stages,
            neck: Neck::load(*last, config.output_channels, vb.pp("neck"))?,
            image_size: config.image_size,
        })
    }

    /// Number of rows, and of columns, of the input pixels.
    pub(super) fn image_size(&self) -> usize {
        self.image_size
    }

    /// Normalised, zero-padded pixels `[B, 3, S, S]` to the image embeddings `[B, C, S / 16, S / 16]` and the output
    /// `[B, S / 16, S / 16, C1]` of the second stage, after its merging of patches.
    pub fn forward(&self, pixel_values: &Tensor) -> Result<ImageMaps> {
        let mut xs = self.patch_embed.forward(pixel_values)?;
        let mut details = vec![];
        for (i, stage) in self.stages.iter().enumerate() {
            xs = stage.forward(&xs)?;
            if i == DETAIL_STAGE {
                details.push(xs.clone());
            }
        }
        Ok(ImageMaps {
            embeddings: self.neck.forward(&xs)?,
            details,
        })
    }
}

/// `ConvLayer` or `BasicLayer`.
#[derive(Debug, Clone)]
pub struct Stage {
    blocks: Vec<Block>,
    merging: Option<PatchMerging>,
}

#[derive(Debug, Clone)]
enum Block {
    Convolution(MbConv),
    Attention(AttentionBlock),
}

impl Stage {
    /// Loads a stage by its index: `blocks.{i}`, and `downsample` unless it is the last one.
    pub fn load(vb: VarBuilder, config: &Config, stage: usize) -> Result<Self> {
        let dim = config.embed_dims[stage];
        let blocks = (0..config.depths[stage])
            .map(|i| {
                let vb = vb.pp("blocks").pp(i);
                Ok(if stage == 0 {
                    Block::Convolution(MbConv::load(dim, config.mbconv_expand_ratio * dim, vb)?)
                } else {
                    let (heads, window) = (config.num_heads[stage], config.window_sizes[stage]);
                    Block::Attention(AttentionBlock::load(dim, heads, window, vb)?)
                })
            })
            .collect::<Result<_>>()?;
        let next = config.embed_dims.get(stage + 1);
        let is_last = stage + 2 == config.embed_dims.len();
        let merging = next.map(|next| PatchMerging::load(dim, *next, is_last, vb.pp("downsample")));
        Ok(Self {
            blocks,
            merging: merging.transpose()?,
        })
    }

    /// `[B, H, W, C]` to the next stage's input, or to the same shape in the last stage.
    pub fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let mut xs = xs.clone();
        for block in &self.blocks {
            xs = match block {
                Block::Convolution(block) => block.forward(&xs)?,
                Block::Attention(block) => block.forward(&xs)?,
            };
        }
        match &self.merging {
            Some(merging) => merging.forward(&xs),
            None => Ok(xs),
        }
    }
}
