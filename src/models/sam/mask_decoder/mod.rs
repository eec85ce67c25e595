//! The mask decoder: image and prompt embeddings to masks and their predicted quality.

mod high_quality;
mod high_resolution;
mod stability;

use candle_core::{IndexOp, Result, Tensor};
use candle_nn::VarBuilder;

use self::high_quality::HighQuality;
use self::high_resolution::HighResolution;
use self::stability::Stability;
use super::ImageEmbeddings;
use super::config::{Config, Family};
use super::image_encoder::ImageMaps;
use super::two_way_transformer::TwoWayTransformer;
use crate::models::layers::{LayerNorm, Mlp, Upscale2x, layer_norm, linear};
use crate::models::ops::{Activation, products_by_image};

/// `SamMaskDecoder`, `SamHQMaskDecoder` or `Sam2MaskDecoder`.
#[derive(Debug, Clone)]
pub struct MaskDecoder {
    /// `[T, C]`: the IoU token and the mask tokens. In SAM-HQ, its token follows; in SAM 2, that of the object score
    /// precedes them.
    output_tokens: Tensor,
    /// The index of the IoU token.
    iou_token: usize,
    transformer: TwoWayTransformer,
    upscale1: Upscale2x,
    upscale_norm: LayerNorm,
    upscale2: Upscale2x,
    hypernetworks: Vec<Mlp>,
    iou_head: Mlp,
    extension: Extension,
}

/// What a model has in addition to SAM.
#[derive(Debug, Clone)]
enum Extension {
    None,
    HighQuality(Box<HighQuality>),
    Sam2(Box<Sam2>),
}

#[derive(Debug, Clone)]
struct Sam2 {
    high_resolution: HighResolution,
    object_score_head: Mlp,
    stability: Option<Stability>,
}

/// The masks of `K` prompts.
#[derive(Debug, Clone)]
pub struct Masks {
    /// `[K, M, 4 G, 4 G]`: mask logits; values above 0 are set.
    pub low_res_masks: Tensor,
    /// `[K, M]`: the predicted IoU of each mask with the object.
    pub iou_scores: Tensor,
    /// SAM 2, `[K, 1]`: the logits that there is an object. On videos they tell whether it is still visible; the
    /// reference does not use them on images.
    pub object_scores: Option<Tensor>,
}

impl MaskDecoder {
    /// Loads `mask_decoder` from the root of a checkpoint: the tokens, `transformer`, `upscale_*`,
    /// `output_hypernetworks_mlps.{i}`, `iou_prediction_head`, and what SAM-HQ or SAM 2 have in addition.
    /// `image_positions` are `[1, G^2, C]`.
    pub fn load(root: VarBuilder, config: &Config, image_positions: &Tensor) -> Result<Self> {
        let vb = root.pp("mask_decoder");
        let decoder = &config.mask_decoder;
        let width = decoder.hidden_size;
        let masks = decoder.num_multimask_outputs + 1;
        let token = |name: &str, count: usize| vb.get((count, width), &format!("{name}.weight"));
        let mut output_tokens = vec![token("iou_token", 1)?, token("mask_tokens", masks)?];
        let mut iou_token = 0;
        let extension = match config.family {
            Family::Sam => Extension::None,
            Family::SamHq => {
                output_tokens.push(token("hq_token", 1)?);
                Extension::HighQuality(Box::new(HighQuality::load(vb.clone(), decoder)?))
            }
            Family::Sam2 => {
                output_tokens.insert(0, token("obj_score_token", 1)?);
                iou_token = 1;
                let head = mlp([width, width, 1], 3, vb.pp("pred_obj_score_head"))?;
                Extension::Sam2(Box::new(Sam2 {
                    high_resolution: HighResolution::load(root, config)?,
                    object_score_head: head,
                    stability: Stability::new(decoder),
                }))
            }
        };
        let hypernetworks = (0..masks)
            .map(|i| {
                let vb = vb.pp("output_hypernetworks_mlps").pp(i);
                mlp([width, width, width / 8], 3, vb)
            })
            .collect::<Result<_>>()?;
        Ok(Self {
            output_tokens: Tensor::cat(&output_tokens, 0)?,
            iou_token,
            transformer: TwoWayTransformer::load(vb.pp("transformer"), decoder, image_positions)?,
            upscale1: Upscale2x::load(width, width / 4, vb.pp("upscale_conv1"))?,
            upscale_norm: layer_norm(width / 4, 1e-6, vb.pp("upscale_layer_norm"))?,
            upscale2: Upscale2x::load(width / 4, width / 8, vb.pp("upscale_conv2"))?,
            hypernetworks,
            iou_head: mlp(
                [width, decoder.iou_head_hidden_dim, masks],
                decoder.iou_head_depth,
                vb.pp("iou_prediction_head"),
            )?,
            extension,
        })
    }

    /// The finer maps of an image that the decoder needs, from the maps of the image encoder. They do not depend on
    /// prompts.
    pub fn fine_maps(&self, image: &ImageMaps) -> Result<Vec<Tensor>> {
        match &self.extension {
            Extension::None => Ok(vec![]),
            Extension::HighQuality(high_quality) => Ok(vec![high_quality.features(image)?]),
            Extension::Sam2(sam2) => sam2.high_resolution.fine_maps(image),
        }
    }

    /// The embeddings of one image, sparse prompts `[K, S, C]` and dense prompts `[K or 1, C, G or 1, G or 1]`. Returns
    /// one mask per prompt, or with `multimask` several masks of different extent.
    pub fn forward(
        &self,
        image: &ImageEmbeddings,
        sparse_embeddings: &Tensor,
        dense_embeddings: &Tensor,
        multimask: bool,
    ) -> Result<Masks> {
        let (tokens, cells) = self.transform(&image.coarse, sparse_embeddings, dense_embeddings)?;
        let (prompts, grid) = (tokens.dim(0)?, image.coarse.dim(2)?);
        let cells = cells.reshape((prompts, grid, grid, ()))?;
        let upscaled = self.upscale(&cells, image)?;

        let all = self.hypernetworks.len();
        let unstable = match &self.extension {
            Extension::Sam2(sam2) if !multimask => sam2.stability.as_ref(),
            _ => None,
        };
        let selected = match (multimask, unstable) {
            (true, _) => 1..all,
            (false, None) => 0..1,
            (false, Some(_)) => 0..all,
        };
        let first = 1 + self.iou_token;
        let weights = selected
            .clone()
            .map(|i| self.hypernetworks[i].forward(&tokens.i((.., first + i))?.contiguous()?))
            .collect::<Result<Vec<_>>>()?;
        // [K, M, C / 8]
        let weights = Tensor::stack(&weights, 1)?;
        // the product of every mask's weights and every pixel
        let mut low_res_masks = products_by_image(&weights, &upscaled.flatten(1, 2)?)?;
        let mut object_scores = None;
        let mut iou_scores = self
            .iou_head
            .forward(&tokens.i((.., self.iou_token))?.contiguous()?)?
            .narrow(1, selected.start, selected.len())?;
        match &self.extension {
            Extension::None => {}
            Extension::HighQuality(high_quality) => {
                let token = tokens.i((.., first + all))?.contiguous()?;
                let mask = high_quality.mask(&token, &upscaled, &image.fine)?;
                low_res_masks = low_res_masks.broadcast_add(&mask)?;
            }
            Extension::Sam2(sam2) => {
                let token = tokens.i((.., 0))?.contiguous()?;
                object_scores = Some(sam2.object_score_head.forward(&token)?);
                iou_scores = candle_nn::ops::sigmoid(&iou_scores)?;
            }
        }
        if let Some(stability) = unstable {
            (low_res_masks, iou_scores) = stability.select(&low_res_masks, &iou_scores)?;
        }
        let side = 4 * grid;
        Ok(Masks {
            low_res_masks: low_res_masks.reshape((prompts, (), side, side))?,
            iou_scores,
            object_scores,
        })
    }

    /// Cells `[K, G, G, C]` to pixels `[K, 4 G, 4 G, C / 8]`. In SAM 2, the finer maps of the image are added before the
    /// activations.
    fn upscale(&self, cells: &Tensor, image: &ImageEmbeddings) -> Result<Tensor> {
        let Extension::Sam2(_) = &self.extension else {
            let upscaled = self.upscale1.forward(cells, Activation::None)?;
            let upscaled = self
                .upscale_norm
                .forward_activated(&upscaled, Activation::Gelu)?;
            return self.upscale2.forward(&upscaled, Activation::Gelu);
        };
        let [fine, middle] = &image.fine[..] else {
            candle_core::bail!(
                "SAM 2 needs two finer maps of the image, not {}",
                image.fine.len()
            )
        };
        let upscaled = self
            .upscale1
            .forward_added(cells, middle, Activation::None)?;
        let upscaled = self
            .upscale_norm
            .forward_activated(&upscaled, Activation::Gelu)?;
        self.upscale2
            .forward_added(&upscaled, fine, Activation::Gelu)
    }

    /// The outputs of the two-way transformer: tokens `[K, T + S, C]` and image `[K, G^2, C]`, for an image embedding
    /// `[1, C, G, G]`.
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
