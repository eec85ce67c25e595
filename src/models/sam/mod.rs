//! SAM, the segmenter (Kirillov et al. 2023, <https://arxiv.org/abs/2304.02643>), and the models that share its prompt
//! encoder and two-way transformer: SAM-HQ (Ke et al. 2023, <https://arxiv.org/abs/2306.01567>), SAM 2 on images (Ravi et
//! al. 2024, <https://arxiv.org/abs/2408.00714>), MobileSAM and EfficientViT-SAM.
//!
//! [`Sam::encode_image`] is the expensive part and does not depend on prompts. [`Sam::predict_masks`] can run any
//! number of prompts on its result.

pub mod config;
pub mod efficient_vit;
pub mod hiera;
pub mod image_encoder;
pub mod mask_decoder;
mod neck;
pub mod prompt_encoder;
pub mod tiny_vit;
pub mod two_way_transformer;
pub mod vit;

use candle_core::{DType, Result, Tensor};
use candle_nn::VarBuilder;

pub use config::{Config, Family};
pub use mask_decoder::Masks;
pub use prompt_encoder::{LabelledPoint, PointLabel};

use self::image_encoder::ImageEncoder;
use self::mask_decoder::MaskDecoder;
use self::prompt_encoder::{PositionEmbedding, PromptEncoder};
use crate::models::weights::ModelConfig;

/// `SamModel`.
#[derive(Debug, Clone)]
pub struct Sam {
    image_encoder: ImageEncoder,
    prompt_encoder: PromptEncoder,
    mask_decoder: MaskDecoder,
    /// `[1, G^2, C]`: the position embeddings of the image embedding's cells.
    image_positions: Tensor,
    config: Config,
}

/// What the image encoder computes of an image. Any number of prompts can use it.
#[derive(Debug, Clone)]
pub struct ImageEmbeddings {
    /// `[B, C, G, G]`: the image embedding.
    pub coarse: Tensor,
    /// Finer maps for the mask decoder, channels last: none in SAM, `[B, 4 G, 4 G, C / 8]` in SAM-HQ, and these and
    /// `[B, 2 G, 2 G, C / 4]` in SAM 2.
    pub fine: Vec<Tensor>,
}

impl ImageEmbeddings {
    /// All maps, the coarse one first.
    pub fn maps(&self) -> impl Iterator<Item = &Tensor> {
        std::iter::once(&self.coarse).chain(&self.fine)
    }

    /// The embeddings of one image of a batch.
    ///
    /// # Errors
    /// If the batch does not have that image.
    pub fn of_image(&self, image: usize) -> Result<Self> {
        let one = |map: &Tensor| map.narrow(0, image, 1);
        Ok(Self {
            coarse: one(&self.coarse)?,
            fine: self.fine.iter().map(one).collect::<Result<_>>()?,
        })
    }

    /// The embeddings in another dtype.
    ///
    /// # Errors
    /// If the conversion is not supported on the device.
    pub fn to_dtype(&self, dtype: DType) -> Result<Self> {
        let convert = |map: &Tensor| map.to_dtype(dtype);
        Ok(Self {
            coarse: convert(&self.coarse)?,
            fine: self.fine.iter().map(convert).collect::<Result<_>>()?,
        })
    }
}

/// The prompts for one image: `K` objects, each given by points, by a box, or by both, and optionally by an earlier
/// mask. Coordinates are in pixels of the model's input.
#[derive(Debug, Clone, Default)]
pub struct Prompts {
    /// For each object, its points. The number must be the same for all objects; [`PointLabel::Padding`] fills
    /// shorter lists.
    pub points: Option<Vec<Vec<LabelledPoint>>>,
    /// For each object, its box, xyxy.
    pub boxes: Option<Vec<[f32; 4]>>,
    /// `[K or 1, 1, 4 G, 4 G]`: mask logits of an earlier prediction.
    pub masks: Option<Tensor>,
}

impl Sam {
    /// Loads a checkpoint with the published tensor names.
    ///
    /// # Errors
    /// If the configuration is not supported, or a tensor is missing or has another shape; the message names it.
    pub fn load(vb: VarBuilder, config: &Config) -> Result<Self> {
        config.validate().map_err(candle_core::Error::msg)?;
        let features = config.prompt_encoder.hidden_size / 2;
        let positions = PositionEmbedding::load(features, vb.pp("shared_image_embedding"))?;
        let image_positions = positions.of_grid(config.grid(), vb.device())?;
        Ok(Self {
            image_encoder: ImageEncoder::load(vb.clone(), config)?,
            prompt_encoder: PromptEncoder::load(
                vb.pp("prompt_encoder"),
                &config.prompt_encoder,
                positions,
                config.family == Family::Sam2,
            )?,
            mask_decoder: MaskDecoder::load(vb, config, &image_positions)?,
            image_positions,
            config: config.clone(),
        })
    }

    /// The configuration that the model was loaded with.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The image encoder.
    pub fn image_encoder(&self) -> &ImageEncoder {
        &self.image_encoder
    }

    /// The prompt encoder.
    pub fn prompt_encoder(&self) -> &PromptEncoder {
        &self.prompt_encoder
    }

    /// The mask decoder.
    pub fn mask_decoder(&self) -> &MaskDecoder {
        &self.mask_decoder
    }

    /// `[1, G^2, C]`: the position embeddings of the image embedding's cells, row by row.
    pub fn image_positions(&self) -> &Tensor {
        &self.image_positions
    }

    /// Normalised, zero-padded pixels `[B, 3, S, S]` to the embeddings of the images. In SAM 2, the pixels are stretched
    /// to the square instead.
    pub fn encode_image(&self, pixel_values: &Tensor) -> Result<ImageEmbeddings> {
        let _span = tracing::debug_span!("image_encoder").entered();
        let maps = self.image_encoder.forward(pixel_values)?;
        Ok(ImageEmbeddings {
            fine: self.mask_decoder.fine_maps(&maps)?,
            coarse: maps.embeddings,
        })
    }

    /// The sparse embeddings `[K, S, C]` of the prompts' points and boxes.
    ///
    /// # Errors
    /// If there are neither points nor boxes, or their numbers of objects differ.
    pub fn embed_prompts(&self, prompts: &Prompts) -> Result<Tensor> {
        let encoder = &self.prompt_encoder;
        match (&prompts.points, &prompts.boxes) {
            (Some(points), None) => encoder.embed_points(points, true),
            (None, Some(boxes)) => encoder.embed_boxes(boxes),
            (Some(points), Some(boxes)) if points.len() == boxes.len() => Tensor::cat(
                &[
                    encoder.embed_points(points, false)?,
                    encoder.embed_boxes(boxes)?,
                ],
                1,
            ),
            (Some(points), Some(boxes)) => candle_core::bail!(
                "the prompts have points for {} objects, but boxes for {}",
                points.len(),
                boxes.len()
            ),
            (None, None) => candle_core::bail!("the prompts have neither points nor boxes"),
        }
    }

    /// The masks of `K` prompts for the embeddings of one image: one mask per prompt, or with `multimask` several
    /// masks of different extent.
    ///
    /// # Errors
    /// See [`Sam::embed_prompts`].
    pub fn predict_masks(
        &self,
        image: &ImageEmbeddings,
        prompts: &Prompts,
        multimask: bool,
    ) -> Result<Masks> {
        let _span = tracing::debug_span!("mask_decoder").entered();
        let sparse = self.embed_prompts(prompts)?;
        let dense = self.prompt_encoder.embed_masks(prompts.masks.as_ref())?;
        self.mask_decoder.forward(image, &sparse, &dense, multimask)
    }
}
