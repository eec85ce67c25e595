//! The last two convolutions of both image encoders.

use candle_core::{Result, Tensor};
use candle_nn::{Conv2d, Conv2dConfig, VarBuilder};

use crate::models::layers::LayerNorm2d;

/// `SamVisionNeck`.
#[derive(Debug, Clone)]
pub(super) struct Neck {
    conv1: Conv2d,
    norm1: LayerNorm2d,
    conv2: Conv2d,
    norm2: LayerNorm2d,
}

impl Neck {
    /// Loads `conv1`, `layer_norm1`, `conv2` and `layer_norm2`, from `hidden` channels to `channels`.
    pub(super) fn load(hidden: usize, channels: usize, vb: VarBuilder) -> Result<Self> {
        let padded = Conv2dConfig {
            padding: 1,
            ..Default::default()
        };
        let conv2 = candle_nn::conv2d_no_bias(channels, channels, 3, padded, vb.pp("conv2"))?;
        Ok(Self {
            conv1: candle_nn::conv2d_no_bias(
                hidden,
                channels,
                1,
                Conv2dConfig::default(),
                vb.pp("conv1"),
            )?,
            norm1: LayerNorm2d::load(channels, 1e-6, vb.pp("layer_norm1"))?,
            conv2,
            norm2: LayerNorm2d::load(channels, 1e-6, vb.pp("layer_norm2"))?,
        })
    }

    /// `[B, G, G, hidden]` to `[B, C, G, G]`.
    pub(super) fn forward(&self, hidden_states: &Tensor) -> Result<Tensor> {
        let maps = hidden_states.permute((0, 3, 1, 2))?.contiguous()?;
        let maps = self.norm1.forward(&maps.apply(&self.conv1)?)?;
        self.norm2.forward(&maps.apply(&self.conv2)?)
    }
}
