//! Image-text fusion: both modalities attend to each other at once (GLIP's bi-directional attention).

use candle_core::{D, DType, Module, Result, Tensor};
use candle_nn::{Linear, VarBuilder};

use super::config::Config;
use crate::models::layers::{LayerNorm, layer_norm, merge_heads, split_heads};

/// `GroundingDinoFusionLayer` with its `GroundingDinoBiMultiHeadAttention`.
#[derive(Debug, Clone)]
pub struct FusionLayer {
    norm_vision: LayerNorm,
    norm_text: LayerNorm,
    vision_proj: Linear,
    text_proj: Linear,
    values_vision_proj: Linear,
    values_text_proj: Linear,
    out_vision_proj: Linear,
    out_text_proj: Linear,
    /// `[d]`: the layer scale of each modality's residual.
    vision_param: Tensor,
    text_param: Tensor,
    heads: usize,
}

impl FusionLayer {
    /// Loads `layer_norm_*`, `attn.*`, `vision_param` and `text_param`.
    pub fn load(vb: VarBuilder, config: &Config) -> Result<Self> {
        let d = config.d_model;
        let eps = config.layer_norm_eps;
        let width = config.encoder_ffn_dim / 2;
        let vb_a = vb.pp("attn");
        Ok(Self {
            norm_vision: layer_norm(d, eps, vb.pp("layer_norm_vision"))?,
            norm_text: layer_norm(d, eps, vb.pp("layer_norm_text"))?,
            vision_proj: candle_nn::linear(d, width, vb_a.pp("vision_proj"))?,
            text_proj: candle_nn::linear(d, width, vb_a.pp("text_proj"))?,
            values_vision_proj: candle_nn::linear(d, width, vb_a.pp("values_vision_proj"))?,
            values_text_proj: candle_nn::linear(d, width, vb_a.pp("values_text_proj"))?,
            out_vision_proj: candle_nn::linear(width, d, vb_a.pp("out_vision_proj"))?,
            out_text_proj: candle_nn::linear(width, d, vb_a.pp("out_text_proj"))?,
            vision_param: vb.get(d, "vision_param")?,
            text_param: vb.get(d, "text_param")?,
            heads: config.encoder_attention_heads / 2,
        })
    }

    /// Image tokens `[B, N, d]`, text tokens `[B, T, d]`, `token_mask` `[B, N]` (1 image, 0 padding),
    /// `text_bias` `[B, 1, T]` (0, or very negative for padding); to the same two shapes.
    pub fn forward(
        &self,
        vision: &Tensor,
        text: &Tensor,
        token_mask: Option<&Tensor>,
        text_bias: &Tensor,
    ) -> Result<(Tensor, Tensor)> {
        let _span = tracing::debug_span!("fusion").entered();
        // the residual starts at the normed features, not at the layer's input
        let vision = self.norm_vision.forward(vision)?;
        let text = self.norm_text.forward(text)?;
        let query = split_heads(&vision.apply(&self.vision_proj)?, self.heads)?;
        let key = split_heads(&text.apply(&self.text_proj)?, self.heads)?;
        let vision_value = split_heads(&vision.apply(&self.values_vision_proj)?, self.heads)?;
        let text_value = split_heads(&text.apply(&self.values_text_proj)?, self.heads)?;

        let scale = 1.0 / (query.dim(D::Minus1)? as f64).sqrt();
        // [B, heads, N, T]
        let scores = (query * scale)?.matmul(&key.transpose(2, 3)?)?;
        let to_text = scores.broadcast_add(&text_bias.unsqueeze(1)?)?;
        let to_text = candle_nn::ops::softmax_last_dim(&to_text)?;
        let to_vision = scores.transpose(2, 3)?.contiguous()?;
        let to_vision = match token_mask {
            Some(mask) => to_vision.broadcast_add(&padding_bias(mask, to_vision.dtype())?)?,
            None => to_vision,
        };
        let to_vision = candle_nn::ops::softmax_last_dim(&to_vision)?;

        let vision_delta = merge_heads(&to_text.matmul(&text_value)?)?;
        let vision_delta = vision_delta.apply(&self.out_vision_proj)?;
        let text_delta = merge_heads(&to_vision.matmul(&vision_value)?)?;
        let text_delta = text_delta.apply(&self.out_text_proj)?;
        Ok((
            (vision + vision_delta.broadcast_mul(&self.vision_param)?)?,
            (text + text_delta.broadcast_mul(&self.text_param)?)?,
        ))
    }
}

/// `[B, N]` of 1 and 0 to `[B, 1, 1, N]` of 0 and the lowest finite value.
fn padding_bias(token_mask: &Tensor, dtype: DType) -> Result<Tensor> {
    ((1.0 - token_mask)? * f64::from(f32::MIN))?
        .unsqueeze(1)?
        .unsqueeze(1)?
        .to_dtype(dtype)
}
