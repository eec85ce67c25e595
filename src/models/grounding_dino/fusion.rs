//! Image-text fusion: both modalities attend to each other in one step (GLIP's bi-directional attention).

use candle_core::{Module, Result, Tensor};
use candle_nn::VarBuilder;

use super::config::Config;
use crate::models::layers::{LayerNorm, layer_norm};
use crate::models::ops::{FusionAttention, FusionProjections};

/// `GroundingDinoFusionLayer` with its `GroundingDinoBiMultiHeadAttention`.
#[derive(Debug, Clone)]
pub struct FusionLayer {
    norm_vision: LayerNorm,
    norm_text: LayerNorm,
    attention: FusionAttention,
}

impl FusionLayer {
    /// Loads `layer_norm_*`, `attn.*`, `vision_param` and `text_param`.
    pub fn load(vb: VarBuilder, config: &Config) -> Result<Self> {
        let d = config.d_model;
        let eps = config.layer_norm_eps;
        let width = config.encoder_ffn_dim / 2;
        let linear = |name: &str, input: usize, output: usize| -> Result<(Tensor, Tensor)> {
            let vb = vb.pp("attn").pp(name);
            Ok((vb.get((output, input), "weight")?, vb.get(output, "bias")?))
        };
        let projections = FusionProjections {
            vision_proj: linear("vision_proj", d, width)?,
            text_proj: linear("text_proj", d, width)?,
            values_vision_proj: linear("values_vision_proj", d, width)?,
            values_text_proj: linear("values_text_proj", d, width)?,
            out_vision_proj: linear("out_vision_proj", width, d)?,
            out_text_proj: linear("out_text_proj", width, d)?,
            vision_param: vb.get(d, "vision_param")?,
            text_param: vb.get(d, "text_param")?,
        };
        Ok(Self {
            norm_vision: layer_norm(d, eps, vb.pp("layer_norm_vision"))?,
            norm_text: layer_norm(d, eps, vb.pp("layer_norm_text"))?,
            attention: FusionAttention::new(&projections, config.encoder_attention_heads / 2)?,
        })
    }

    /// Image tokens `[B, N, d]`, text tokens `[B, T, d]`, `token_mask` `[B, N]` (1 image, 0 padding) and `text_bias`
    /// `[B, 1, T]` (0, or very negative for padding). Returns image and text tokens in the same shapes.
    pub fn forward(
        &self,
        vision: &Tensor,
        text: &Tensor,
        token_mask: Option<&Tensor>,
        text_bias: &Tensor,
    ) -> Result<(Tensor, Tensor)> {
        let _span = tracing::debug_span!("fusion").entered();
        // the residual starts from the normed features, not from the layer's input
        let vision = self.norm_vision.forward(vision)?;
        let text = self.norm_text.forward(text)?;
        self.attention
            .forward(&vision, &text, token_mask, text_bias)
    }
}
