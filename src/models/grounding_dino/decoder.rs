//! The decoder: queries attend to each other, to the text and to the image, and refine their boxes layer by layer.

use candle_core::{DType, Module, Result, Tensor};
use candle_nn::VarBuilder;

use super::config::Config;
use super::deformable_attention::{DeformableAttention, Memory};
use super::multihead_attention;
use super::pyramid::sine_embedding;
use crate::models::layers::{LayerNorm, Mlp, MultiheadAttention, layer_norm, linear};

/// The encoder's output, as input of the decoder.
#[derive(Debug, Clone, Copy)]
pub struct DecoderInput<'a> {
    /// The image features.
    pub memory: Memory<'a>,
    /// `[B, T, d]`: the text features.
    pub text: &'a Tensor,
    /// `[B, 1, T]`: 0, or very negative for padding.
    pub text_bias: &'a Tensor,
}

/// The output of all decoder layers.
#[derive(Debug, Clone)]
pub struct DecoderOutput {
    /// For each layer, the normed hidden states `[B, Q, d]`.
    pub hidden_states: Vec<Tensor>,
    /// For each layer, the boxes `[B, Q, 4]` that the next layer gets: cxcywh in 0..1.
    pub reference_points: Vec<Tensor>,
}

/// `GroundingDinoDecoder`.
#[derive(Debug, Clone)]
pub struct Decoder {
    layers: Vec<DecoderLayer>,
    norm: LayerNorm,
    reference_points_head: Mlp,
    d_model: usize,
}

impl Decoder {
    /// Loads `layers.{i}`, `layer_norm` and `reference_points_head`.
    pub fn load(vb: VarBuilder, config: &Config) -> Result<Self> {
        let d = config.d_model;
        let layers = (0..config.decoder_layers)
            .map(|i| DecoderLayer::load(vb.pp("layers").pp(i), config))
            .collect::<Result<_>>()?;
        let position_width = config.query_dim / 2 * d;
        Ok(Self {
            layers,
            norm: layer_norm(d, config.layer_norm_eps, vb.pp("layer_norm"))?,
            reference_points_head: Mlp::load(
                &[position_width, d, d],
                vb.pp("reference_points_head"),
            )?,
            d_model: d,
        })
    }

    /// Refines queries `[B, Q, d]` and their initial boxes `[B, Q, 4]` (cxcywh, 0..1), with one box head per layer.
    pub fn forward(
        &self,
        queries: &Tensor,
        reference_points: &Tensor,
        input: DecoderInput,
        box_heads: &[Mlp],
    ) -> Result<DecoderOutput> {
        let _span = tracing::debug_span!("decoder").entered();
        let dtype = queries.dtype();
        let ratios = input.memory.pyramid.valid_ratios(queries.device())?;
        // [B, L, 2] -> [B, 1, L, 4]: boxes are relative to the image, but maps include padding
        let ratios = Tensor::cat(&[&ratios, &ratios], 2)?.unsqueeze(1)?;
        let mut hidden_states = queries.clone();
        let mut reference = reference_points.to_dtype(DType::F32)?;
        let mut output = DecoderOutput {
            hidden_states: vec![],
            reference_points: vec![],
        };
        for (layer, box_head) in self.layers.iter().zip(box_heads) {
            let per_level = reference.unsqueeze(2)?.broadcast_mul(&ratios)?;
            let positions = self.query_positions(&per_level.narrow(2, 0, 1)?.squeeze(2)?, dtype)?;
            hidden_states = layer.forward(&hidden_states, &positions, &per_level, input)?;
            let delta = box_head.forward(&hidden_states)?.to_dtype(DType::F32)?;
            reference = candle_nn::ops::sigmoid(&(delta + inverse_sigmoid(&reference)?)?)?;
            output
                .hidden_states
                .push(self.norm.forward(&hidden_states)?);
            output.reference_points.push(reference.clone());
        }
        Ok(output)
    }

    /// Boxes `[B, Q, 4]` to position embeddings `[B, Q, d]`; the order of the sines is y, x, width, height.
    fn query_positions(&self, boxes: &Tensor, dtype: DType) -> Result<Tensor> {
        let (x, y) = (boxes.narrow(2, 0, 1)?, boxes.narrow(2, 1, 1)?);
        let ordered = Tensor::cat(&[&y, &x, &boxes.narrow(2, 2, 2)?], 2)?.unsqueeze(3)?;
        let sines = sine_embedding(&ordered, self.d_model / 2, 10000.0)?.flatten_from(2)?;
        self.reference_points_head.forward(&sines.to_dtype(dtype)?)
    }
}

/// `torch.special.logit(x, eps=1e-5)`.
pub(super) fn inverse_sigmoid(xs: &Tensor) -> Result<Tensor> {
    let xs = xs.clamp(1e-5f32, 1.0 - 1e-5f32)?;
    (&xs / (1.0 - &xs)?)?.log()
}

/// `GroundingDinoDecoderLayer`.
#[derive(Debug, Clone)]
struct DecoderLayer {
    self_attn: MultiheadAttention,
    self_attn_norm: LayerNorm,
    text_attn: MultiheadAttention,
    text_attn_norm: LayerNorm,
    image_attn: DeformableAttention,
    image_attn_norm: LayerNorm,
    feed_forward: Mlp,
    final_norm: LayerNorm,
}

impl DecoderLayer {
    fn load(vb: VarBuilder, config: &Config) -> Result<Self> {
        let (d, eps) = (config.d_model, config.layer_norm_eps);
        let (heads, points) = (config.decoder_attention_heads, config.decoder_n_points);
        Ok(Self {
            self_attn: multihead_attention(vb.pp("self_attn"), d, heads)?,
            self_attn_norm: layer_norm(d, eps, vb.pp("self_attn_layer_norm"))?,
            text_attn: multihead_attention(vb.pp("encoder_attn_text"), d, heads)?,
            text_attn_norm: layer_norm(d, eps, vb.pp("encoder_attn_text_layer_norm"))?,
            image_attn: DeformableAttention::load(vb.pp("encoder_attn"), config, heads, points)?,
            image_attn_norm: layer_norm(d, eps, vb.pp("encoder_attn_layer_norm"))?,
            feed_forward: Mlp::new(
                vec![
                    linear(d, config.decoder_ffn_dim, vb.pp("fc1"))?,
                    linear(config.decoder_ffn_dim, d, vb.pp("fc2"))?,
                ],
                config.activation_function,
            ),
            final_norm: layer_norm(d, eps, vb.pp("final_layer_norm"))?,
        })
    }

    /// Queries and positions `[B, Q, d]` and boxes per level `[B, Q, L, 4]`, to `[B, Q, d]`.
    fn forward(
        &self,
        hidden_states: &Tensor,
        positions: &Tensor,
        reference_points: &Tensor,
        input: DecoderInput,
    ) -> Result<Tensor> {
        let xs = hidden_states;
        let queries = (xs + positions)?;
        let attended = self
            .self_attn
            .forward_added(&queries, &queries, xs, None, xs)?;
        let xs = self.self_attn_norm.forward(&attended)?;

        let queries = (&xs + positions)?;
        let (text, text_bias) = (input.text, input.text_bias.unsqueeze(1)?);
        let attended = self
            .text_attn
            .forward_added(&queries, text, text, Some(&text_bias), &xs)?;
        let xs = self.text_attn_norm.forward(&attended)?;

        let queries = (&xs + positions)?;
        let attended =
            self.image_attn
                .forward_added(&queries, reference_points, input.memory, &xs)?;
        let xs = self.image_attn_norm.forward(&attended)?;

        self.final_norm
            .forward(&self.feed_forward.forward_added(&xs, &xs)?)
    }
}
