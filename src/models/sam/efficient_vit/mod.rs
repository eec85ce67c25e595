//! EfficientViT-SAM's image encoder (Zhang et al. 2024, <https://arxiv.org/abs/2402.05008>; Cai et al. 2023,
//! <https://arxiv.org/abs/2205.14756>).
//!
//! The reference is `efficientvit/models/efficientvit/{backbone,sam}.py` of its authors; its class is named above each
//! block. Maps are channels last here. Batch norms are folded into their convolutions when the model loads. The kind and
//! the widths of each block are those of its tensors.

mod attention;
mod config;
mod convolution;
mod neck;

use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;

use self::attention::LinearAttention;
pub use self::config::{Config, NORM_EPS, SIGNATURE};
use self::convolution::{Convolutions, DenseConv};
use self::neck::Neck;
use super::image_encoder::ImageMaps;
use crate::models::ops::Activation;

/// `EfficientViTSamImageEncoder`.
#[derive(Debug, Clone)]
pub struct EfficientVit {
    stem: DenseConv,
    stages: Vec<Vec<Block>>,
    neck: Neck,
    image_size: usize,
}

impl EfficientVit {
    /// Loads `backbone.stages.{i}`, `neck` and `norm`, for an image embedding of `grid` rows and columns.
    ///
    /// # Errors
    /// If a tensor is missing, or has a shape that does not fit the others; the message names it.
    pub fn load(vb: VarBuilder, config: &Config, grid: usize) -> Result<Self> {
        let stage_vb = |stage: usize| vb.pp("backbone.stages").pp(stage).pp("op_list");
        let mut stages = vec![];
        for stage in 0.. {
            let vb = stage_vb(stage);
            // the first layer of the first stage is the stem; the other stages begin with a block that halves the map
            let blocks = (usize::from(stage == 0)..)
                .map_while(|i| Block::load(vb.pp(i), i == 0).transpose())
                .collect::<Result<Vec<_>>>()?;
            if blocks.is_empty() && stage > 0 {
                break;
            }
            stages.push(blocks);
        }
        let stem = DenseConv::load(stage_vb(0).pp(0), 2, Activation::GeluTanh)?;
        let first = config.image_size.div_ceil(2);
        let sides = (0..stages.len())
            .map(|stage| first.div_ceil(1 << stage))
            .collect::<Vec<_>>();
        Ok(Self {
            stem,
            neck: Neck::load(vb, config, &sides, grid)?,
            stages,
            image_size: config.image_size,
        })
    }

    /// Number of rows, and of columns, of the input pixels.
    pub(super) fn image_size(&self) -> usize {
        self.image_size
    }

    /// Normalised, zero-padded pixels `[B, 3, S, S]` to the image embeddings `[B, C, G, G]`.
    pub fn forward(&self, pixel_values: &Tensor) -> Result<ImageMaps> {
        Ok(ImageMaps {
            embeddings: self.neck.forward(&self.stages(pixel_values)?)?,
            details: vec![],
        })
    }

    /// The output of each stage, `[B, H, W, C]` (`EfficientViTLargeBackbone`).
    pub fn stages(&self, pixel_values: &Tensor) -> Result<Vec<Tensor>> {
        let pixels = pixel_values.permute((0, 2, 3, 1))?.contiguous()?;
        let mut xs = self.stem.forward(&pixels)?;
        let mut outputs = vec![];
        for stage in &self.stages {
            for block in stage {
                xs = block.forward(&xs)?;
            }
            outputs.push(xs.clone());
        }
        Ok(outputs)
    }
}

/// `ResidualBlock` or `EfficientViTBlock`.
#[derive(Debug, Clone)]
enum Block {
    Convolutions(Convolutions),
    Attention(LinearAttention, Convolutions),
}

impl Block {
    /// Loads the block whose tensors are there; `None` if there are none.
    fn load(vb: VarBuilder, halves: bool) -> Result<Option<Self>> {
        if vb.contains_tensor("context_module.main.qkv.conv.weight") {
            let attention = LinearAttention::load(vb.pp("context_module.main"))?;
            let local = Convolutions::load(vb.pp("local_module.main"), false)?;
            let Some(local) = local else {
                candle_core::bail!("{}.local_module has no tensors", vb.prefix())
            };
            return Ok(Some(Self::Attention(attention, local)));
        }
        Ok(Convolutions::load(vb.pp("main"), halves)?.map(Self::Convolutions))
    }

    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        match self {
            Self::Convolutions(convolutions) => convolutions.forward(xs),
            Self::Attention(attention, local) => local.forward(&attention.forward_added(xs)?),
        }
    }
}
