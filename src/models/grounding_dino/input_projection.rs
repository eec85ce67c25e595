//! From the backbone's maps to feature levels of one width.

use candle_core::{Result, Tensor};
use candle_nn::{Conv2d, Conv2dConfig, GroupNorm, VarBuilder};

use super::config::Config;

/// `input_proj_vision`: one projection per level; the levels beyond the backbone's maps are made by
/// halving the last one again and again.
#[derive(Debug, Clone)]
pub struct InputProjection(Vec<(Conv2d, GroupNorm)>);

impl InputProjection {
    /// Loads `{i}.0` (convolution) and `{i}.1` (group norm).
    pub fn load(vb: VarBuilder, config: &Config) -> Result<Self> {
        let d = config.d_model;
        let backbone = &config.backbone_config;
        let stages = backbone.output_stages().map_err(candle_core::Error::Msg)?;
        let mut levels = vec![];
        let mut channels = d;
        for i in 0..config.num_feature_levels {
            let (input, kernel, conv) = match stages.get(i) {
                Some(stage) => {
                    channels = backbone.channels(*stage);
                    (channels, 1, Conv2dConfig::default())
                }
                None => {
                    let halving = Conv2dConfig {
                        stride: 2,
                        padding: 1,
                        ..Default::default()
                    };
                    (std::mem::replace(&mut channels, d), 3, halving)
                }
            };
            let vb = vb.pp(i);
            levels.push((
                candle_nn::conv2d(input, d, kernel, conv, vb.pp(0))?,
                candle_nn::group_norm(32, d, 1e-5, vb.pp(1))?,
            ));
        }
        Ok(Self(levels))
    }

    /// The backbone's maps `[B, H_i, W_i, C_i]`, channels last, to levels `[B, d, H_l, W_l]`.
    pub fn forward(&self, maps: &[Tensor]) -> Result<Vec<Tensor>> {
        let _span = tracing::debug_span!("input_projection").entered();
        let mut levels: Vec<Tensor> = vec![];
        for (i, (conv, norm)) in self.0.iter().enumerate() {
            let channels_first = |map: &Tensor| map.permute((0, 3, 1, 2))?.contiguous();
            let source = match (maps.get(i), maps.last(), levels.last()) {
                (Some(map), _, _) => channels_first(map)?,
                // the first extra level is made of the backbone's last map, not of its projection
                (None, Some(map), _) if i == maps.len() => channels_first(map)?,
                (None, _, Some(level)) => level.clone(),
                (None, _, None) => candle_core::bail!("the backbone gave no map"),
            };
            levels.push(source.apply(conv)?.apply(norm)?);
        }
        Ok(levels)
    }
}
