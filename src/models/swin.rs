//! Swin, the image backbone of Grounding DINO (Liu et al. 2021, <https://arxiv.org/abs/2103.14030>).
//!
//! Attention runs in windows; in every other block the windows are shifted by half their size. Maps of any size are
//! padded to whole windows. Hidden states are always channels last.

use candle_core::{Device, IndexOp, Module, Result, Tensor};
use candle_nn::{Activation, VarBuilder};
use serde::Deserialize;

use super::layers::{
    FeedForward, LayerNorm, Linear, PatchEmbedding, layer_norm, linear, linear_b, linear_concat,
};
use super::ops::{PositionBias, Windows, window_attention};
use super::weights::Weights;

/// `SwinConfig`, with the reference's defaults. `image_size` is not read, because the weights do not depend on it:
/// any image size works.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default)]
#[allow(missing_docs)] // the reference's own field names
pub struct Config {
    pub patch_size: usize,
    pub num_channels: usize,
    pub embed_dim: usize,
    pub depths: Vec<usize>,
    pub num_heads: Vec<usize>,
    pub window_size: usize,
    pub mlp_ratio: f64,
    pub qkv_bias: bool,
    pub hidden_act: Activation,
    pub use_absolute_embeddings: bool,
    pub layer_norm_eps: f64,
    pub out_features: Option<Vec<String>>,
    pub out_indices: Option<Vec<i64>>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            patch_size: 4,
            num_channels: 3,
            embed_dim: 96,
            depths: vec![2, 2, 6, 2],
            num_heads: vec![3, 6, 12, 24],
            window_size: 7,
            mlp_ratio: 4.0,
            qkv_bias: true,
            hidden_act: Activation::Gelu,
            use_absolute_embeddings: false,
            layer_norm_eps: 1e-5,
            out_features: None,
            out_indices: None,
        }
    }
}

impl Config {
    /// Derives the configuration from the shapes of the tensors under `prefix`.
    ///
    /// # Errors
    /// The name of a missing tensor.
    pub fn of_weights(weights: &Weights, prefix: &str) -> std::result::Result<Self, String> {
        let projection = format!("{prefix}.embeddings.patch_embeddings.projection.weight");
        let [embed_dim, num_channels, patch_size, _] = weights.sizes(&projection)?;
        let stages = weights.count(&format!("{prefix}.encoder.layers"));
        let stage = |i: usize| format!("{prefix}.encoder.layers.{i}.blocks");
        let heads = |i: usize| -> std::result::Result<[usize; 2], String> {
            let attention = format!("{}.0.attention.self", stage(i));
            weights.sizes(&format!("{attention}.relative_position_bias_table"))
        };
        let [offsets, _] = heads(0)?;
        let [widened, _] = weights.sizes(&format!("{}.0.intermediate.dense.weight", stage(0)))?;
        let is_output = |stage: &usize| {
            let norm = format!("{prefix}.hidden_states_norms.stage{stage}.weight");
            weights.shape(&norm).is_some()
        };
        let query_bias = format!("{}.0.attention.self.query.bias", stage(0));
        Ok(Self {
            patch_size,
            num_channels,
            embed_dim,
            depths: (0..stages).map(|i| weights.count(&stage(i))).collect(),
            num_heads: (0..stages)
                .map(|i| heads(i).map(|[_, heads]| heads))
                .collect::<std::result::Result<_, _>>()?,
            // a table has (2 w - 1)^2 rows for a window of w x w tokens
            window_size: offsets.isqrt().div_ceil(2),
            mlp_ratio: widened as f64 / embed_dim.max(1) as f64,
            qkv_bias: weights.shape(&query_bias).is_some(),
            out_indices: Some((1..=stages).filter(is_output).map(|i| i as i64).collect()),
            ..Self::default()
        })
    }

    /// The stages whose maps are outputs, counted from 1, in order.
    ///
    /// # Errors
    /// If a name or index is not a stage, or the length of a per-stage list is not that of `depths`.
    pub fn output_stages(&self) -> std::result::Result<Vec<usize>, String> {
        let stages = self.depths.len();
        if self.num_heads.len() != stages {
            return Err(format!(
                "depths has {stages} stages, num_heads {}",
                self.num_heads.len()
            ));
        }
        let chosen: Vec<i64> = match (&self.out_features, &self.out_indices) {
            (_, Some(indices)) => indices.clone(),
            (Some(names), None) => names
                .iter()
                .map(|name| {
                    name.strip_prefix("stage")
                        .and_then(|number| number.parse().ok())
                        .ok_or_else(|| format!("out_features: {name:?} is not a stage"))
                })
                .collect::<std::result::Result<_, _>>()?,
            (None, None) => vec![stages as i64],
        };
        chosen
            .into_iter()
            .map(|index| {
                // Python's negative indices count from the end of [stem, stage1, ...]
                let stage = if index < 0 {
                    index + stages as i64 + 1
                } else {
                    index
                };
                usize::try_from(stage)
                    .ok()
                    .filter(|stage| (1..=stages).contains(stage))
                    .ok_or_else(|| format!("out_indices: {index} is not a stage of 1 to {stages}"))
            })
            .collect()
    }

    /// Number of channels of stage `stage`, counted from 1.
    pub fn channels(&self, stage: usize) -> usize {
        self.embed_dim << (stage - 1)
    }
}

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
            .map_err(|reason| candle_core::Error::Msg(format!("backbone_config: {reason}")))?;
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
                let shifted = i % 2 == 1;
                Block::load(vb.pp("blocks").pp(i), config, channels, heads, shifted)
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
    feed_forward: FeedForward,
}

impl Block {
    fn load(
        vb: VarBuilder,
        config: &Config,
        channels: usize,
        heads: usize,
        shifted: bool,
    ) -> Result<Self> {
        let eps = config.layer_norm_eps;
        let width = (config.mlp_ratio * channels as f64) as usize;
        let shift = if shifted { config.window_size / 2 } else { 0 };
        Ok(Self {
            norm_before: layer_norm(channels, eps, vb.pp("layernorm_before"))?,
            attention: WindowAttention::load(vb.pp("attention"), config, channels, heads, shift)?,
            norm_after: layer_norm(channels, eps, vb.pp("layernorm_after"))?,
            feed_forward: FeedForward::new(
                linear(channels, width, vb.pp("intermediate.dense"))?,
                config.hidden_act,
                linear(width, channels, vb.pp("output.dense"))?,
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
    filler: Tensor,
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
            filler: qkv.forward(&zeros)?.squeeze(0)?,
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
        let attended = window_attention(&qkv, &self.filler, self.heads, windows, bias)?;
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
