//! Self-attention among the text tokens of each phrase, as part of the encoder.

use candle_core::{Module, Result, Tensor};
use candle_nn::VarBuilder;

use super::config::Config;
use super::multihead_attention;
use crate::models::layers::{LayerNorm, Mlp, MultiheadAttention, layer_norm, linear};

/// `GroundingDinoTextEnhancerLayer`.
#[derive(Debug, Clone)]
pub struct TextEnhancerLayer {
    self_attn: MultiheadAttention,
    norm_before: LayerNorm,
    feed_forward: Mlp,
    norm_after: LayerNorm,
}

impl TextEnhancerLayer {
    /// Loads `self_attn`, `fc1`, `fc2`, `layer_norm_before`, `layer_norm_after`.
    pub fn load(vb: VarBuilder, config: &Config) -> Result<Self> {
        let (d, eps) = (config.d_model, config.layer_norm_eps);
        let heads = config.encoder_attention_heads / 2;
        let width = config.encoder_ffn_dim / 2;
        Ok(Self {
            self_attn: multihead_attention(vb.pp("self_attn"), d, heads)?,
            norm_before: layer_norm(d, eps, vb.pp("layer_norm_before"))?,
            feed_forward: Mlp::new(
                vec![
                    linear(d, width, vb.pp("fc1"))?,
                    linear(width, d, vb.pp("fc2"))?,
                ],
                config.activation_function,
            ),
            norm_after: layer_norm(d, eps, vb.pp("layer_norm_after"))?,
        })
    }

    /// Text `[B, T, d]`, its sine positions `[B, T, d]`, and the additive phrase mask `[B, 1, T, T]`, to `[B, T, d]`.
    pub fn forward(&self, text: &Tensor, positions: &Tensor, bias: &Tensor) -> Result<Tensor> {
        let _span = tracing::debug_span!("text_enhancer").entered();
        let queries = (text + positions)?;
        let attended = self
            .self_attn
            .forward_added(&queries, &queries, text, Some(bias), text)?;
        let text = self.norm_before.forward(&attended)?;
        self.norm_after
            .forward(&self.feed_forward.forward_added(&text, &text)?)
    }
}
