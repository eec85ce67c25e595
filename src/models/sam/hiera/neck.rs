//! The part of SAM 2's feature pyramid that gives the image embedding.

use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;

use super::Config;
use crate::models::layers::Linear;

/// `Sam2VisionNeck` for the third level: a projection of the third stage's map, plus that of the fourth stage's, which
/// is scaled to its size. The mask decoder has the projections of the first two levels, to which nothing is added.
#[derive(Debug, Clone)]
pub(super) struct Neck {
    third: Linear,
    fourth: Linear,
}

impl Neck {
    /// Loads `vision_encoder.neck.convs.{0, 1}` and `no_memory_embedding`, which is added to the image embedding because
    /// an image has no earlier frames.
    pub(super) fn load(vb: VarBuilder, config: &Config) -> Result<Self> {
        let no_memory = vb.get((1, 1, config.fpn_hidden_size), "no_memory_embedding")?;
        let (weight, bias) = lateral(&vb, config, 2)?;
        let bias = (bias + no_memory.flatten_all()?)?;
        let (fourth_weight, fourth_bias) = lateral(&vb, config, 3)?;
        Ok(Self {
            third: Linear::new(weight, Some(bias))?,
            fourth: Linear::new(fourth_weight, Some(fourth_bias))?,
        })
    }

    /// `[B, G, G, C2]` and `[B, G / 2, G / 2, C3]` to `[B, C, G, G]`.
    pub(super) fn forward(&self, third: &Tensor, fourth: &Tensor) -> Result<Tensor> {
        let top_down = repeat2x(&fourth.apply(&self.fourth)?)?;
        self.third
            .forward_added(third, &top_down)?
            .permute((0, 3, 1, 2))?
            .contiguous()
    }
}

/// The weight `[C, channels]` and the bias `[C]` of the 1x1 convolution of a stage's map. The reference numbers the
/// convolutions from the last stage to the first.
pub(in crate::models::sam) fn lateral(
    vb: &VarBuilder,
    config: &Config,
    stage: usize,
) -> Result<(Tensor, Tensor)> {
    let vb = vb.pp("vision_encoder.neck.convs").pp(3 - stage);
    let (width, channels) = (
        config.fpn_hidden_size,
        config.backbone_config.embed_dim_per_stage[stage],
    );
    let weight = vb.get((width, channels, 1, 1), "weight")?;
    Ok((weight.reshape((width, channels))?, vb.get(width, "bias")?))
}

/// `[B, H, W, C]` to `[B, 2 H, 2 W, C]`: every pixel becomes a 2x2 block.
fn repeat2x(map: &Tensor) -> Result<Tensor> {
    let (batch, height, width, channels) = map.dims4()?;
    map.reshape((batch, height, 1, width, 1, channels))?
        .broadcast_as((batch, height, 2, width, 2, channels))?
        .reshape((batch, 2 * height, 2 * width, channels))
}
