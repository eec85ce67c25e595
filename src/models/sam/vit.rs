//! SAM's own image encoder: a plain vision transformer with windowed and global attention and decomposed
//! relative positions (Li et al. 2022, <https://arxiv.org/abs/2203.16527>).

use candle_core::{IndexOp, Module, Result, Tensor};
use candle_nn::{Activation, Linear, VarBuilder};

use super::config::VisionConfig;
use super::neck::Neck;
use crate::models::layers::{LayerNorm, PatchEmbedding, layer_norm};
use crate::models::windows::{merge_windows, partition_windows};

/// `SamVisionEncoder`.
#[derive(Debug, Clone)]
pub struct Vit {
    patch_embed: PatchEmbedding,
    /// `[1, G, G, hidden]`.
    pos_embed: Option<Tensor>,
    layers: Vec<Layer>,
    neck: Neck,
    image_size: usize,
}

impl Vit {
    /// Loads `patch_embed`, `pos_embed`, `layers.{i}` and `neck`.
    pub fn load(vb: VarBuilder, config: &VisionConfig) -> Result<Self> {
        let (grid, hidden) = (config.grid(), config.hidden_size);
        let pos_embed = if config.use_abs_pos {
            Some(vb.get((1, grid, grid, hidden), "pos_embed")?)
        } else {
            None
        };
        let layers = (0..config.num_hidden_layers)
            .map(|i| {
                let global = config.global_attn_indexes.contains(&i) || config.window_size == 0;
                let window = (!global).then_some(config.window_size);
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
        })
    }

    /// Rows and columns of the pixels it takes.
    pub(super) fn image_size(&self) -> usize {
        self.image_size
    }

    /// Normalised, zero-padded pixels `[B, 3, S, S]` with `S` the model's image size, to the image
    /// embeddings `[B, C, G, G]`.
    pub fn forward(&self, pixel_values: &Tensor) -> Result<Tensor> {
        let mut hidden_states = self.patch_embed.forward(pixel_values)?;
        if let Some(positions) = &self.pos_embed {
            hidden_states = hidden_states.broadcast_add(positions)?;
        }
        for layer in &self.layers {
            hidden_states = layer.forward(&hidden_states)?;
        }
        self.neck.forward(&hidden_states)
    }
}

/// `SamVisionLayer`.
#[derive(Debug, Clone)]
struct Layer {
    norm1: LayerNorm,
    attention: Attention,
    norm2: LayerNorm,
    lin1: Linear,
    activation: Activation,
    lin2: Linear,
    /// `None`: global attention.
    window: Option<usize>,
}

impl Layer {
    fn load(vb: VarBuilder, config: &VisionConfig, window: Option<usize>) -> Result<Self> {
        let (hidden, eps) = (config.hidden_size, config.layer_norm_eps);
        let width = config
            .mlp_dim
            .unwrap_or((hidden as f64 * config.mlp_ratio) as usize);
        let extent = window.unwrap_or(config.grid());
        Ok(Self {
            norm1: layer_norm(hidden, eps, vb.pp("layer_norm1"))?,
            attention: Attention::load(vb.pp("attn"), config, extent)?,
            norm2: layer_norm(hidden, eps, vb.pp("layer_norm2"))?,
            lin1: candle_nn::linear(hidden, width, vb.pp("mlp.lin1"))?,
            activation: config.hidden_act,
            lin2: candle_nn::linear(width, hidden, vb.pp("mlp.lin2"))?,
            window,
        })
    }

    /// `[B, G, G, hidden]` to the same shape.
    fn forward(&self, hidden_states: &Tensor) -> Result<Tensor> {
        let normed = self.norm1.forward(hidden_states)?;
        let attended = match self.window {
            None => self.attention.forward(&normed)?,
            Some(window) => {
                let (_, height, width, _) = normed.dims4()?;
                let windows = partition_windows(&normed, window)?;
                let windows = self.attention.forward(&windows)?;
                merge_windows(&windows, window, (height, width))?
            }
        };
        let hidden_states = (hidden_states + attended)?;
        let widened = self
            .norm2
            .forward(&hidden_states)?
            .apply(&self.lin1)?
            .apply(&self.activation)?;
        hidden_states + widened.apply(&self.lin2)?
    }
}

/// `SamVisionAttention` on square maps of `extent` rows.
#[derive(Debug, Clone)]
struct Attention {
    qkv: Linear,
    proj: Linear,
    /// `[extent, extent, D]` for the rows and for the columns: by query and key position.
    relative: Option<(Tensor, Tensor)>,
    heads: usize,
}

impl Attention {
    fn load(vb: VarBuilder, config: &VisionConfig, extent: usize) -> Result<Self> {
        let (hidden, heads) = (config.hidden_size, config.num_attention_heads);
        let relative = if config.use_rel_pos {
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
            Some((table("rel_pos_h")?, table("rel_pos_w")?))
        } else {
            None
        };
        Ok(Self {
            qkv: candle_nn::linear_b(hidden, 3 * hidden, config.qkv_bias, vb.pp("qkv"))?,
            proj: candle_nn::linear(hidden, hidden, vb.pp("proj"))?,
            relative,
            heads,
        })
    }

    /// `[B, H, W, hidden]` to the same shape.
    fn forward(&self, hidden_states: &Tensor) -> Result<Tensor> {
        let (batch, height, width, hidden) = hidden_states.dims4()?;
        let (tokens, rows) = (height * width, batch * self.heads);
        let qkv = hidden_states
            .apply(&self.qkv)?
            .reshape((batch, tokens, 3, self.heads, hidden / self.heads))?
            .permute((2, 0, 3, 1, 4))?
            .reshape((3, rows, tokens, hidden / self.heads))?;
        let (query, key, value) = (qkv.i(0)?, qkv.i(1)?, qkv.i(2)?);

        // a global map's scores are large (12 heads of 4096 x 4096 numbers are 800 MB): a few heads
        // at a time bound the memory
        const SCORES_AT_ONCE: usize = 1 << 25;
        let step = (SCORES_AT_ONCE / (tokens * tokens)).clamp(1, rows);
        let mut parts = vec![];
        for start in (0..rows).step_by(step) {
            let count = step.min(rows - start);
            parts.push(self.attend(
                &query.narrow(0, start, count)?,
                &key.narrow(0, start, count)?,
                &value.narrow(0, start, count)?,
                (height, width),
            )?);
        }
        Tensor::cat(&parts, 0)?
            .reshape((batch, self.heads, tokens, hidden / self.heads))?
            .transpose(1, 2)?
            .reshape((batch, height, width, hidden))?
            .apply(&self.proj)
    }

    /// `[rows, H * W, D]` each, to the same shape; a row is one head of one window.
    fn attend(
        &self,
        query: &Tensor,
        key: &Tensor,
        value: &Tensor,
        (height, width): (usize, usize),
    ) -> Result<Tensor> {
        let (rows, tokens, d) = query.dims3()?;
        let scale = 1.0 / (d as f64).sqrt();
        let scores = (query * scale)?.matmul(&key.transpose(1, 2)?)?;
        let scores = match &self.relative {
            None => scores,
            Some((by_row, by_column)) => {
                let query = query.reshape((rows, height, width, d))?;
                // [rows, H, W, H] and [rows, H, W, W]: what every query says to a row, to a column
                let to_rows = query
                    .transpose(0, 1)?
                    .reshape((height, rows * width, d))?
                    .matmul(&by_row.transpose(1, 2)?)?
                    .reshape((height, rows, width, height))?
                    .transpose(0, 1)?;
                let to_columns = query
                    .permute((2, 0, 1, 3))?
                    .reshape((width, rows * height, d))?
                    .matmul(&by_column.transpose(1, 2)?)?
                    .reshape((width, rows, height, width))?
                    .permute((1, 2, 0, 3))?;
                scores
                    .reshape((rows, height, width, height, width))?
                    .broadcast_add(&to_rows.unsqueeze(4)?)?
                    .broadcast_add(&to_columns.unsqueeze(3)?)?
                    .reshape((rows, tokens, tokens))?
            }
        };
        candle_nn::ops::softmax_last_dim(&scores)?.matmul(&value.contiguous()?)
    }
}
