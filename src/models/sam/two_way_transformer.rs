//! The two-way transformer: prompt tokens and image tokens attend to each other.

use candle_core::{Module, Result, Tensor};
use candle_nn::{Activation, Linear, VarBuilder};

use super::config::MaskDecoderConfig;
use crate::models::layers::{LayerNorm, MultiheadAttention, layer_norm};

/// `SamTwoWayTransformer`.
#[derive(Debug, Clone)]
pub struct TwoWayTransformer {
    layers: Vec<TwoWayBlock>,
    final_attention: MultiheadAttention,
    final_norm: LayerNorm,
}

impl TwoWayTransformer {
    /// Loads `layers.{i}`, `final_attn_token_to_image` and `layer_norm_final_attn`.
    pub fn load(vb: VarBuilder, config: &MaskDecoderConfig) -> Result<Self> {
        let layers = (0..config.num_hidden_layers)
            .map(|i| TwoWayBlock::load(vb.pp("layers").pp(i), config, i == 0))
            .collect::<Result<_>>()?;
        let rate = config.attention_downsample_rate;
        Ok(Self {
            layers,
            final_attention: attention(vb.pp("final_attn_token_to_image"), config, rate)?,
            final_norm: layer_norm(config.hidden_size, 1e-5, vb.pp("layer_norm_final_attn"))?,
        })
    }

    /// Tokens `[K, T, C]`, image `[K, N, C]` and its positions `[1, N, C]`; to the tokens and the
    /// image, same shapes.
    pub fn forward(
        &self,
        tokens: &Tensor,
        image: &Tensor,
        image_positions: &Tensor,
    ) -> Result<(Tensor, Tensor)> {
        let (mut queries, mut keys) = (tokens.clone(), image.clone());
        for layer in &self.layers {
            (queries, keys) = layer.forward(&queries, &keys, tokens, image_positions)?;
        }
        let query = (&queries + tokens)?;
        let key = keys.broadcast_add(image_positions)?;
        let attended = self.final_attention.forward(&query, &key, &keys, None)?;
        let queries = self.final_norm.forward(&(queries + attended)?)?;
        Ok((queries, keys))
    }
}

/// How much narrower the blocks' cross attention is; the configuration's `attention_downsample_rate`
/// reaches only the final attention, in the reference as here.
const BLOCK_RATE: usize = 2;

/// `SamTwoWayAttentionBlock`.
#[derive(Debug, Clone)]
struct TwoWayBlock {
    self_attention: MultiheadAttention,
    norm1: LayerNorm,
    token_to_image: MultiheadAttention,
    norm2: LayerNorm,
    lin1: Linear,
    activation: Activation,
    lin2: Linear,
    norm3: LayerNorm,
    image_to_token: MultiheadAttention,
    norm4: LayerNorm,
    /// The first block's self-attention takes the tokens as they are and replaces them.
    is_first: bool,
}

impl TwoWayBlock {
    fn load(vb: VarBuilder, config: &MaskDecoderConfig, is_first: bool) -> Result<Self> {
        let width = config.hidden_size;
        let norm = |name: &str| layer_norm(width, config.layer_norm_eps, vb.pp(name));
        Ok(Self {
            self_attention: attention(vb.pp("self_attn"), config, 1)?,
            norm1: norm("layer_norm1")?,
            token_to_image: attention(vb.pp("cross_attn_token_to_image"), config, BLOCK_RATE)?,
            norm2: norm("layer_norm2")?,
            lin1: candle_nn::linear(width, config.mlp_dim, vb.pp("mlp.lin1"))?,
            activation: config.hidden_act,
            lin2: candle_nn::linear(config.mlp_dim, width, vb.pp("mlp.lin2"))?,
            norm3: norm("layer_norm3")?,
            image_to_token: attention(vb.pp("cross_attn_image_to_token"), config, BLOCK_RATE)?,
            norm4: norm("layer_norm4")?,
            is_first,
        })
    }

    fn forward(
        &self,
        queries: &Tensor,
        keys: &Tensor,
        token_positions: &Tensor,
        image_positions: &Tensor,
    ) -> Result<(Tensor, Tensor)> {
        let queries = if self.is_first {
            self.self_attention
                .forward(queries, queries, queries, None)?
        } else {
            let query = (queries + token_positions)?;
            (queries + self.self_attention.forward(&query, &query, queries, None)?)?
        };
        let queries = self.norm1.forward(&queries)?;

        let key = keys.broadcast_add(image_positions)?;
        let query = (&queries + token_positions)?;
        let attended = self.token_to_image.forward(&query, &key, keys, None)?;
        let queries = self.norm2.forward(&(queries + attended)?)?;

        let widened = queries.apply(&self.lin1)?.apply(&self.activation)?;
        let output = widened.apply(&self.lin2)?;
        let queries = self.norm3.forward(&(queries + output)?)?;

        let query = (&queries + token_positions)?;
        let attended = self.image_to_token.forward(&key, &query, &queries, None)?;
        let keys = self.norm4.forward(&(keys + attended)?)?;
        Ok((queries, keys))
    }
}

/// `SamAttention`: inside, the width is divided by `rate`.
fn attention(
    vb: VarBuilder,
    config: &MaskDecoderConfig,
    rate: usize,
) -> Result<MultiheadAttention> {
    let width = config.hidden_size;
    let inner = width / rate;
    Ok(MultiheadAttention::new(
        candle_nn::linear(width, inner, vb.pp("q_proj"))?,
        candle_nn::linear(width, inner, vb.pp("k_proj"))?,
        candle_nn::linear(width, inner, vb.pp("v_proj"))?,
        candle_nn::linear(inner, width, vb.pp("out_proj"))?,
        config.num_attention_heads,
    ))
}
