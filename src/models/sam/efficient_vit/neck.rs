//! The neck of EfficientViT-SAM: the maps of the last three stages in one size, and more convolutions.

use candle_core::{Module, Result, Tensor};
use candle_nn::VarBuilder;

use super::convolution::{Convolutions, load_pointwise};
use super::{Config, NORM_EPS};
use crate::models::layers::{BicubicResize, LayerNorm, Linear, layer_norm};

/// `SamNeck`, and the norm of `EfficientViTSamImageEncoder`.
#[derive(Debug, Clone)]
pub(super) struct Neck {
    /// For the last stage, the one before, and the one before that: a projection, and the scaling to the embedding's
    /// size.
    inputs: Vec<(Linear, BicubicResize)>,
    middle: Vec<Convolutions>,
    output: Linear,
    norm: LayerNorm,
}

impl Neck {
    /// Loads `neck` and `norm`. `sides` are the rows, and columns, of each stage's map.
    pub(super) fn load(
        vb: VarBuilder,
        config: &Config,
        sides: &[usize],
        grid: usize,
    ) -> Result<Self> {
        let vb_neck = vb.pp("neck");
        let input = |(i, side): (usize, &usize)| -> Result<_> {
            let projection = load_pointwise(vb_neck.pp("input_ops").pp(i).pp("op_list.0"))?;
            let like = Tensor::zeros(1, vb.dtype(), vb.device())?;
            let resize = BicubicResize::new((*side, *side), (grid, grid), &like)?;
            Ok((projection, resize))
        };
        let last_three = sides.iter().rev().take(3).enumerate();
        let middle = (0..)
            .map_while(|i| {
                let vb = vb_neck.pp("middle.op_list").pp(i).pp("main");
                Convolutions::load(vb, false).transpose()
            })
            .collect::<Result<_>>()?;
        Ok(Self {
            inputs: last_three.map(input).collect::<Result<_>>()?,
            middle,
            output: load_pointwise(vb_neck.pp("output_ops.0.op_list.0"))?,
            norm: layer_norm(config.output_channels, NORM_EPS, vb.pp("norm"))?,
        })
    }

    /// The maps of all stages, `[B, H, W, C]`, to the image embeddings `[B, C, G, G]`.
    pub(super) fn forward(&self, stages: &[Tensor]) -> Result<Tensor> {
        let mut sum: Option<Tensor> = None;
        for ((projection, resize), map) in self.inputs.iter().zip(stages.iter().rev()) {
            let scaled = resize.forward(&map.apply(projection)?)?;
            sum = Some(match sum {
                Some(sum) => (sum + scaled)?,
                None => scaled,
            });
        }
        let Some(mut map) = sum else {
            candle_core::bail!("EfficientViT has no stages")
        };
        for block in &self.middle {
            map = block.forward(&map)?;
        }
        self.norm
            .forward(&map.apply(&self.output)?)?
            .permute((0, 3, 1, 2))?
            .contiguous()
    }
}
