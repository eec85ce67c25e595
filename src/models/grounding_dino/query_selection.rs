//! The first stage: which of the encoder's tokens become the decoder's queries.

use candle_core::{D, DType, Module, Result, Tensor};
use candle_nn::{Linear, VarBuilder};

use super::config::Config;
use super::contrastive_logits;
use super::pyramid::Pyramid;
use crate::models::layers::{LayerNorm, Mlp, layer_norm};

/// Language-guided query selection: `enc_output`, the class scores and the box head of
/// `GroundingDinoModel`'s two-stage part.
#[derive(Debug, Clone)]
pub struct QuerySelection {
    enc_output: Linear,
    enc_output_norm: LayerNorm,
    bbox_embed: Mlp,
    num_queries: usize,
}

/// What is chosen from.
#[derive(Debug, Clone)]
pub struct Candidates {
    /// `[B, N]`: how well each token fits the text token that it fits best.
    pub scores: Tensor,
    /// `[B, N, d]`: the tokens' features.
    object_queries: Tensor,
    /// `[B, N, 4]`: a box for each, as logits of cxcywh.
    proposals: Tensor,
}

/// The chosen queries.
#[derive(Debug, Clone)]
pub struct Proposals {
    /// `[B, Q]`, u32: the chosen tokens, the best first.
    pub indices: Tensor,
    /// `[B, Q, d]`: their features.
    pub object_queries: Tensor,
    /// `[B, Q, 4]`: their boxes as logits of cxcywh, 0..1 of the valid area once squashed.
    pub coord_logits: Tensor,
}

impl QuerySelection {
    /// Loads `enc_output`, `enc_output_norm` and `encoder_output_bbox_embed`.
    pub fn load(vb: VarBuilder, config: &Config) -> Result<Self> {
        let d = config.d_model;
        Ok(Self {
            enc_output: candle_nn::linear(d, d, vb.pp("enc_output"))?,
            enc_output_norm: layer_norm(d, config.layer_norm_eps, vb.pp("enc_output_norm"))?,
            bbox_embed: Mlp::load(&[d, d, d, 4], vb.pp("encoder_output_bbox_embed"))?,
            num_queries: config.num_queries,
        })
    }

    /// The encoder's image tokens `[B, N, d]` and text `[B, T, d]` with its padding bias
    /// `[B, 1, T]`, to the best `Q` tokens: `num_queries`, or all where a small image has fewer.
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
        self.choose(&candidates, indices)
    }

    /// Scores every token, with the inputs of [`Self::forward`].
    pub fn candidates(
        &self,
        vision: &Tensor,
        text: &Tensor,
        text_bias: &Tensor,
        pyramid: &Pyramid,
    ) -> Result<Candidates> {
        let (proposals, useful) = pyramid.proposals(vision.device())?;
        let object_queries = self.object_queries(vision, &useful)?;
        let logits = contrastive_logits(&object_queries, text, text_bias)?;
        Ok(Candidates {
            scores: logits.max(D::Minus1)?.to_dtype(DType::F32)?,
            object_queries,
            proposals,
        })
    }

    /// The queries of these tokens, `[B, Q]`.
    pub fn choose(&self, candidates: &Candidates, indices: Tensor) -> Result<Proposals> {
        let object_queries = gather_tokens(&candidates.object_queries, &indices)?;
        // the box head runs on the chosen tokens only; the reference runs it on all and then chooses
        let offsets = self.bbox_embed.forward(&object_queries)?;
        let proposals = gather_tokens(&candidates.proposals, &indices)?;
        Ok(Proposals {
            coord_logits: (offsets.to_dtype(DType::F32)? + proposals)?,
            indices,
            object_queries,
        })
    }

    /// `[B, N, d]`: tokens whose proposal is of no use are zeroed, then all are projected and normed.
    fn object_queries(&self, vision: &Tensor, useful: &Tensor) -> Result<Tensor> {
        let vision = vision.broadcast_mul(&useful.to_dtype(vision.dtype())?)?;
        self.enc_output_norm
            .forward(&vision.apply(&self.enc_output)?)
    }
}

/// `[B, N]` to the indices of each row's largest `count` values, `[B, min(count, N)]`, the largest
/// first; of equal ones the earlier.
fn top_indices(scores: &Tensor, count: usize) -> Result<Tensor> {
    let (batch, tokens) = scores.dims2()?;
    let count = count.min(tokens);
    let mut chosen = Vec::with_capacity(batch * count);
    for row in scores.to_vec2::<f32>()? {
        let mut order: Vec<u32> = (0..tokens as u32).collect();
        order.sort_by(|a, b| row[*b as usize].total_cmp(&row[*a as usize]));
        chosen.extend_from_slice(&order[..count]);
    }
    Tensor::from_vec(chosen, (batch, count), scores.device())
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
