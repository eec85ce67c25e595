//! The input projections: the backbone's maps to feature levels of equal width.

use candle_core::{Module, Result, Tensor};
use candle_nn::VarBuilder;

use super::config::Config;
use crate::models::layers::Linear;
use crate::models::ops::{Activation, Conv3x3, conv3x3, group_norm};

/// Groups of the projections' group norms.
const NORM_GROUPS: usize = 32;

/// `input_proj_vision`: one projection per level. Levels beyond the backbone's maps are computed by halving the
/// resolution of the level before.
#[derive(Debug, Clone)]
pub struct InputProjection(Vec<Level>);

#[derive(Debug, Clone)]
struct Level {
    convolution: Convolution,
    norm_weight: Tensor,
    norm_bias: Tensor,
}

#[derive(Debug, Clone)]
enum Convolution {
    /// 1x1: a linear layer on the channels.
    Pointwise(Linear),
    /// 3x3 with stride 2.
    Strided(Conv3x3),
}

impl InputProjection {
    /// Loads `{i}.0` (convolution) and `{i}.1` (group norm).
    pub fn load(vb: VarBuilder, config: &Config) -> Result<Self> {
        let d = config.d_model;
        let backbone = &config.backbone_config;
        let stages = backbone.output_stages().map_err(candle_core::Error::msg)?;
        let mut levels = vec![];
        let mut channels = d;
        for i in 0..config.num_feature_levels {
            let vb = vb.pp(i);
            let bias = vb.get(d, "0.bias")?;
            let convolution = match stages.get(i) {
                Some(stage) => {
                    channels = backbone.channels(*stage);
                    let kernel = vb.get((d, channels, 1, 1), "0.weight")?;
                    let weight = kernel.reshape((d, channels))?;
                    Convolution::Pointwise(Linear::new(weight, Some(bias))?)
                }
                None => {
                    let input = std::mem::replace(&mut channels, d);
                    let kernel = vb.get((d, input, 3, 3), "0.weight")?;
                    Convolution::Strided(Conv3x3::new(&kernel, Some(bias), 2)?)
                }
            };
            levels.push(Level {
                convolution,
                norm_weight: vb.get(d, "1.weight")?,
                norm_bias: vb.get(d, "1.bias")?,
            });
        }
        Ok(Self(levels))
    }

    /// The backbone's maps `[B, H_i, W_i, C_i]` to levels `[B, H_l, W_l, d]`, channels last.
    pub fn forward(&self, maps: &[Tensor]) -> Result<Vec<Tensor>> {
        let _span = tracing::debug_span!("input_projection").entered();
        let mut levels: Vec<Tensor> = vec![];
        for (i, level) in self.0.iter().enumerate() {
            let source = match (maps.get(i), maps.last(), levels.last()) {
                (Some(map), _, _) => map,
                // the first extra level is computed from the backbone's last map, not from its projection
                (None, Some(map), _) if i == maps.len() => map,
                (None, _, Some(level)) => level,
                (None, _, None) => candle_core::bail!("the backbone returned no maps"),
            };
            let projected = match &level.convolution {
                Convolution::Pointwise(linear) => linear.forward(source)?,
                Convolution::Strided(conv) => conv3x3(source, conv, Activation::None)?,
            };
            let (weight, bias) = (&level.norm_weight, &level.norm_bias);
            levels.push(group_norm(&projected, NORM_GROUPS, weight, bias, 1e-5)?);
        }
        Ok(levels)
    }
}
