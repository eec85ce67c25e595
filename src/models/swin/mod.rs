//! Swin, the image backbone of Grounding DINO (Liu et al. 2021, <https://arxiv.org/abs/2103.14030>).
//!
//! Attention runs in windows; in every other block the windows are shifted by half their size. Maps of any size are
//! padded to whole windows. Hidden states are always channels last.

mod config;

use candle_core::{Device, IndexOp, Module, Result, Tensor};
use candle_nn::VarBuilder;

use super::layers::{
    LayerNorm, Linear, Mlp, PatchEmbedding, layer_norm, linear, linear_b, linear_concat,
};
use super::ops::{PositionBias, Windows, window_attention};

pub use self::config::Config;

/// `SwinBackbone`.
#[derive(Debug, Clone)]
pub struct Swin {
    patch_embedding: PatchEmbedding,
    norm: LayerNorm,
    stages: Vec<Stage>,
    /// For each stage, the norm of its output map; `None` if the map is not an output.
    output_norms: Vec<Option<LayerNorm>>,
}

impl Swin {
    /// Loads `embeddings`, `encoder.layers.{i}` and `hidden_states_norms.stage{i}`.
    pub fn load(vb: VarBuilder, config: &Config) -> Result<Self> {
        if config.use_absolute_embeddings {
            candle_core::bail!("backbone_config: use_absolute_embeddings=true is not supported")
        }
        let outputs = config
            .output_stages()
            .map_err(|error| candle_core::Error::Msg(format!("backbone_config: {error}")))?;
        let vb_e = vb.pp("embeddings");
        let mut stages = vec![];
        let mut output_norms = vec![];
        for stage in 1..=config.depths.len() {
            let vb_s = vb.pp("encoder.layers").pp(stage - 1);
            stages.push(Stage::load(vb_s, config, stage)?);
            let norm = if outputs.contains(&stage) {
                let vb_n = vb.pp(format!("hidden_states_norms.stage{stage}"));
                Some(layer_norm(config.channels(stage), 1e-5, vb_n)?)
            } else {
                None
            };
            output_norms.push(norm);
        }
        Ok(Self {
            patch_embedding: PatchEmbedding::load(
                config.num_channels,
                config.embed_dim,
                config.patch_size,
                vb_e.pp("patch_embeddings.projection"),
            )?,
            norm: layer_norm(config.embed_dim, 1e-5, vb_e.pp("norm"))?,
            stages,
            output_norms,
        })
    }

    /// Pixels `[B, 3, H, W]` to the maps of the output stages, each `[B, H_i, W_i, C_i]`, channels last.
    pub fn forward(&self, pixel_values: &Tensor) -> Result<Vec<Tensor>> {
        let _span = tracing::debug_span!("swin").entered();
        let patches = self.patch_embedding.forward(pixel_values)?;
        let mut hidden_states = self.norm.forward(&patches)?;
        let mut maps = vec![];
        for (stage, norm) in self.stages.iter().zip(&self.output_norms) {
            hidden_states = stage.forward_blocks(&hidden_states)?;
            if let Some(norm) = norm {
                maps.push(norm.forward(&hidden_states)?);
            }
            if let Some(merging) = &stage.merging {
                hidden_states = merging.forward(&hidden_states)?;
            }
        }
        Ok(maps)
    }
}

/// `SwinStage`.
#[derive(Debug, Clone)]
struct Stage {
    blocks: Vec<Block>,
    merging: Option<PatchMerging>,
}

impl Stage {
    fn load(vb: VarBuilder, config: &Config, stage: usize) -> Result<Self> {
        let channels = config.channels(stage);
        let heads = config.num_heads[stage - 1];
        let blocks = (0..config.depths[stage - 1])
            .map(|i| {
                let is_shifted = i % 2 == 1;
                Block::load(vb.pp("blocks").pp(i), config, channels, heads, is_shifted)
            })
            .collect::<Result<_>>()?;
        let merging = if stage < config.depths.len() {
            Some(PatchMerging::load(vb.pp("downsample"), channels)?)
        } else {
            None
        };
        Ok(Self { blocks, merging })
    }

    fn forward_blocks(&self, hidden_states: &Tensor) -> Result<Tensor> {
        let mut hidden_states = hidden_states.clone();
        for block in &self.blocks {
            hidden_states = block.forward(&hidden_states)?;
        }
        Ok(hidden_states)
    }
}

/// `SwinLayer`.
#[derive(Debug, Clone)]
struct Block {
    norm_before: LayerNorm,
    attention: WindowAttention,
    norm_after: LayerNorm,
    feed_forward: Mlp,
}

impl Block {
    fn load(
        vb: VarBuilder,
        config: &Config,
        channels: usize,
        heads: usize,
        is_shifted: bool,
    ) -> Result<Self> {
        let eps = config.layer_norm_eps;
        let width = (config.mlp_ratio * channels as f64) as usize;
        let shift = if is_shifted {
            config.window_size / 2
        } else {
            0
        };
        Ok(Self {
            norm_before: layer_norm(channels, eps, vb.pp("layernorm_before"))?,
            attention: WindowAttention::load(vb.pp("attention"), config, channels, heads, shift)?,
            norm_after: layer_norm(channels, eps, vb.pp("layernorm_after"))?,
            feed_forward: Mlp::new(
                vec![
                    linear(channels, width, vb.pp("intermediate.dense"))?,
                    linear(width, channels, vb.pp("output.dense"))?,
                ],
                config.hidden_act,
            ),
        })
    }

    /// `[B, H, W, C]` to the same shape.
    fn forward(&self, hidden_states: &Tensor) -> Result<Tensor> {
        let normed = self.norm_before.forward(hidden_states)?;
        let hidden_states = self.attention.forward_added(&normed, hidden_states)?;
        let normed = self.norm_after.forward(&hidden_states)?;
        self.feed_forward.forward_added(&normed, &hidden_states)
    }
}

/// `SwinAttention`: attention inside each window, with a learned bias per relative position.
#[derive(Debug, Clone)]
struct WindowAttention {
    /// The query, key and value projections, concatenated.
    qkv: Linear,
    /// `[3 C]`: the projections of a zero token, which pads the last windows.
    padding_token: Tensor,
    output: Linear,
    position_bias: PositionBias,
    heads: usize,
    window: usize,
    shift: usize,
}

impl WindowAttention {
    fn load(
        vb: VarBuilder,
        config: &Config,
        channels: usize,
        heads: usize,
        shift: usize,
    ) -> Result<Self> {
        let vb_s = vb.pp("self");
        let layer = |name: &str| (channels, config.qkv_bias, vb_s.pp(name));
        let qkv = linear_concat(channels, &[layer("query"), layer("key"), layer("value")])?;
        let zeros = Tensor::zeros((1, channels), vb.dtype(), vb.device())?;
        let window = config.window_size;
        let offsets = (2 * window - 1) * (2 * window - 1);
        let table = vb_s.get((offsets, heads), "relative_position_bias_table")?;
        let index = relative_position_index(window, vb.device())?;
        let tokens = window * window;
        let position_bias = table
            .index_select(&index, 0)?
            .reshape((tokens, tokens, heads))?
            .permute((2, 0, 1))?
            .contiguous()?;
        Ok(Self {
            padding_token: qkv.forward(&zeros)?.squeeze(0)?,
            qkv,
            output: linear(channels, channels, vb.pp("output.dense"))?,
            position_bias: PositionBias::Table(position_bias),
            heads,
            window,
            shift,
        })
    }

    /// A map `[B, H, W, C]` to `residual`, which has the same shape, plus the result.
    fn forward_added(&self, map: &Tensor, residual: &Tensor) -> Result<Tensor> {
        let (batch, height, width, _) = map.dims4()?;
        let windows = Windows {
            batch,
            height,
            width,
            window_height: self.window,
            window_width: self.window,
            shift: self.shift,
        };
        let bias = Some(&self.position_bias);
        let qkv = map.apply(&self.qkv)?;
        let attended = window_attention(&qkv, &self.padding_token, self.heads, windows, bias)?;
        self.output.forward_added(&attended, residual)
    }
}

/// `SwinPatchMerging`: merges 2x2 neighbours to one token with twice the channels.
#[derive(Debug, Clone)]
struct PatchMerging {
    norm: LayerNorm,
    reduction: Linear,
}

impl PatchMerging {
    fn load(vb: VarBuilder, channels: usize) -> Result<Self> {
        Ok(Self {
            norm: layer_norm(4 * channels, 1e-5, vb.pp("norm"))?,
            reduction: linear_b(4 * channels, 2 * channels, false, vb.pp("reduction"))?,
        })
    }

    /// `[B, H, W, C]` to `[B, ceil(H / 2), ceil(W / 2), 2 C]`.
    fn forward(&self, hidden_states: &Tensor) -> Result<Tensor> {
        let (batch, height, width, channels) = hidden_states.dims4()?;
        let (rows, columns) = (height.div_ceil(2), width.div_ceil(2));
        let quads = hidden_states
            .pad_with_zeros(1, 0, height % 2)?
            .pad_with_zeros(2, 0, width % 2)?
            .reshape((batch, rows, 2, columns, 2, channels))?;
        let corner = |row: usize, column: usize| quads.i((.., .., row, .., column, ..));
        // column by column, which is the order of the checkpoint's 4 C input channels
        Tensor::cat(
            &[corner(0, 0)?, corner(1, 0)?, corner(0, 1)?, corner(1, 1)?],
            3,
        )?
        .apply(&self.norm)?
        .apply(&self.reduction)
    }
}

/// `[N * N]`: for each pair of tokens of a window, its row in the bias table.
fn relative_position_index(window: usize, device: &Device) -> Result<Tensor> {
    let tokens = window * window;
    let side = 2 * window - 1;
    let index: Vec<u32> = (0..tokens)
        .flat_map(|a| {
            (0..tokens).map(move |b| {
                let rows = a / window + window - 1 - b / window;
                let columns = a % window + window - 1 - b % window;
                (rows * side + columns) as u32
            })
        })
        .collect();
    Tensor::from_vec(index, tokens * tokens, device)
}
