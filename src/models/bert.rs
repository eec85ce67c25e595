//! BERT, the text encoder of Grounding DINO (Devlin et al. 2018, <https://arxiv.org/abs/1810.04805>).
//!
//! The position ids and the attention mask per pair of tokens are inputs, because in Grounding DINO the tokens of a
//! phrase attend only to each other.

use candle_core::{Module, Result, Tensor};
use candle_nn::{Activation, Embedding, VarBuilder};
use serde::Deserialize;

use super::layers::{LayerNorm, Mlp, MultiheadAttention, layer_norm, linear};
use super::weights::{DeriveConfigError, Weights};

/// `BertConfig`, with the reference's defaults.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default)]
#[allow(missing_docs)] // the reference's own field names
pub struct Config {
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    pub intermediate_size: usize,
    pub hidden_act: Activation,
    pub max_position_embeddings: usize,
    pub type_vocab_size: usize,
    pub layer_norm_eps: f64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            vocab_size: 30522,
            hidden_size: 768,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            intermediate_size: 3072,
            hidden_act: Activation::Gelu,
            max_position_embeddings: 512,
            type_vocab_size: 2,
            layer_norm_eps: 1e-12,
        }
    }
}

impl Config {
    /// Derives the configuration from the shapes of the tensors under `prefix`.
    ///
    /// # Errors
    /// If a tensor is missing or has another number of dimensions.
    pub fn from_weights(
        weights: &Weights,
        prefix: &str,
    ) -> std::result::Result<Self, DeriveConfigError> {
        let embeddings = |name: &str| -> std::result::Result<[usize; 2], DeriveConfigError> {
            weights.sizes(&format!("{prefix}.embeddings.{name}_embeddings.weight"))
        };
        let [vocab_size, hidden_size] = embeddings("word")?;
        let [max_position_embeddings, _] = embeddings("position")?;
        let [type_vocab_size, _] = embeddings("token_type")?;
        let intermediate = format!("{prefix}.encoder.layer.0.intermediate.dense.weight");
        let [intermediate_size, _] = weights.sizes(&intermediate)?;
        Ok(Self {
            vocab_size,
            hidden_size,
            num_hidden_layers: weights.count(&format!("{prefix}.encoder.layer")),
            // not visible in any shape; all published sizes of BERT have 64 channels per head
            num_attention_heads: (hidden_size / 64).max(1),
            intermediate_size,
            max_position_embeddings,
            type_vocab_size,
            ..Self::default()
        })
    }
}

/// `BertModel` without the pooler.
#[derive(Debug, Clone)]
pub struct Bert {
    word_embeddings: Embedding,
    position_embeddings: Embedding,
    token_type_embeddings: Embedding,
    norm: LayerNorm,
    layers: Vec<Layer>,
}

impl Bert {
    /// Loads `embeddings` and `encoder.layer.{i}`.
    pub fn load(vb: VarBuilder, config: &Config) -> Result<Self> {
        let hidden = config.hidden_size;
        let vb_e = vb.pp("embeddings");
        let layers = (0..config.num_hidden_layers)
            .map(|i| Layer::load(vb.pp("encoder.layer").pp(i), config))
            .collect::<Result<_>>()?;
        Ok(Self {
            word_embeddings: candle_nn::embedding(
                config.vocab_size,
                hidden,
                vb_e.pp("word_embeddings"),
            )?,
            position_embeddings: candle_nn::embedding(
                config.max_position_embeddings,
                hidden,
                vb_e.pp("position_embeddings"),
            )?,
            token_type_embeddings: candle_nn::embedding(
                config.type_vocab_size,
                hidden,
                vb_e.pp("token_type_embeddings"),
            )?,
            norm: layer_norm(hidden, config.layer_norm_eps, vb_e.pp("LayerNorm"))?,
            layers,
        })
    }

    /// Token ids, token types and position ids `[B, T]` (u32) and an additive attention bias `[B, 1, T, T]`, to the
    /// last hidden state `[B, T, hidden]`.
    pub fn forward(
        &self,
        input_ids: &Tensor,
        token_type_ids: &Tensor,
        position_ids: &Tensor,
        attention_bias: &Tensor,
    ) -> Result<Tensor> {
        let _span = tracing::debug_span!("bert").entered();
        let embeddings = (input_ids.apply(&self.word_embeddings)?
            + token_type_ids.apply(&self.token_type_embeddings)?)?;
        let embeddings = (embeddings + position_ids.apply(&self.position_embeddings)?)?;
        let mut hidden_states = self.norm.forward(&embeddings)?;
        for layer in &self.layers {
            hidden_states = layer.forward(&hidden_states, attention_bias)?;
        }
        Ok(hidden_states)
    }
}

/// `BertLayer`.
#[derive(Debug, Clone)]
struct Layer {
    attention: MultiheadAttention,
    attention_norm: LayerNorm,
    feed_forward: Mlp,
    output_norm: LayerNorm,
}

impl Layer {
    fn load(vb: VarBuilder, config: &Config) -> Result<Self> {
        let (hidden, eps) = (config.hidden_size, config.layer_norm_eps);
        let vb_s = vb.pp("attention.self");
        let attention = MultiheadAttention::new(
            linear(hidden, hidden, vb_s.pp("query"))?,
            linear(hidden, hidden, vb_s.pp("key"))?,
            linear(hidden, hidden, vb_s.pp("value"))?,
            linear(hidden, hidden, vb.pp("attention.output.dense"))?,
            config.num_attention_heads,
        );
        let width = config.intermediate_size;
        Ok(Self {
            attention,
            attention_norm: layer_norm(hidden, eps, vb.pp("attention.output.LayerNorm"))?,
            feed_forward: Mlp::new(
                vec![
                    linear(hidden, width, vb.pp("intermediate.dense"))?,
                    linear(width, hidden, vb.pp("output.dense"))?,
                ],
                config.hidden_act,
            ),
            output_norm: layer_norm(hidden, eps, vb.pp("output.LayerNorm"))?,
        })
    }

    fn forward(&self, hidden_states: &Tensor, bias: &Tensor) -> Result<Tensor> {
        let xs = hidden_states;
        let attended = self.attention.forward_added(xs, xs, xs, Some(bias), xs)?;
        let hidden_states = self.attention_norm.forward(&attended)?;
        let output = self
            .feed_forward
            .forward_added(&hidden_states, &hidden_states)?;
        self.output_norm.forward(&output)
    }
}
