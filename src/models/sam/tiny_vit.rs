//! MobileSAM's image encoder: TinyViT whose last stage keeps the resolution of the stage before (Zhang et al. 2023,
//! <https://arxiv.org/abs/2306.14289>; Wu et al. 2022, <https://arxiv.org/abs/2207.10666>).
//!
//! The reference is `tiny_vit_sam.py` of the `mobile_sam` package; its class is named above each block. Maps are
//! channels last here. Batch norms are folded into their convolutions when the model loads.

use candle_core::{Module, Result, Tensor};
use candle_nn::VarBuilder;

use super::neck::Neck;
use crate::models::layers::{LayerNorm, Linear, Mlp, layer_norm, linear};
use crate::models::ops::{
    Activation, Conv3x3, Depthwise3x3, InvertedBottleneck, Matrix, PositionBias, Windows, conv3x3,
    depthwise_conv3x3, inverted_bottleneck, window_attention,
};
use crate::models::weights::{DeriveConfigError, Weights};

/// A tensor that only TinyViT has.
pub const SIGNATURE: &str = "vision_encoder.patch_embed.seq.0.c.weight";

/// The sizes of the four stages. The first stage has convolutions, the others have windowed attention.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Rows, and columns, of the input in pixels.
    pub image_size: usize,
    /// Channels of each stage.
    pub embed_dims: Vec<usize>,
    /// Blocks of each stage.
    pub depths: Vec<usize>,
    /// Attention heads of each stage; not used for the first stage.
    pub num_heads: Vec<usize>,
    /// Rows, and columns, of the windows of each stage; not used for the first stage.
    pub window_sizes: Vec<usize>,
    /// Hidden channels of the convolution blocks.
    pub hidden_dim: usize,
    /// Channels of the image embedding.
    pub output_channels: usize,
}

/// Widths of the stage that keeps the resolution; the reference also detects the stage by these numbers.
const UNSTRIDED_WIDTHS: [usize; 3] = [320, 448, 576];
/// The epsilon of the attention blocks' norms and of the batch norms; torch's default for both.
const NORM_EPS: f64 = 1e-5;

impl Config {
    /// Derives the configuration from the tensors' shapes.
    ///
    /// # Errors
    /// If a tensor is missing or has another number of dimensions.
    pub fn from_weights(weights: &Weights) -> std::result::Result<Self, DeriveConfigError> {
        let stages = weights.count("vision_encoder.layers");
        let block = |stage: usize| format!("vision_encoder.layers.{stage}.blocks");
        let [first, ..] = weights.sizes::<4>("vision_encoder.patch_embed.seq.2.c.weight")?;
        let [hidden_dim, ..] = weights.sizes::<4>(&format!("{}.0.conv1.c.weight", block(0)))?;
        let [output_channels, ..] = weights.sizes::<4>("vision_encoder.neck.conv1.weight")?;
        let mut config = Self {
            // not visible in any shape: convolutions and windows work for any size
            image_size: 1024,
            embed_dims: vec![first],
            depths: (0..stages).map(|i| weights.count(&block(i))).collect(),
            num_heads: vec![0],
            window_sizes: vec![0],
            hidden_dim,
            output_channels,
        };
        for stage in 1..stages {
            let attention = format!("{}.0.attn", block(stage));
            // one bias per distance in rows and columns
            let [heads, biases] = weights.sizes(&format!("{attention}.attention_biases"))?;
            let [width, _] = weights.sizes(&format!("{attention}.proj.weight"))?;
            config.embed_dims.push(width);
            config.num_heads.push(heads);
            config.window_sizes.push(biases.isqrt());
        }
        Ok(config)
    }
}

/// `TinyViT`.
#[derive(Debug, Clone)]
pub struct TinyVit {
    patch_embed: PatchEmbed,
    stages: Vec<Stage>,
    neck: Neck,
    image_size: usize,
}

impl TinyVit {
    /// Loads `patch_embed.seq`, `layers.{i}` and `neck`.
    ///
    /// # Errors
    /// If a tensor is missing or has another shape; the message names it.
    pub fn load(vb: VarBuilder, config: &Config) -> Result<Self> {
        let dims = &config.embed_dims;
        let (Some(first), Some(last)) = (dims.first(), dims.last()) else {
            candle_core::bail!("TinyViT has no stages: embed_dims is empty")
        };
        let stages = (0..dims.len())
            .map(|i| Stage::load(vb.pp("layers").pp(i), config, i))
            .collect::<Result<_>>()?;
        Ok(Self {
            patch_embed: PatchEmbed::load(*first, vb.pp("patch_embed"))?,
            stages,
            neck: Neck::load(*last, config.output_channels, vb.pp("neck"))?,
            image_size: config.image_size,
        })
    }

    /// Number of rows, and of columns, of the input pixels.
    pub(super) fn image_size(&self) -> usize {
        self.image_size
    }

    /// Normalised, zero-padded pixels `[B, 3, S, S]` to the image embeddings `[B, C, S / 16, S / 16]`.
    pub fn forward(&self, pixel_values: &Tensor) -> Result<Tensor> {
        let mut xs = self.patch_embed.forward(pixel_values)?;
        for stage in &self.stages {
            xs = stage.forward(&xs)?;
        }
        self.neck.forward(&xs)
    }
}

/// `PatchEmbed`.
#[derive(Debug, Clone)]
pub struct PatchEmbed(Conv3x3, Conv3x3);

impl PatchEmbed {
    /// Loads `seq.0` and `seq.2`; the output has `channels` channels.
    pub fn load(channels: usize, vb: VarBuilder) -> Result<Self> {
        Ok(Self(
            load_strided(3, channels / 2, vb.pp("seq.0"))?,
            load_strided(channels / 2, channels, vb.pp("seq.2"))?,
        ))
    }

    /// Pixels `[B, 3, H, W]`, whose sizes are divisible by 4, to `[B, H / 4, W / 4, C]`.
    pub fn forward(&self, pixel_values: &Tensor) -> Result<Tensor> {
        let pixels = pixel_values.permute((0, 2, 3, 1))?.contiguous()?;
        let hidden = conv3x3(&pixels, &self.0, Activation::Gelu)?;
        conv3x3(&hidden, &self.1, Activation::None)
    }
}

/// `ConvLayer` or `BasicLayer`.
#[derive(Debug, Clone)]
pub struct Stage {
    blocks: Vec<Block>,
    merging: Option<PatchMerging>,
}

#[derive(Debug, Clone)]
enum Block {
    Convolution(MbConv),
    Attention(AttentionBlock),
}

impl Stage {
    /// Loads a stage by its index: `blocks.{i}`, and `downsample` unless it is the last one.
    pub fn load(vb: VarBuilder, config: &Config, stage: usize) -> Result<Self> {
        let dim = config.embed_dims[stage];
        let blocks = (0..config.depths[stage])
            .map(|i| {
                let vb = vb.pp("blocks").pp(i);
                Ok(if stage == 0 {
                    Block::Convolution(MbConv::load(dim, config.hidden_dim, vb)?)
                } else {
                    let (heads, window) = (config.num_heads[stage], config.window_sizes[stage]);
                    Block::Attention(AttentionBlock::load(dim, heads, window, vb)?)
                })
            })
            .collect::<Result<_>>()?;
        let next = config.embed_dims.get(stage + 1);
        let merging = next.map(|next| PatchMerging::load(dim, *next, vb.pp("downsample")));
        Ok(Self {
            blocks,
            merging: merging.transpose()?,
        })
    }

    /// `[B, H, W, C]` to the next stage's input, or to the same shape in the last stage.
    pub fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let mut xs = xs.clone();
        for block in &self.blocks {
            xs = match block {
                Block::Convolution(block) => block.forward(&xs)?,
                Block::Attention(block) => block.forward(&xs)?,
            };
        }
        match &self.merging {
            Some(merging) => merging.forward(&xs),
            None => Ok(xs),
        }
    }
}

/// `Conv2d_BN`: the kernel `[out, in, h, w]` and the bias of the convolution, with its batch norm folded in.
fn fold_batch_norm(
    output: usize,
    input: usize,
    side: usize,
    vb: VarBuilder,
) -> Result<(Tensor, Tensor)> {
    let kernel = vb.get((output, input, side, side), "c.weight")?;
    let vb = vb.pp("bn");
    let mean = vb.get(output, "running_mean")?;
    let variance = vb.get(output, "running_var")?;
    let scale = (vb.get(output, "weight")? / (variance + NORM_EPS)?.sqrt()?)?;
    let bias = (vb.get(output, "bias")? - (mean * &scale)?)?;
    Ok((
        kernel.broadcast_mul(&scale.reshape((output, 1, 1, 1))?)?,
        bias,
    ))
}

/// A 1x1 `Conv2d_BN`, as a linear layer on the channels: its weight `[output, input]` and its bias.
fn load_pointwise(input: usize, output: usize, vb: VarBuilder) -> Result<(Matrix, Tensor)> {
    let (kernel, bias) = fold_batch_norm(output, input, 1, vb)?;
    Ok((Matrix::new(kernel.reshape((output, input))?)?, bias))
}

/// A depthwise 3x3 `Conv2d_BN`.
fn load_depthwise(channels: usize, stride: usize, vb: VarBuilder) -> Result<Depthwise3x3> {
    let (kernel, bias) = fold_batch_norm(channels, 1, 3, vb)?;
    Ok(Depthwise3x3 {
        kernel: kernel.reshape((channels, 9))?.t()?.contiguous()?,
        bias,
        stride,
    })
}

/// A dense 3x3 `Conv2d_BN` with stride 2.
fn load_strided(input: usize, output: usize, vb: VarBuilder) -> Result<Conv3x3> {
    let (kernel, bias) = fold_batch_norm(output, input, 3, vb)?;
    Conv3x3::new(&kernel, Some(bias), 2)
}

/// A 1x1, a depthwise 3x3 with this stride, and another 1x1 `Conv2d_BN`.
fn load_bottleneck(
    [input, hidden, output]: [usize; 3],
    stride: usize,
    vb: VarBuilder,
) -> Result<InvertedBottleneck> {
    let (widen, widen_bias) = load_pointwise(input, hidden, vb.pp("conv1"))?;
    let (narrow, narrow_bias) = load_pointwise(hidden, output, vb.pp("conv3"))?;
    Ok(InvertedBottleneck {
        widen,
        widen_bias,
        depthwise: load_depthwise(hidden, stride, vb.pp("conv2"))?,
        narrow,
        narrow_bias,
    })
}

/// `MBConv`: an inverted bottleneck with a residual connection.
#[derive(Debug, Clone)]
struct MbConv(InvertedBottleneck);

impl MbConv {
    fn load(dim: usize, hidden: usize, vb: VarBuilder) -> Result<Self> {
        Ok(Self(load_bottleneck([dim, hidden, dim], 1, vb)?))
    }

    /// `[B, H, W, C]` to the same shape.
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        inverted_bottleneck(xs, &self.0, Some(xs), Activation::Gelu)
    }
}

/// `PatchMerging`: halves the resolution, except before the last stage.
#[derive(Debug, Clone)]
struct PatchMerging(InvertedBottleneck);

impl PatchMerging {
    fn load(dim: usize, next: usize, vb: VarBuilder) -> Result<Self> {
        let stride = if UNSTRIDED_WIDTHS.contains(&next) {
            1
        } else {
            2
        };
        Ok(Self(load_bottleneck([dim, next, next], stride, vb)?))
    }

    /// `[B, H, W, C]` to `[B, H / stride, W / stride, next]`.
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        inverted_bottleneck(xs, &self.0, None, Activation::None)
    }
}

/// `TinyViTBlock`: windowed attention, a depthwise convolution and an MLP.
#[derive(Debug, Clone)]
struct AttentionBlock {
    attention: WindowAttention,
    local_conv: Depthwise3x3,
    norm: LayerNorm,
    feed_forward: Mlp,
}

impl AttentionBlock {
    fn load(dim: usize, heads: usize, window: usize, vb: VarBuilder) -> Result<Self> {
        let vb_m = vb.pp("mlp");
        Ok(Self {
            attention: WindowAttention::load(dim, heads, window, vb.pp("attn"))?,
            local_conv: load_depthwise(dim, 1, vb.pp("local_conv"))?,
            norm: layer_norm(dim, NORM_EPS, vb_m.pp("norm"))?,
            feed_forward: Mlp::new(
                vec![
                    linear(dim, 4 * dim, vb_m.pp("fc1"))?,
                    linear(4 * dim, dim, vb_m.pp("fc2"))?,
                ],
                candle_nn::Activation::Gelu,
            ),
        })
    }

    /// `[B, H, W, C]` to the same shape.
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let xs = self.attention.forward_added(xs)?;
        let xs = depthwise_conv3x3(&xs, &self.local_conv, Activation::None)?;
        self.feed_forward
            .forward_added(&self.norm.forward(&xs)?, &xs)
    }
}

/// `Attention` in windows, with a learned bias per distance.
#[derive(Debug, Clone)]
struct WindowAttention {
    norm: LayerNorm,
    /// The queries of all heads, then the keys, then the values. The checkpoint interleaves the three per head.
    qkv: Linear,
    /// `[3 C]`: the norm and the projection applied to a zero token, which pads the last windows.
    padding_token: Tensor,
    proj: Linear,
    position_bias: PositionBias,
    heads: usize,
    window: usize,
}

impl WindowAttention {
    fn load(dim: usize, heads: usize, window: usize, vb: VarBuilder) -> Result<Self> {
        let tokens = window * window;
        let biases = vb.get((heads, tokens), "attention_biases")?;
        // numbered in the order in which the window's first token encounters them, row by row
        let index: Vec<u32> = (0..tokens)
            .flat_map(|a| {
                (0..tokens).map(move |b| {
                    let rows = (a / window).abs_diff(b / window);
                    let columns = (a % window).abs_diff(b % window);
                    (rows * window + columns) as u32
                })
            })
            .collect();
        let index = Tensor::from_vec(index, tokens * tokens, vb.device())?;
        let position_bias = biases
            .index_select(&index, 1)?
            .reshape((heads, tokens, tokens))?;
        let part_by_part = |xs: Tensor, rest: usize| {
            xs.reshape((heads, 3, dim / heads, rest))?
                .transpose(0, 1)?
                .contiguous()
        };
        let weight = part_by_part(vb.get((3 * dim, dim), "qkv.weight")?, dim)?;
        let bias = part_by_part(vb.get(3 * dim, "qkv.bias")?, 1)?;
        let qkv = Linear::new(weight.reshape((3 * dim, dim))?, Some(bias.flatten_all()?))?;
        let norm = layer_norm(dim, NORM_EPS, vb.pp("norm"))?;
        Ok(Self {
            padding_token: qkv.forward(&norm.of_zeros().unsqueeze(0)?)?.squeeze(0)?,
            norm,
            qkv,
            proj: linear(dim, dim, vb.pp("proj"))?,
            position_bias: PositionBias::Table(position_bias),
            heads,
            window,
        })
    }

    /// A map `[B, H, W, C]` plus the attention's result. Padding tokens of the last windows are attended to as well,
    /// as in the reference.
    fn forward_added(&self, xs: &Tensor) -> Result<Tensor> {
        let (batch, height, width, _) = xs.dims4()?;
        let windows = Windows {
            batch,
            height,
            width,
            window_height: self.window,
            window_width: self.window,
            shift: 0,
        };
        let qkv = self.norm.forward(xs)?.apply(&self.qkv)?;
        let bias = Some(&self.position_bias);
        let attended = window_attention(&qkv, &self.padding_token, self.heads, windows, bias)?;
        self.proj.forward_added(&attended, xs)
    }
}
