//! The first stage: selects the encoder tokens that become the decoder's queries.

use candle_core::{D, DType, Module, Result, Tensor};
use candle_nn::VarBuilder;

use super::class_head::ClassHead;
use super::config::Config;
use super::pyramid::Pyramid;
use crate::models::layers::{LayerNorm, Linear, Mlp, layer_norm, linear};

/// Language-guided query selection: `enc_output`, the class scores and the box head of the two-stage part of
/// `GroundingDinoModel`.
#[derive(Debug, Clone)]
pub struct QuerySelection {
    enc_output: Linear,
    enc_output_norm: LayerNorm,
    class_head: ClassHead,
    bbox_embed: Mlp,
    num_queries: usize,
}

/// The candidate tokens.
#[derive(Debug, Clone)]
pub struct Candidates {
    /// `[B, N]`: for each token, the logit of the text token that fits best.
    pub scores: Tensor,
    /// `[B, N, d]`: the features of the tokens.
    object_queries: Tensor,
    /// `[B, N, 4]`: the box of each token, as logits of cxcywh.
    proposals: Tensor,
}

/// The selected queries.
#[derive(Debug, Clone)]
pub struct Proposals {
    /// `[B, Q]`, u32: the selected tokens, the best first.
    pub indices: Tensor,
    /// `[B, Q, d]`: the features of the queries.
    pub object_queries: Tensor,
    /// `[B, Q, 4]`: the boxes of the queries as logits of cxcywh; after the sigmoid they are 0..1 of the valid area.
    pub coord_logits: Tensor,
}

impl QuerySelection {
    /// Loads `enc_output`, `enc_output_norm`, `encoder_output_bbox_embed`, and, if the model has it,
    /// `encoder_output_class_embed`.
    pub fn load(vb: VarBuilder, config: &Config) -> Result<Self> {
        let d = config.d_model;
        Ok(Self {
            enc_output: linear(d, d, vb.pp("enc_output"))?,
            enc_output_norm: layer_norm(d, config.layer_norm_eps, vb.pp("enc_output_norm"))?,
            class_head: ClassHead::load(&[vb.pp("encoder_output_class_embed")], config)?,
            bbox_embed: Mlp::load(&[d, d, d, 4], vb.pp("encoder_output_bbox_embed"))?,
            num_queries: config.num_queries,
        })
    }

    /// The encoder's image tokens `[B, N, d]`, and its text `[B, T, d]` with the padding bias `[B, 1, T]`, to the
    /// best `Q` tokens. `Q` is `num_queries`, or `N` if a small image has fewer tokens.
    pub fn forward(
        &self,
        vision: &Tensor,
        text: &Tensor,
        text_bias: &Tensor,
        pyramid: &Pyramid,
    ) -> Result<Proposals> {
        let _span = tracing::debug_span!("query_selection").entered();
        let candidates = self.candidates(vision, text, text_bias, pyramid)?;
        let indices = top_indices(&candidates.scores, self.num_queries)?;
        self.select(&candidates, indices)
    }

    /// Scores all tokens; the inputs are those of [`Self::forward`].
    pub fn candidates(
        &self,
        vision: &Tensor,
        text: &Tensor,
        text_bias: &Tensor,
        pyramid: &Pyramid,
    ) -> Result<Candidates> {
        let (proposals, usable) = pyramid.proposals(vision.device())?;
        let object_queries = self.object_queries(vision, &usable)?;
        let logits = self.class_head.forward(&object_queries, text, text_bias)?;
        Ok(Candidates {
            scores: logits.max(D::Minus1)?.to_dtype(DType::F32)?,
            object_queries,
            proposals,
        })
    }

    /// The queries for the tokens `indices`, `[B, Q]`.
    pub fn select(&self, candidates: &Candidates, indices: Tensor) -> Result<Proposals> {
        let object_queries = gather_tokens(&candidates.object_queries, &indices)?;
        // the box head runs only on the selected tokens; the reference runs it on all tokens and then selects
        let offsets = self.bbox_embed.forward(&object_queries)?;
        let proposals = gather_tokens(&candidates.proposals, &indices)?;
        Ok(Proposals {
            coord_logits: (offsets.to_dtype(DType::F32)? + proposals)?,
            indices,
            object_queries,
        })
    }

    /// `[B, N, d]`: tokens with unusable proposals are set to zero, then all tokens are projected and normed.
    fn object_queries(&self, vision: &Tensor, usable: &Tensor) -> Result<Tensor> {
        let vision = vision.broadcast_mul(&usable.to_dtype(vision.dtype())?)?;
        self.enc_output_norm
            .forward(&vision.apply(&self.enc_output)?)
    }
}

/// Scores `[B, N]` to the indices of the `count` largest values of each row, `[B, min(count, N)]`, the largest first.
/// Of equal values, the earlier one is first on the CPU; the order is not defined on other devices.
fn top_indices(scores: &Tensor, count: usize) -> Result<Tensor> {
    let (batch, tokens) = scores.dims2()?;
    let count = count.min(tokens);
    if !scores.device().is_cpu() {
        return top_indices_in_rounds(scores, count, MAX_SORT_LENGTH);
    }
    let mut selected = Vec::with_capacity(batch * count);
    for row in scores.to_vec2::<f32>()? {
        let mut order: Vec<u32> = (0..tokens as u32).collect();
        order.sort_by(|a, b| row[*b as usize].total_cmp(&row[*a as usize]));
        selected.extend_from_slice(&order[..count]);
    }
    Tensor::from_vec(selected, (batch, count), scores.device())
}

/// candle sorts a row in the shared memory of one block, at four bytes per value; 48 KiB are always available.
const MAX_SORT_LENGTH: usize = 8192;

/// Selects on the device: each part of a row passes its best values to the next round, until one part is left.
fn top_indices_in_rounds(scores: &Tensor, count: usize, sort_length: usize) -> Result<Tensor> {
    let (batch, tokens) = scores.dims2()?;
    let mut scores = scores.contiguous()?;
    let mut indices = Tensor::arange(0, tokens as u32, scores.device())?
        .broadcast_as((batch, tokens))?
        .contiguous()?;
    loop {
        let width = scores.dim(1)?;
        let (mut best_scores, mut best_indices) = (vec![], vec![]);
        for start in (0..width).step_by(sort_length) {
            let length = sort_length.min(width - start);
            let part = scores.narrow(1, start, length)?.contiguous()?;
            let best = part.arg_sort_last_dim(false)?;
            let best = best.narrow(1, 0, count.min(length))?.contiguous()?;
            best_scores.push(part.gather(&best, 1)?);
            let part = indices.narrow(1, start, length)?.contiguous()?;
            best_indices.push(part.gather(&best, 1)?);
        }
        scores = Tensor::cat(&best_scores, 1)?;
        indices = Tensor::cat(&best_indices, 1)?;
        if best_scores.len() == 1 {
            return Ok(indices);
        }
        if scores.dim(1)? == width {
            candle_core::bail!(
                "cannot select {count} queries by sorting {sort_length} tokens at a time"
            )
        }
    }
}

/// `[B, N, C]` and indices `[B, Q]` to `[B, Q, C]`.
fn gather_tokens(xs: &Tensor, indices: &Tensor) -> Result<Tensor> {
    let (batch, _, channels) = xs.dims3()?;
    let count = indices.dim(1)?;
    let indices = indices
        .unsqueeze(2)?
        .broadcast_as((batch, count, channels))?
        .contiguous()?;
    xs.contiguous()?.gather(&indices, 1)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn selection_in_rounds_gives_the_same_indices() -> Result<()> {
        // all scores are different
        let score = |i: usize| (i * 7919 % 10_007) as f32;
        let scores: Vec<f32> = (0..3 * 1000).map(score).collect();
        let scores = Tensor::from_vec(scores, (3, 1000), &Device::Cpu)?;
        for count in [1, 30, 64] {
            let expected = top_indices(&scores, count)?.to_vec2::<u32>()?;
            for sort_length in [128, 999, 1000, 4096] {
                let rounds = top_indices_in_rounds(&scores, count, sort_length)?;
                assert_eq!(
                    rounds.to_vec2::<u32>()?,
                    expected,
                    "{count} of {sort_length}"
                );
            }
        }
        assert!(top_indices_in_rounds(&scores, 128, 100).is_err());
        Ok(())
    }
}
