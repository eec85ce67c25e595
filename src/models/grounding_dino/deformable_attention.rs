//! Multi-scale deformable attention (Zhu et al. 2020, <https://arxiv.org/abs/2010.04159>).

use candle_core::{Module, Result, Tensor};
use candle_nn::VarBuilder;

use super::config::Config;
use super::pyramid::Pyramid;
use crate::models::layers::{Linear, linear, linear_concat};
use crate::models::ops::{Sampling, deformable_sampling};

/// `GroundingDinoMultiscaleDeformableAttention`: every query reads a few learned places of every
/// level, around its reference point.
#[derive(Debug, Clone)]
pub struct DeformableAttention {
    /// `sampling_offsets` and `attention_weights` side by side.
    samples: Linear,
    value_proj: Linear,
    output_proj: Linear,
    heads: usize,
    points: usize,
}

/// What the queries of a deformable attention look at.
#[derive(Debug, Clone, Copy)]
pub struct Memory<'a> {
    /// `[B, N, d]`: the flattened maps.
    pub hidden_states: &'a Tensor,
    /// `[B, N]`: 1 for image, 0 for padding; `None` where nothing is padding.
    pub token_mask: Option<&'a Tensor>,
    /// The maps' sizes.
    pub pyramid: &'a Pyramid,
}

impl DeformableAttention {
    /// Loads `sampling_offsets`, `attention_weights`, `value_proj`, `output_proj`.
    pub fn load(vb: VarBuilder, config: &Config, heads: usize, points: usize) -> Result<Self> {
        let d = config.d_model;
        let samples = heads * config.num_feature_levels * points;
        let offsets = (samples * 2, true, vb.pp("sampling_offsets"));
        let weights = (samples, true, vb.pp("attention_weights"));
        Ok(Self {
            samples: linear_concat(d, &[offsets, weights])?,
            value_proj: linear(d, d, vb.pp("value_proj"))?,
            output_proj: linear(d, d, vb.pp("output_proj"))?,
            heads,
            points,
        })
    }

    /// Queries with their positions added `[B, Q, d]`, and reference points per level
    /// `[B, Q, L, 2]` (centres) or `[B, Q, L, 4]` (boxes cxcywh), 0..1; to `[B, Q, d]`.
    pub fn forward(
        &self,
        queries: &Tensor,
        reference_points: &Tensor,
        memory: Memory,
    ) -> Result<Tensor> {
        self.sample(queries, reference_points, memory)?
            .apply(&self.output_proj)
    }

    /// As [`DeformableAttention::forward`], added to `residual` `[B, Q, d]`.
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

    /// What the queries read, before the output projection.
    fn sample(&self, queries: &Tensor, reference: &Tensor, memory: Memory) -> Result<Tensor> {
        let _span = tracing::debug_span!("deformable_attention").entered();
        let value = self.value_proj.forward(memory.hidden_states)?;
        let value = match memory.token_mask {
            Some(mask) => value.broadcast_mul(&mask.unsqueeze(2)?.to_dtype(value.dtype())?)?,
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
