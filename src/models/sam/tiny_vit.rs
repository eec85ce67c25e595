//! MobileSAM's image encoder: TinyViT with the last stage at the resolution of the one before (Zhang et
//! al. 2023, <https://arxiv.org/abs/2306.14289>; Wu et al. 2022, <https://arxiv.org/abs/2207.10666>).
//!
//! The reference is `tiny_vit_sam.py` of the `mobile_sam` package, whose class is named above each block.
//! Maps are channels last here; batch norms are folded into their convolutions when the model loads.

use candle_core::{D, Module, Result, Tensor};
use candle_nn::{Linear, VarBuilder};

use super::neck::Neck;
use crate::models::layers::{LayerNorm, attention, layer_norm};
use crate::models::ops::depthwise_conv3x3;
use crate::models::weights::Weights;
use crate::models::windows::{merge_windows, partition_windows};

/// A tensor that only TinyViT has.
pub const SIGNATURE: &str = "vision_encoder.patch_embed.seq.0.c.weight";

/// The sizes of the four stages, the first of convolutions, the others of windowed attention.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)] // the reference's own names
pub struct Config {
    pub image_size: usize,
    pub embed_dims: Vec<usize>,
    pub depths: Vec<usize>,
    /// None for the first stage.
    pub num_heads: Vec<usize>,
    /// None for the first stage.
    pub window_sizes: Vec<usize>,
    /// Of the convolution blocks.
    pub hidden_dim: usize,
    pub output_channels: usize,
}

/// The width whose stage keeps the resolution: the reference tells it by these numbers too.
const UNSTRIDED: [usize; 3] = [320, 448, 576];
/// Norms of the attention blocks (torch's default), batch norms (the same).
const EPS: f64 = 1e-5;

impl Config {
    /// The configuration that the tensors tell.
    ///
    /// # Errors
    /// The tensor that is missing.
    pub fn of_weights(weights: &Weights) -> std::result::Result<Self, String> {
        let stages = weights.count("vision_encoder.layers");
        let block = |stage: usize| format!("vision_encoder.layers.{stage}.blocks");
        let [first, ..] = weights.sizes::<4>("vision_encoder.patch_embed.seq.2.c.weight")?;
        let [hidden_dim, ..] = weights.sizes::<4>(&format!("{}.0.conv1.c.weight", block(0)))?;
        let [output_channels, ..] = weights.sizes::<4>("vision_encoder.neck.conv1.weight")?;
        let mut config = Self {
            // in no tensor's shape: convolutions and windows take any size
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
            // one bias per distance in rows and in columns
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
    /// If a tensor is missing or of another shape; the message names it.
    pub fn load(vb: VarBuilder, config: &Config) -> Result<Self> {
        let dims = &config.embed_dims;
        let (Some(first), Some(last)) = (dims.first(), dims.last()) else {
            candle_core::bail!("TinyViT without stages")
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

    /// Rows and columns of the pixels it takes.
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
    /// Loads `seq.0` and `seq.2`, to `channels`.
    pub fn load(channels: usize, vb: VarBuilder) -> Result<Self> {
        Ok(Self(
            Conv3x3::load(3, channels / 2, vb.pp("seq.0"))?,
            Conv3x3::load(channels / 2, channels, vb.pp("seq.2"))?,
        ))
    }

    /// Pixels `[B, 3, H, W]`, sizes divisible by 4, to `[B, H / 4, W / 4, C]`.
    pub fn forward(&self, pixel_values: &Tensor) -> Result<Tensor> {
        let pixels = pixel_values.permute((0, 2, 3, 1))?.contiguous()?;
        self.1.forward(&self.0.forward(&pixels)?.gelu_erf()?)
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
    /// Loads the stage of this number: `blocks.{i}`, and `downsample` unless it is the last.
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

    /// `[B, H, W, C]` to the next stage's map, or to the same shape in the last.
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

/// `Conv2d_BN`: the kernel `[out, in, h, w]` and the bias of the convolution with its batch norm folded in.
fn folded(output: usize, input: usize, side: usize, vb: VarBuilder) -> Result<(Tensor, Tensor)> {
    let kernel = vb.get((output, input, side, side), "c.weight")?;
    let vb = vb.pp("bn");
    let mean = vb.get(output, "running_mean")?;
    let variance = vb.get(output, "running_var")?;
    let scale = (vb.get(output, "weight")? / (variance + EPS)?.sqrt()?)?;
    let bias = (vb.get(output, "bias")? - (mean * &scale)?)?;
    Ok((
        kernel.broadcast_mul(&scale.reshape((output, 1, 1, 1))?)?,
        bias,
    ))
}

/// A 1x1 `Conv2d_BN`, which is a linear layer on the channels.
fn pointwise(input: usize, output: usize, vb: VarBuilder) -> Result<Linear> {
    let (kernel, bias) = folded(output, input, 1, vb)?;
    Ok(Linear::new(kernel.reshape((output, input))?, Some(bias)))
}

/// A depthwise 3x3 `Conv2d_BN`.
#[derive(Debug, Clone)]
struct Depthwise {
    /// `[9, C]`, row by row.
    kernel: Tensor,
    bias: Tensor,
    stride: usize,
}

impl Depthwise {
    fn load(channels: usize, stride: usize, vb: VarBuilder) -> Result<Self> {
        let (kernel, bias) = folded(channels, 1, 3, vb)?;
        Ok(Self {
            kernel: kernel.reshape((channels, 9))?.t()?.contiguous()?,
            bias,
            stride,
        })
    }

    /// `[B, H, W, C]` to `[B, ceil(H / stride), ceil(W / stride), C]`.
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        depthwise_conv3x3(xs, &self.kernel, &self.bias, self.stride)
    }
}

/// A dense 3x3 `Conv2d_BN` of stride 2, as one matrix product over the patches.
#[derive(Debug, Clone)]
struct Conv3x3(Linear);

impl Conv3x3 {
    fn load(input: usize, output: usize, vb: VarBuilder) -> Result<Self> {
        let (kernel, bias) = folded(output, input, 3, vb)?;
        // the patches below are row by row, each with its channels last
        let kernel = kernel.permute((0, 2, 3, 1))?.reshape((output, 9 * input))?;
        Ok(Self(Linear::new(kernel.contiguous()?, Some(bias))))
    }

    /// `[B, H, W, in]` with even sizes to `[B, H / 2, W / 2, out]`.
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let (batch, height, width, channels) = xs.dims4()?;
        let (rows, columns) = (height / 2, width / 2);
        // one more row and column at either side; what lies under kernel cell (y, x) is every second
        // pixel from there
        let padded = xs.pad_with_zeros(1, 1, 1)?.pad_with_zeros(2, 1, 1)?;
        let pairs = padded.reshape((batch, rows + 1, 2, columns + 1, 2, channels))?;
        let mut cells = vec![];
        for y in 0..3 {
            for x in 0..3 {
                cells.push(
                    pairs
                        .narrow(1, y / 2, rows)?
                        .narrow(2, y % 2, 1)?
                        .narrow(3, x / 2, columns)?
                        .narrow(4, x % 2, 1)?
                        .reshape((batch, rows, columns, channels))?,
                );
            }
        }
        Tensor::cat(&cells, D::Minus1)?.apply(&self.0)
    }
}

/// `MBConv`: widened, convolved channel by channel, narrowed, around a shortcut.
#[derive(Debug, Clone)]
struct MbConv {
    widen: Linear,
    depthwise: Depthwise,
    narrow: Linear,
}

impl MbConv {
    fn load(dim: usize, hidden: usize, vb: VarBuilder) -> Result<Self> {
        Ok(Self {
            widen: pointwise(dim, hidden, vb.pp("conv1"))?,
            depthwise: Depthwise::load(hidden, 1, vb.pp("conv2"))?,
            narrow: pointwise(hidden, dim, vb.pp("conv3"))?,
        })
    }

    /// `[B, H, W, C]` to the same shape.
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let widened = xs.apply(&self.widen)?.gelu_erf()?;
        let convolved = self.depthwise.forward(&widened)?.gelu_erf()?;
        (convolved.apply(&self.narrow)? + xs)?.gelu_erf()
    }
}

/// `PatchMerging`: half the resolution, but before the last stage.
#[derive(Debug, Clone)]
struct PatchMerging {
    conv1: Linear,
    conv2: Depthwise,
    conv3: Linear,
}

impl PatchMerging {
    fn load(dim: usize, next: usize, vb: VarBuilder) -> Result<Self> {
        let stride = if UNSTRIDED.contains(&next) { 1 } else { 2 };
        Ok(Self {
            conv1: pointwise(dim, next, vb.pp("conv1"))?,
            conv2: Depthwise::load(next, stride, vb.pp("conv2"))?,
            conv3: pointwise(next, next, vb.pp("conv3"))?,
        })
    }

    /// `[B, H, W, C]` to `[B, H / stride, W / stride, next]`.
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let xs = xs.apply(&self.conv1)?.gelu_erf()?;
        self.conv2.forward(&xs)?.gelu_erf()?.apply(&self.conv3)
    }
}

/// `TinyViTBlock`: attention in windows, a depthwise convolution, an MLP.
#[derive(Debug, Clone)]
struct AttentionBlock {
    attention: WindowAttention,
    local_conv: Depthwise,
    norm: LayerNorm,
    fc1: Linear,
    fc2: Linear,
}

impl AttentionBlock {
    fn load(dim: usize, heads: usize, window: usize, vb: VarBuilder) -> Result<Self> {
        let vb_m = vb.pp("mlp");
        Ok(Self {
            attention: WindowAttention::load(dim, heads, window, vb.pp("attn"))?,
            local_conv: Depthwise::load(dim, 1, vb.pp("local_conv"))?,
            norm: layer_norm(dim, EPS, vb_m.pp("norm"))?,
            fc1: candle_nn::linear(dim, 4 * dim, vb_m.pp("fc1"))?,
            fc2: candle_nn::linear(4 * dim, dim, vb_m.pp("fc2"))?,
        })
    }

    /// `[B, H, W, C]` to the same shape.
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let xs = (xs + self.attention.forward(xs)?)?;
        let xs = self.local_conv.forward(&xs)?;
        let widened = self.norm.forward(&xs)?.apply(&self.fc1)?.gelu_erf()?;
        xs + widened.apply(&self.fc2)?
    }
}

/// `Attention`, with a learned bias per distance, in windows.
#[derive(Debug, Clone)]
struct WindowAttention {
    norm: LayerNorm,
    /// Per head its query, its key and its value.
    qkv: Linear,
    proj: Linear,
    /// `[1, heads, N, N]` for the `N = window^2` tokens of a window.
    position_bias: Tensor,
    heads: usize,
    window: usize,
}

impl WindowAttention {
    fn load(dim: usize, heads: usize, window: usize, vb: VarBuilder) -> Result<Self> {
        let tokens = window * window;
        let biases = vb.get((heads, tokens), "attention_biases")?;
        // numbered in the order in which a window's first token meets them: row by row
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
        Ok(Self {
            norm: layer_norm(dim, EPS, vb.pp("norm"))?,
            qkv: candle_nn::linear(dim, 3 * dim, vb.pp("qkv"))?,
            proj: candle_nn::linear(dim, dim, vb.pp("proj"))?,
            position_bias: biases
                .index_select(&index, 1)?
                .reshape((1, heads, tokens, tokens))?,
            heads,
            window,
        })
    }

    /// `[B, H, W, C]` to the same shape. What fills up the last windows is seen too, as in the reference.
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let (_, height, width, channels) = xs.dims4()?;
        let windows = partition_windows(xs, self.window)?.flatten(1, 2)?;
        let (count, tokens, _) = windows.dims3()?;
        let qkv = self
            .norm
            .forward(&windows)?
            .apply(&self.qkv)?
            .reshape((count, tokens, self.heads, 3, channels / self.heads))?
            .permute((3, 0, 2, 1, 4))?
            .contiguous()?;
        let part = |i: usize| qkv.narrow(0, i, 1)?.squeeze(0);
        let attended = attention(&part(0)?, &part(1)?, &part(2)?, Some(&self.position_bias))?;
        let attended = attended
            .transpose(1, 2)?
            .reshape((count, self.window, self.window, channels))?
            .apply(&self.proj)?;
        merge_windows(&attended, self.window, (height, width))
    }
}
