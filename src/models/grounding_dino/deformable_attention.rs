//! Multi-scale deformable attention (Zhu et al. 2020, <https://arxiv.org/abs/2010.04159>).

use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;

use super::config::Config;
use super::pyramid::Pyramid;
use crate::models::layers::{Linear, linear};
use crate::models::ops::{Sampling, deformable_sampling};

/// `GroundingDinoMultiscaleDeformableAttention`: every query samples a few learned positions of every level, around
/// its reference point.
#[derive(Debug, Clone)]
pub struct DeformableAttention {
    /// `sampling_offsets` (all in x, then all in y) and `attention_weights`, concatenated.
    samples: Linear,
    value_proj: Linear,
    output_proj: Linear,
    heads: usize,
    points: usize,
}

/// The keys and values of a deformable attention.
#[derive(Debug, Clone, Copy)]
pub struct Memory<'a> {
    /// `[B, N, d]`: the flattened feature maps.
    pub hidden_states: &'a Tensor,
    /// `[B, N]`: 1 for image, 0 for padding; `None` if there is no padding.
    pub token_mask: Option<&'a Tensor>,
    /// The sizes of the maps.
    pub pyramid: &'a Pyramid,
}

impl DeformableAttention {
    /// Loads `sampling_offsets`, `attention_weights`, `value_proj`, `output_proj`.
    pub fn load(vb: VarBuilder, config: &Config, heads: usize, points: usize) -> Result<Self> {
        let d = config.d_model;
        let samples = heads * config.num_feature_levels * points;
        let (vb_o, vb_w) = (vb.pp("sampling_offsets"), vb.pp("attention_weights"));
        // the checkpoint has pairs (x, y)
        let by_axis = |xs: Tensor, input: usize| {
            let xs = xs.reshape((samples, 2, input))?.transpose(0, 1)?;
            xs.reshape((2 * samples, input))
        };
        let offsets = by_axis(vb_o.get((2 * samples, d), "weight")?, d)?;
        let weights = vb_w.get((samples, d), "weight")?;
        let offsets_bias = by_axis(vb_o.get(2 * samples, "bias")?, 1)?.flatten_all()?;
        let bias = Tensor::cat(&[offsets_bias, vb_w.get(samples, "bias")?], 0)?;
        Ok(Self {
            samples: Linear::new(Tensor::cat(&[offsets, weights], 0)?, Some(bias))?,
            value_proj: linear(d, d, vb.pp("value_proj"))?,
            output_proj: linear(d, d, vb.pp("output_proj"))?,
            heads,
            points,
        })
    }

    /// Queries `[B, Q, d]`, with their positions added, and reference points per level, `[B, Q, L, 2]` (centres) or
    /// `[B, Q, L, 4]` (boxes cxcywh), in 0..1; to `[B, Q, d]`.
    pub fn forward(
        &self,
        queries: &Tensor,
        reference_points: &Tensor,
        memory: Memory,
    ) -> Result<Tensor> {
        self.sample(queries, reference_points, memory)?
            .apply(&self.output_proj)
    }

    /// Like [`DeformableAttention::forward`], plus `residual` `[B, Q, d]`.
    pub fn forward_added(
        &self,
        queries: &Tensor,
        reference_points: &Tensor,
        memory: Memory,
        residual: &Tensor,
    ) -> Result<Tensor> {
        let sampled = self.sample(queries, reference_points, memory)?;
        self.output_proj.forward_added(&sampled, residual)
    }

    /// The sampled values of the queries, before the output projection.
    fn sample(&self, queries: &Tensor, reference: &Tensor, memory: Memory) -> Result<Tensor> {
        let _span = tracing::debug_span!("deformable_attention").entered();
        let value = self
            .value_proj
            .forward_by_heads(memory.hidden_states, self.heads)?;
        let value = match memory.token_mask {
            // [B, N] -> [B, 1, N, 1]
            Some(mask) => {
                let mask = mask.unsqueeze(1)?.unsqueeze(3)?;
                value.broadcast_mul(&mask.to_dtype(value.dtype())?)?
            }
            None => value,
        };
        let shapes: Vec<(usize, usize)> = memory
            .pyramid
            .levels()
            .iter()
            .map(|level| (level.height, level.width))
            .collect();
        let sampling = Sampling {
            heads: self.heads,
            points: self.points,
            shapes: &shapes,
        };
        deformable_sampling(&value, &queries.apply(&self.samples)?, reference, sampling)
    }
}
