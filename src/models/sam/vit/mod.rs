//! SAM's image encoder: a plain vision transformer with windowed and global attention and decomposed relative
//! positions (Li et al. 2022, <https://arxiv.org/abs/2203.16527>).

mod config;

use candle_core::{Module, Result, Tensor};
use candle_nn::VarBuilder;

pub use self::config::Config;
use super::image_encoder::ImageMaps;
use super::neck::Neck;
use crate::models::layers::{LayerNorm, Linear, Mlp, PatchEmbedding, layer_norm, linear, linear_b};
use crate::models::ops::{PositionBias, Windows, window_attention};

/// `SamVisionEncoder`.
#[derive(Debug, Clone)]
pub struct Vit {
    patch_embed: PatchEmbedding,
    /// `[1, G, G, hidden]`.
    pos_embed: Option<Tensor>,
    layers: Vec<Layer>,
    neck: Neck,
    image_size: usize,
    /// Index of the first layer with global attention.
    first_global: Option<usize>,
}

impl Vit {
    /// Loads `patch_embed`, `pos_embed`, `layers.{i}` and `neck`.
    pub fn load(vb: VarBuilder, config: &Config) -> Result<Self> {
        let (grid, hidden) = (config.grid(), config.hidden_size);
        let pos_embed = if config.use_abs_pos {
            Some(vb.get((1, grid, grid, hidden), "pos_embed")?)
        } else {
            None
        };
        let is_global =
            |i: &usize| config.global_attn_indexes.contains(i) || config.window_size == 0;
        let layers = (0..config.num_hidden_layers)
            .map(|i| {
                let window = (!is_global(&i)).then_some(config.window_size);
                Layer::load(vb.pp("layers").pp(i), config, window)
            })
            .collect::<Result<_>>()?;
        Ok(Self {
            patch_embed: PatchEmbedding::load(
                config.num_channels,
                hidden,
                config.patch_size,
                vb.pp("patch_embed.projection"),
            )?,
            pos_embed,
            layers,
            neck: Neck::load(hidden, config.output_channels, vb.pp("neck"))?,
            image_size: config.image_size,
            first_global: (0..config.num_hidden_layers).find(is_global),
        })
    }

    /// Number of rows, and of columns, of the input pixels.
    pub(super) fn image_size(&self) -> usize {
        self.image_size
    }

    /// Normalised, zero-padded pixels `[B, 3, S, S]`, where `S` is the model's image size, to the image embeddings
    /// `[B, C, G, G]` and the output `[B, G, G, hidden]` of the first layer with global attention.
    pub fn forward(&self, pixel_values: &Tensor) -> Result<ImageMaps> {
        let mut hidden_states = self.patch_embed.forward(pixel_values)?;
        if let Some(positions) = &self.pos_embed {
            hidden_states = hidden_states.broadcast_add(positions)?;
        }
        let mut details = vec![];
        for (i, layer) in self.layers.iter().enumerate() {
            hidden_states = layer.forward(&hidden_states)?;
            if self.first_global == Some(i) {
                details.push(hidden_states.clone());
            }
        }
        Ok(ImageMaps {
            embeddings: self.neck.forward(&hidden_states)?,
            details,
        })
    }
}

/// `SamVisionLayer`.
#[derive(Debug, Clone)]
struct Layer {
    norm1: LayerNorm,
    attention: Attention,
    norm2: LayerNorm,
    feed_forward: Mlp,
}

impl Layer {
    fn load(vb: VarBuilder, config: &Config, window: Option<usize>) -> Result<Self> {
        let (hidden, eps) = (config.hidden_size, config.layer_norm_eps);
        let width = config
            .mlp_dim
            .unwrap_or((hidden as f64 * config.mlp_ratio) as usize);
        let extent = window.unwrap_or(config.grid());
        Ok(Self {
            norm1: layer_norm(hidden, eps, vb.pp("layer_norm1"))?,
            attention: Attention::load(vb.pp("attn"), config, extent)?,
            norm2: layer_norm(hidden, eps, vb.pp("layer_norm2"))?,
            feed_forward: Mlp::new(
                vec![
                    linear(hidden, width, vb.pp("mlp.lin1"))?,
                    linear(width, hidden, vb.pp("mlp.lin2"))?,
                ],
                config.hidden_act,
            ),
        })
    }

    /// `[B, G, G, hidden]` to the same shape.
    fn forward(&self, hidden_states: &Tensor) -> Result<Tensor> {
        let normed = self.norm1.forward(hidden_states)?;
        let hidden_states = self.attention.forward_added(&normed, hidden_states)?;
        let normed = self.norm2.forward(&hidden_states)?;
        self.feed_forward.forward_added(&normed, &hidden_states)
    }
}

/// `SamVisionAttention` in square windows of `extent` rows. In global attention, the whole map is one window.
#[derive(Debug, Clone)]
struct Attention {
    qkv: Linear,
    /// `[3 hidden]`: the projection of a zero token, which pads the last windows.
    padding_token: Tensor,
    proj: Linear,
    position_bias: Option<PositionBias>,
    heads: usize,
    extent: usize,
}

impl Attention {
    fn load(vb: VarBuilder, config: &Config, extent: usize) -> Result<Self> {
        let (hidden, heads) = (config.hidden_size, config.num_attention_heads);
        let position_bias = if config.use_rel_pos {
            // [extent, extent, D], by query and key position
            let table = |name: &str| -> Result<Tensor> {
                let table = vb.get((2 * extent - 1, hidden / heads), name)?;
                let index: Vec<u32> = (0..extent * extent)
                    .map(|i| (i / extent + extent - 1 - i % extent) as u32)
                    .collect();
                let index = Tensor::new(index, vb.device())?;
                table
                    .index_select(&index, 0)?
                    .reshape((extent, extent, hidden / heads))
            };
            let (by_row, by_column) = (table("rel_pos_h")?, table("rel_pos_w")?);
            Some(PositionBias::relative(by_row, by_column)?)
        } else {
            None
        };
        let qkv = linear_b(hidden, 3 * hidden, config.qkv_bias, vb.pp("qkv"))?;
        let zeros = Tensor::zeros((1, hidden), vb.dtype(), vb.device())?;
        Ok(Self {
            padding_token: qkv.forward(&zeros)?.squeeze(0)?,
            qkv,
            proj: linear(hidden, hidden, vb.pp("proj"))?,
            position_bias,
            heads,
            extent,
        })
    }

    /// A map `[B, H, W, hidden]` to `residual`, which has the same shape, plus the result.
    fn forward_added(&self, map: &Tensor, residual: &Tensor) -> Result<Tensor> {
        let (batch, height, width, _) = map.dims4()?;
        let windows = Windows {
            batch,
            height,
            width,
            window_height: self.extent,
            window_width: self.extent,
            shift: 0,
        };
        let qkv = map.apply(&self.qkv)?;
        let bias = self.position_bias.as_ref();
        let attended = window_attention(&qkv, &self.padding_token, self.heads, windows, bias)?;
        self.proj.forward_added(&attended, residual)
    }
}
