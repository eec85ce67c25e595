//! The mask decoder: image and prompt embeddings to masks and their predicted quality.

use candle_core::{IndexOp, Result, Tensor};
use candle_nn::VarBuilder;

use super::config::MaskDecoderConfig;
use super::two_way_transformer::TwoWayTransformer;
use crate::models::layers::{LayerNorm, Mlp, Upscale2x, layer_norm, linear};
use crate::models::ops::{Activation, products_by_image};

/// `SamMaskDecoder`.
#[derive(Debug, Clone)]
pub struct MaskDecoder {
    /// `[1 + M, C]`: the IoU token and the mask tokens.
    output_tokens: Tensor,
    transformer: TwoWayTransformer,
    upscale1: Upscale2x,
    upscale_norm: LayerNorm,
    upscale2: Upscale2x,
    hypernetworks: Vec<Mlp>,
    iou_head: Mlp,
}

/// The masks of `K` prompts.
#[derive(Debug, Clone)]
pub struct Masks {
    /// `[K, M, 4 G, 4 G]`: mask logits; values above 0 are set.
    pub low_res_masks: Tensor,
    /// `[K, M]`: the predicted IoU of each mask with the object.
    pub iou_scores: Tensor,
}

impl MaskDecoder {
    /// Loads the tokens, `transformer`, `upscale_*`, `output_hypernetworks_mlps.{i}` and `iou_prediction_head`.
    /// `image_positions` are `[1, G^2, C]`.
    pub fn load(
        vb: VarBuilder,
        config: &MaskDecoderConfig,
        image_positions: &Tensor,
    ) -> Result<Self> {
        let width = config.hidden_size;
        let masks = config.num_multimask_outputs + 1;
        let iou_token = vb.get((1, width), "iou_token.weight")?;
        let mask_tokens = vb.get((masks, width), "mask_tokens.weight")?;
        let hypernetworks = (0..masks)
            .map(|i| {
                let vb = vb.pp("output_hypernetworks_mlps").pp(i);
                mlp([width, width, width / 8], 3, vb)
            })
            .collect::<Result<_>>()?;
        Ok(Self {
            output_tokens: Tensor::cat(&[iou_token, mask_tokens], 0)?,
            transformer: TwoWayTransformer::load(vb.pp("transformer"), config, image_positions)?,
            upscale1: Upscale2x::load(width, width / 4, vb.pp("upscale_conv1"))?,
            upscale_norm: layer_norm(width / 4, 1e-6, vb.pp("upscale_layer_norm"))?,
            upscale2: Upscale2x::load(width / 4, width / 8, vb.pp("upscale_conv2"))?,
            hypernetworks,
            iou_head: mlp(
                [width, config.iou_head_hidden_dim, masks],
                config.iou_head_depth,
                vb.pp("iou_prediction_head"),
            )?,
        })
    }

    /// The embeddings of one image `[1, C, G, G]`, sparse prompts `[K, S, C]` and dense prompts
    /// `[K or 1, C, G or 1, G or 1]`. Returns one mask per prompt, or with `multimask` several masks of different
    /// extent.
    pub fn forward(
        &self,
        image_embeddings: &Tensor,
        sparse_embeddings: &Tensor,
        dense_embeddings: &Tensor,
        multimask: bool,
    ) -> Result<Masks> {
        let (tokens, image) =
            self.transform(image_embeddings, sparse_embeddings, dense_embeddings)?;
        let prompts = tokens.dim(0)?;
        let grid = image_embeddings.dim(2)?;
        let upscaled = self
            .upscale1
            .forward(&image.reshape((prompts, grid, grid, ()))?, Activation::None)?;
        let upscaled = self
            .upscale_norm
            .forward_activated(&upscaled, Activation::Gelu)?;
        let upscaled = self.upscale2.forward(&upscaled, Activation::Gelu)?;
        // [K, 16 G^2, C / 8]
        let upscaled = upscaled.flatten(1, 2)?;

        let selected = if multimask {
            1..self.hypernetworks.len()
        } else {
            0..1
        };
        let weights = selected
            .clone()
            .map(|i| self.hypernetworks[i].forward(&tokens.i((.., 1 + i))?.contiguous()?))
            .collect::<Result<Vec<_>>>()?;
        // [K, M, C / 8]
        let weights = Tensor::stack(&weights, 1)?;
        // the product of every mask's weights and every pixel
        let low_res_masks = products_by_image(&weights, &upscaled)?.reshape((
            prompts,
            selected.len(),
            4 * grid,
            4 * grid,
        ))?;
        let iou_scores = self
            .iou_head
            .forward(&tokens.i((.., 0))?.contiguous()?)?
            .narrow(1, selected.start, selected.len())?;
        Ok(Masks {
            low_res_masks,
            iou_scores,
        })
    }

    /// The outputs of the two-way transformer: tokens `[K, 1 + M + S, C]` and image `[K, G^2, C]`.
    pub fn transform(
        &self,
        image_embeddings: &Tensor,
        sparse_embeddings: &Tensor,
        dense_embeddings: &Tensor,
    ) -> Result<(Tensor, Tensor)> {
        let _span = tracing::debug_span!("two_way_transformer").entered();
        let (prompts, _, width) = sparse_embeddings.dims3()?;
        let output_tokens = self.output_tokens.unsqueeze(0)?;
        let count = output_tokens.dim(1)?;
        let output_tokens = output_tokens.broadcast_as((prompts, count, width))?;
        let tokens = Tensor::cat(&[&output_tokens.contiguous()?, sparse_embeddings], 1)?;
        let image = image_embeddings
            .broadcast_add(dense_embeddings)?
            .flatten_from(2)?
            .transpose(1, 2)?;
        self.transformer.forward(&tokens, &image.contiguous()?)
    }
}

/// `SamFeedForward`: `depth` linear layers, 2 or more, with ReLU between them. The sizes are the input, hidden and
/// output widths.
fn mlp([input, hidden, output]: [usize; 3], depth: usize, vb: VarBuilder) -> Result<Mlp> {
    let mut layers = vec![linear(input, hidden, vb.pp("proj_in"))?];
    for i in 0..depth.saturating_sub(2) {
        layers.push(linear(hidden, hidden, vb.pp("layers").pp(i))?);
    }
    layers.push(linear(hidden, output, vb.pp("proj_out"))?);
    Ok(Mlp::new(layers, candle_nn::Activation::Relu))
}
