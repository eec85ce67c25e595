//! The feature enhancer: fusion, text self-attention and deformable attention, layer by layer.

use candle_core::{DType, Module, Result, Tensor};
use candle_nn::VarBuilder;

use super::config::Config;
use super::deformable_attention::{DeformableAttention, Memory};
use super::fusion::FusionLayer;
use super::pyramid::{Pyramid, sine_embedding};
use super::text_enhancer::TextEnhancerLayer;
use super::text_mask::TextTokens;
use crate::models::layers::{LayerNorm, Mlp, layer_norm, linear};

/// The encoder's image input: the flattened feature maps and their geometry.
#[derive(Debug, Clone)]
pub struct VisionFeatures {
    /// `[B, N, d]`: the projected maps, one level after the other.
    pub hidden_states: Tensor,
    /// `[B, N, d]`: sine positions plus the level embedding.
    pub positions: Tensor,
    /// `[B, N]`: 1 for image, 0 for padding; `None` if there is no padding.
    pub token_mask: Option<Tensor>,
    /// The sizes of the maps and their valid parts.
    pub pyramid: Pyramid,
}

/// `GroundingDinoEncoder`.
#[derive(Debug, Clone)]
pub struct Encoder {
    layers: Vec<EncoderLayer>,
    d_model: usize,
}

impl Encoder {
    /// Loads `layers.{i}`.
    pub fn load(vb: VarBuilder, config: &Config) -> Result<Self> {
        let layers = (0..config.encoder_layers)
            .map(|i| EncoderLayer::load(vb.pp("layers").pp(i), config))
            .collect::<Result<_>>()?;
        Ok(Self {
            layers,
            d_model: config.d_model,
        })
    }

    /// Enhances the image features and the projected text `[B, T, d]`. Returns both: `[B, N, d]` and `[B, T, d]`.
    pub fn forward(
        &self,
        features: &VisionFeatures,
        text: &Tensor,
        tokens: &TextTokens,
    ) -> Result<(Tensor, Tensor)> {
        let _span = tracing::debug_span!("encoder").entered();
        let dtype = text.dtype();
        let positions = tokens.position_ids.to_dtype(DType::F32)?.unsqueeze(2)?;
        let text_geometry = TextGeometry {
            positions: sine_embedding(&positions, self.d_model, 10000.0)?.to_dtype(dtype)?,
            phrase_bias: tokens.phrase_bias.to_dtype(dtype)?,
            padding_bias: tokens.padding_bias(dtype)?,
        };
        let reference_points = features.pyramid.reference_points(text.device())?;
        let (mut vision, mut text) = (features.hidden_states.clone(), text.clone());
        for layer in &self.layers {
            (vision, text) =
                layer.forward(&vision, features, &reference_points, &text, &text_geometry)?;
        }
        Ok((vision, text))
    }
}

/// The positions and masks of the text, the same for every layer.
#[derive(Debug)]
struct TextGeometry {
    positions: Tensor,
    phrase_bias: Tensor,
    padding_bias: Tensor,
}

/// `GroundingDinoEncoderLayer`.
#[derive(Debug, Clone)]
struct EncoderLayer {
    fusion: FusionLayer,
    text_enhancer: TextEnhancerLayer,
    deformable: DeformableLayer,
}

impl EncoderLayer {
    fn load(vb: VarBuilder, config: &Config) -> Result<Self> {
        Ok(Self {
            fusion: FusionLayer::load(vb.pp("fusion_layer"), config)?,
            text_enhancer: TextEnhancerLayer::load(vb.pp("text_enhancer_layer"), config)?,
            deformable: DeformableLayer::load(vb.pp("deformable_layer"), config)?,
        })
    }

    fn forward(
        &self,
        vision: &Tensor,
        features: &VisionFeatures,
        reference_points: &Tensor,
        text: &Tensor,
        geometry: &TextGeometry,
    ) -> Result<(Tensor, Tensor)> {
        let mask = features.token_mask.as_ref();
        let (vision, text) = self
            .fusion
            .forward(vision, text, mask, &geometry.padding_bias)?;
        let text = self
            .text_enhancer
            .forward(&text, &geometry.positions, &geometry.phrase_bias)?;
        let vision = self
            .deformable
            .forward(&vision, features, reference_points)?;
        Ok((vision, text))
    }
}

/// `GroundingDinoDeformableLayer`.
#[derive(Debug, Clone)]
struct DeformableLayer {
    self_attn: DeformableAttention,
    attention_norm: LayerNorm,
    feed_forward: Mlp,
    final_norm: LayerNorm,
}

impl DeformableLayer {
    fn load(vb: VarBuilder, config: &Config) -> Result<Self> {
        let (d, eps) = (config.d_model, config.layer_norm_eps);
        let (heads, points) = (config.encoder_attention_heads, config.encoder_n_points);
        Ok(Self {
            self_attn: DeformableAttention::load(vb.pp("self_attn"), config, heads, points)?,
            attention_norm: layer_norm(d, eps, vb.pp("self_attn_layer_norm"))?,
            feed_forward: Mlp::new(
                vec![
                    linear(d, config.encoder_ffn_dim, vb.pp("fc1"))?,
                    linear(config.encoder_ffn_dim, d, vb.pp("fc2"))?,
                ],
                config.activation_function,
            ),
            final_norm: layer_norm(d, eps, vb.pp("final_layer_norm"))?,
        })
    }

    fn forward(
        &self,
        vision: &Tensor,
        features: &VisionFeatures,
        reference_points: &Tensor,
    ) -> Result<Tensor> {
        let memory = Memory {
            hidden_states: vision,
            token_mask: features.token_mask.as_ref(),
            pyramid: &features.pyramid,
        };
        let queries = (vision + &features.positions)?;
        let attended = self
            .self_attn
            .forward_added(&queries, reference_points, memory, vision)?;
        let vision = self.attention_norm.forward(&attended)?;
        self.final_norm
            .forward(&self.feed_forward.forward_added(&vision, &vision)?)
    }
}
