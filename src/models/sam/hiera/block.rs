//! The transformer block of Hiera.

use candle_core::{Module, Result, Tensor};
use candle_nn::VarBuilder;

use super::config::BackboneConfig;
use crate::models::layers::{LayerNorm, Linear, Mlp, layer_norm, linear};
use crate::models::ops::{Windows, max_pool2x2, pooled_window_attention, window_attention};

/// `Sam2MultiScaleBlock`. The first block of a stage widens the tokens, and halves the map: each window's queries are
/// pooled two by two, its keys and values are not.
#[derive(Debug, Clone)]
pub(super) struct Block {
    norm1: LayerNorm,
    qkv: Linear,
    /// `[3 C]`: the projection of a zero token, which pads the last windows.
    padding_token: Tensor,
    attention_proj: Linear,
    heads: usize,
    /// Rows, and columns, of a window; `None` if the whole map is one window.
    window: Option<usize>,
    pools_queries: bool,
    /// Widens the residual in the first block of a stage.
    widen: Option<Linear>,
    norm2: LayerNorm,
    feed_forward: Mlp,
}

impl Block {
    /// Loads block `index` of a stage: `layer_norm1`, `attn`, `layer_norm2`, `mlp` and, if its width changes, `proj`.
    pub(super) fn load(
        vb: VarBuilder,
        config: &BackboneConfig,
        (stage, index): (usize, usize),
        is_global: bool,
    ) -> Result<Self> {
        // the first block of a stage still has the windows of the stage before
        let changes_stage = stage > 0 && index == 0;
        let before = if changes_stage { stage - 1 } else { stage };
        let input = config.embed_dim_per_stage[before];
        let width = config.embed_dim_per_stage[stage];
        let qkv = linear(input, 3 * width, vb.pp("attn.qkv"))?;
        let zeros = Tensor::zeros((1, input), vb.dtype(), vb.device())?;
        let hidden = (config.mlp_ratio * width as f64) as usize;
        let widens = input != width;
        Ok(Self {
            norm1: layer_norm(input, config.layer_norm_eps, vb.pp("layer_norm1"))?,
            padding_token: qkv.forward(&zeros)?.squeeze(0)?,
            qkv,
            attention_proj: linear(width, width, vb.pp("attn.proj"))?,
            heads: config.num_attention_heads_per_stage[stage],
            window: (!is_global).then_some(config.window_size_per_stage[before]),
            pools_queries: changes_stage && stage <= config.num_query_pool_stages,
            widen: widens
                .then(|| linear(input, width, vb.pp("proj")))
                .transpose()?,
            norm2: layer_norm(width, config.layer_norm_eps, vb.pp("layer_norm2"))?,
            feed_forward: Mlp::new(
                vec![
                    linear(width, hidden, vb.pp("mlp.proj_in"))?,
                    linear(hidden, width, vb.pp("mlp.proj_out"))?,
                ],
                config.hidden_act,
            ),
        })
    }

    /// `[B, H, W, C]` to the same shape, or to `[B, H / 2, W / 2, width]` in the first block of a stage.
    pub(super) fn forward(&self, hidden_states: &Tensor) -> Result<Tensor> {
        let normed = self.norm1.forward(hidden_states)?;
        let residual = match &self.widen {
            Some(widen) if self.pools_queries => max_pool2x2(&normed.apply(widen)?)?,
            Some(widen) => normed.apply(widen)?,
            None => hidden_states.clone(),
        };
        let attended = self.attend(&normed)?;
        let hidden_states = self.attention_proj.forward_added(&attended, &residual)?;
        let normed = self.norm2.forward(&hidden_states)?;
        self.feed_forward.forward_added(&normed, &hidden_states)
    }

    /// `Sam2MultiScaleAttention` without its output projection.
    fn attend(&self, normed: &Tensor) -> Result<Tensor> {
        let (batch, height, width, _) = normed.dims4()?;
        let windows = Windows {
            batch,
            height,
            width,
            window_height: self.window.unwrap_or(height),
            window_width: self.window.unwrap_or(width),
            shift: 0,
        };
        let qkv = normed.apply(&self.qkv)?;
        let (padding, heads) = (&self.padding_token, self.heads);
        if !self.pools_queries {
            return window_attention(&qkv, padding, heads, windows, None);
        }
        let channels = qkv.dim(3)? / 3;
        let query = max_pool2x2(&qkv.narrow(3, 0, channels)?)?;
        pooled_window_attention(&query, &qkv, padding, heads, windows)
    }
}
