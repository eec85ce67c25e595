//! The attention blocks of TinyViT.

use candle_core::{Module, Result, Tensor};
use candle_nn::VarBuilder;

use super::NORM_EPS;
use super::convolution::load_depthwise;
use crate::models::layers::{LayerNorm, Linear, Mlp, layer_norm, linear};
use crate::models::ops::{
    Activation, Depthwise3x3, PositionBias, Windows, depthwise_conv3x3, window_attention,
};

/// `TinyViTBlock`: windowed attention, a depthwise convolution and an MLP.
#[derive(Debug, Clone)]
pub(super) struct AttentionBlock {
    attention: WindowAttention,
    local_conv: Depthwise3x3,
    norm: LayerNorm,
    feed_forward: Mlp,
}

impl AttentionBlock {
    pub(super) fn load(dim: usize, heads: usize, window: usize, vb: VarBuilder) -> Result<Self> {
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
    pub(super) fn forward(&self, xs: &Tensor) -> Result<Tensor> {
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
