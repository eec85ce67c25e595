//! Multi-scale deformable attention (Zhu et al. 2020, <https://arxiv.org/abs/2010.04159>).

use candle_core::{Result, Tensor};
use candle_nn::{Linear, VarBuilder};

use super::config::Config;
use super::pyramid::Pyramid;
use crate::models::ops::deformable_sampling;

/// `GroundingDinoMultiscaleDeformableAttention`: every query reads a few learned places of every
/// level, around its reference point.
#[derive(Debug, Clone)]
pub struct DeformableAttention {
    sampling_offsets: Linear,
    attention_weights: Linear,
    value_proj: Linear,
    output_proj: Linear,
    heads: usize,
    levels: usize,
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
        let (d, levels) = (config.d_model, config.num_feature_levels);
        let samples = heads * levels * points;
        Ok(Self {
            sampling_offsets: candle_nn::linear(d, samples * 2, vb.pp("sampling_offsets"))?,
            attention_weights: candle_nn::linear(d, samples, vb.pp("attention_weights"))?,
            value_proj: candle_nn::linear(d, d, vb.pp("value_proj"))?,
            output_proj: candle_nn::linear(d, d, vb.pp("output_proj"))?,
            heads,
            levels,
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
        let _span = tracing::debug_span!("deformable_attention").entered();
        let (batch, count, d) = queries.dims3()?;
        let (heads, levels, points) = (self.heads, self.levels, self.points);
        let value = memory.hidden_states.apply(&self.value_proj)?;
        let value = match memory.token_mask {
            Some(mask) => value.broadcast_mul(&mask.unsqueeze(2)?.to_dtype(value.dtype())?)?,
            None => value,
        };
        let value = value.reshape((batch, (), heads, d / heads))?;
        let offsets = queries.apply(&self.sampling_offsets)?.reshape((
            batch,
            count,
            heads,
            levels,
            points * 2,
        ))?;
        let weights = queries.apply(&self.attention_weights)?.reshape((
            batch,
            count,
            heads,
            levels * points,
        ))?;
        let weights = candle_nn::ops::softmax_last_dim(&weights)?;
        let locations = self.locations(&offsets, reference_points, memory.pyramid)?;
        let shapes: Vec<(usize, usize)> = memory
            .pyramid
            .levels()
            .iter()
            .map(|level| (level.height, level.width))
            .collect();
        deformable_sampling(&value, &locations, &weights, &shapes)?.apply(&self.output_proj)
    }

    /// Where to sample, `(x, y)` in 0..1 of each level: `[B, Q, heads, L, P * 2]`.
    fn locations(&self, offsets: &Tensor, reference: &Tensor, pyramid: &Pyramid) -> Result<Tensor> {
        let device = offsets.device();
        let points = self.points;
        // [B, Q, L, c] -> [B, Q, 1, L, c], each pair repeated for every point
        let reference = reference.unsqueeze(2)?;
        let centres = reference.narrow(4, 0, 2)?.repeat((1, 1, 1, 1, points))?;
        let offsets = if reference.dim(4)? == 2 {
            let sizes: Vec<f32> = pyramid
                .levels()
                .iter()
                .flat_map(|level| [level.width as f32, level.height as f32].repeat(points))
                .collect();
            let sizes = Tensor::from_vec(sizes, (1, 1, 1, self.levels, points * 2), device)?;
            offsets.broadcast_div(&sizes.to_dtype(offsets.dtype())?)?
        } else {
            let sides = reference.narrow(4, 2, 2)?.repeat((1, 1, 1, 1, points))?;
            (offsets / points as f64)?.broadcast_mul(&(sides * 0.5)?)?
        };
        offsets.broadcast_add(&centres)
    }
}
