//! The neck: the last two convolutions of both image encoders.

use candle_core::{Module, Result, Tensor};
use candle_nn::VarBuilder;

use crate::models::layers::{LayerNorm, Linear, layer_norm};
use crate::models::ops::{Activation, Conv3x3, conv3x3};

/// `SamVisionNeck`.
#[derive(Debug, Clone)]
pub(super) struct Neck {
    /// 1x1: a linear layer on the channels.
    conv1: Linear,
    norm1: LayerNorm,
    conv2: Conv3x3,
    norm2: LayerNorm,
}

impl Neck {
    /// Loads `conv1`, `layer_norm1`, `conv2` and `layer_norm2`, from `hidden` to `channels` channels.
    pub(super) fn load(hidden: usize, channels: usize, vb: VarBuilder) -> Result<Self> {
        let conv1 = vb.get((channels, hidden, 1, 1), "conv1.weight")?;
        let conv2 = vb.get((channels, channels, 3, 3), "conv2.weight")?;
        Ok(Self {
            conv1: Linear::new(conv1.reshape((channels, hidden))?, None)?,
            norm1: layer_norm(channels, 1e-6, vb.pp("layer_norm1"))?,
            conv2: Conv3x3::new(&conv2, None, 1)?,
            norm2: layer_norm(channels, 1e-6, vb.pp("layer_norm2"))?,
        })
    }

    /// `[B, G, G, hidden]` to `[B, C, G, G]`.
    pub(super) fn forward(&self, hidden_states: &Tensor) -> Result<Tensor> {
        let map = self.norm1.forward(&self.conv1.forward(hidden_states)?)?;
        let map = conv3x3(&map, &self.conv2, Activation::None)?;
        self.norm2
            .forward(&map)?
            .permute((0, 3, 1, 2))?
            .contiguous()
    }
}
