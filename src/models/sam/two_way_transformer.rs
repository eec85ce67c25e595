//! The two-way transformer: prompt tokens and image tokens attend to each other.

use candle_core::{Module, Result, Tensor};
use candle_nn::VarBuilder;

use super::config::MaskDecoderConfig;
use crate::models::layers::{LayerNorm, Linear, Mlp, MultiheadAttention, layer_norm, linear};

/// `SamTwoWayTransformer`.
#[derive(Debug, Clone)]
pub struct TwoWayTransformer {
    layers: Vec<TwoWayBlock>,
    final_attention: MultiheadAttention,
    final_key: ImageProjection,
    final_norm: LayerNorm,
}

impl TwoWayTransformer {
    /// Loads `layers.{i}`, `final_attn_token_to_image` and `layer_norm_final_attn`. `image_positions` are
    /// `[1, N, C]`.
    pub fn load(
        vb: VarBuilder,
        config: &MaskDecoderConfig,
        image_positions: &Tensor,
    ) -> Result<Self> {
        let layers = (0..config.num_hidden_layers)
            .map(|i| TwoWayBlock::load(vb.pp("layers").pp(i), config, image_positions, i == 0))
            .collect::<Result<_>>()?;
        let rate = config.attention_downsample_rate;
        let final_attention = attention(vb.pp("final_attn_token_to_image"), config, rate)?;
        Ok(Self {
            layers,
            final_key: ImageProjection::new(final_attention.key(), image_positions)?,
            final_attention,
            final_norm: layer_norm(
                config.hidden_size,
                config.final_norm_eps,
                vb.pp("layer_norm_final_attn"),
            )?,
        })
    }

    /// Tokens `[K, T, C]` and image `[K, N, C]`, to tokens and image in the same shapes. An image `[1, N, C]` is
    /// shared by all `K` prompts, which saves most of the first block's work.
    pub fn forward(&self, tokens: &Tensor, image: &Tensor) -> Result<(Tensor, Tensor)> {
        let (mut queries, mut keys) = (tokens.clone(), image.clone());
        for layer in &self.layers {
            (queries, keys) = layer.forward(&queries, &keys, tokens)?;
        }
        let query = (&queries + tokens)?;
        let query = query.apply(self.final_attention.query())?;
        let key = self.final_key.forward(&keys)?;
        let attended = self
            .final_attention
            .forward_projected(&query, &key, &keys, &queries)?;
        Ok((self.final_norm.forward(&attended)?, keys))
    }
}

/// `SamTwoWayAttentionBlock`.
#[derive(Debug, Clone)]
struct TwoWayBlock {
    self_attention: MultiheadAttention,
    norm1: LayerNorm,
    token_to_image: MultiheadAttention,
    image_key: ImageProjection,
    norm2: LayerNorm,
    feed_forward: Mlp,
    norm3: LayerNorm,
    image_to_token: MultiheadAttention,
    image_query: ImageProjection,
    norm4: LayerNorm,
    /// The first block's self-attention uses the tokens without positions, and has no residual connection.
    is_first: bool,
}

impl TwoWayBlock {
    fn load(
        vb: VarBuilder,
        config: &MaskDecoderConfig,
        image_positions: &Tensor,
        is_first: bool,
    ) -> Result<Self> {
        let width = config.hidden_size;
        let rate = config.block_downsample_rate;
        let token_to_image = attention(vb.pp("cross_attn_token_to_image"), config, rate)?;
        let image_to_token = attention(vb.pp("cross_attn_image_to_token"), config, rate)?;
        let norm = |name: &str| layer_norm(width, config.layer_norm_eps, vb.pp(name));
        Ok(Self {
            self_attention: attention(vb.pp("self_attn"), config, 1)?,
            norm1: norm("layer_norm1")?,
            image_key: ImageProjection::new(token_to_image.key(), image_positions)?,
            token_to_image,
            norm2: norm("layer_norm2")?,
            feed_forward: Mlp::new(
                vec![
                    linear(width, config.mlp_dim, vb.pp("mlp.lin1"))?,
                    linear(config.mlp_dim, width, vb.pp("mlp.lin2"))?,
                ],
                config.hidden_act,
            ),
            norm3: norm("layer_norm3")?,
            image_query: ImageProjection::new(image_to_token.query(), image_positions)?,
            image_to_token,
            norm4: norm("layer_norm4")?,
            is_first,
        })
    }

    fn forward(
        &self,
        queries: &Tensor,
        keys: &Tensor,
        token_positions: &Tensor,
    ) -> Result<(Tensor, Tensor)> {
        let queries = if self.is_first {
            self.self_attention
                .forward(queries, queries, queries, None)?
        } else {
            let query = (queries + token_positions)?;
            self.self_attention
                .forward_added(&query, &query, queries, None, queries)?
        };
        let queries = self.norm1.forward(&queries)?;

        let attention = &self.token_to_image;
        let query = (&queries + token_positions)?.apply(attention.query())?;
        let key = self.image_key.forward(keys)?;
        let attended = attention.forward_projected(&query, &key, keys, &queries)?;
        let queries = self.norm2.forward(&attended)?;

        let output = self.feed_forward.forward_added(&queries, &queries)?;
        let queries = self.norm3.forward(&output)?;

        // the image tokens are the queries here
        let attention = &self.image_to_token;
        let image_query = self.image_query.forward(keys)?;
        let token_key = (&queries + token_positions)?.apply(attention.key())?;
        let attended = attention.forward_projected(&image_query, &token_key, &queries, keys)?;
        Ok((queries, self.norm4.forward(&attended)?))
    }
}

/// A projection of the image with its positions added. The projection is linear, and the positions are the same for
/// all images, so the positions are projected once, when the model loads.
#[derive(Debug, Clone)]
struct ImageProjection {
    projection: Linear,
    /// `[1, N, inner]`: the projected positions, without a bias.
    positions: Tensor,
}

impl ImageProjection {
    /// `positions` are `[1, N, C]`.
    fn new(projection: &Linear, positions: &Tensor) -> Result<Self> {
        Ok(Self {
            projection: projection.clone(),
            positions: projection.without_bias(positions)?,
        })
    }

    /// `[K or 1, N, C]` to `[K or 1, N, inner]`.
    fn forward(&self, image: &Tensor) -> Result<Tensor> {
        self.projection.forward_added(image, &self.positions)
    }
}

/// `SamAttention` with its inner width divided by `rate`.
fn attention(
    vb: VarBuilder,
    config: &MaskDecoderConfig,
    rate: usize,
) -> Result<MultiheadAttention> {
    let width = config.hidden_size;
    let inner = width / rate;
    Ok(MultiheadAttention::new(
        linear(width, inner, vb.pp("q_proj"))?,
        linear(width, inner, vb.pp("k_proj"))?,
        linear(width, inner, vb.pp("v_proj"))?,
        linear(inner, width, vb.pp("out_proj"))?,
        config.num_attention_heads,
    ))
}
