//! The segmenter: from boxes and points to masks.

mod band;
mod bilinear;
mod encoded;
pub mod image_processor;
pub mod post_process;

use std::fmt;

use candle_core::{DType, Device};
use image::RgbImage;
use rayon::prelude::*;

pub use self::encoded::{BytesError, EMBEDDING_FORMAT, EncodedImage};
use self::image_processor::{Frame, ImageProcessor};
use self::post_process::upscale_mask;
use crate::geometry::{BoundingBox, Mark, Mask, Point};
use crate::models::sam::{Config, Masks, PointLabel, Prompts, Sam};
use crate::models::weights::{Checkpoint, CheckpointError, tensor_type};
use crate::pixels::ResizeError;

/// Why a segmentation failed.
#[derive(Debug, thiserror::Error)]
pub enum SegmentError {
    /// The image has no pixels.
    #[error(transparent)]
    Image(#[from] ResizeError),
    /// The model failed.
    #[error("the segmenter failed: {0}")]
    Model(#[from] candle_core::Error),
}

/// A mask and the model's estimate of its quality.
#[derive(Debug, Clone, PartialEq)]
pub struct ScoredMask {
    /// The mask, in the image's size.
    pub mask: Mask,
    /// The predicted IoU of the mask with the object, about 0..1.
    pub score: f32,
}

impl ScoredMask {
    /// Approximate size in memory, in bytes.
    pub fn bytes(&self) -> usize {
        256 + size_of_val(self.mask.runs())
    }
}

/// A low-resolution mask from the model, a quarter of the input's side, before it is scaled to the image.
#[derive(Debug, Clone)]
pub struct SmallMask {
    logits: Vec<f32>,
    score: f32,
    input_side: usize,
    frame: Frame,
}

impl SmallMask {
    /// Scales the mask to the image's size. It needs no model, so any thread can do it.
    pub fn to_image_size(&self) -> ScoredMask {
        ScoredMask {
            mask: upscale_mask(&self.logits, self.input_side, self.frame),
            score: self.score,
        }
    }
}

/// SAM with its pre- and postprocessing.
pub struct Segmenter {
    model: Sam,
    images: ImageProcessor,
    device: Device,
    /// The dtype of its tensors.
    dtype: DType,
}

impl fmt::Debug for Segmenter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Segmenter")
            .field("images", &self.images)
            .finish_non_exhaustive()
    }
}

/// The file that configures the normalisation of images.
const IMAGES: &str = "preprocessor_config.json";

/// Boxes per run of the mask decoder. Each box takes about 20 MB of image tokens and upscaled maps at SAM's size.
/// Four boxes per run take 5 % less time than one.
pub const BOXES_AT_ONCE: usize = 4;

impl Segmenter {
    /// Loads a checkpoint. Without a preprocessor configuration, SAM's usual normalisation is used.
    ///
    /// # Errors
    /// If a file is missing, damaged, or has another architecture; the message names the file.
    pub fn load(
        checkpoint: &Checkpoint,
        dtype: DType,
        device: &Device,
    ) -> Result<Self, CheckpointError> {
        let (weights, config) = checkpoint.open_model::<Config>()?;
        let images = checkpoint.companion(IMAGES, ImageProcessor::validate)?;
        let model = weights.load(dtype, device, |vb| Sam::load(vb, &config))?;
        Ok(Self {
            model,
            images,
            device: device.clone(),
            dtype: tensor_type(dtype, device),
        })
    }

    /// The configuration of the model.
    pub fn config(&self) -> &Config {
        self.model.config()
    }

    /// Runs the image encoder.
    ///
    /// # Errors
    /// If the image has no pixels or the model fails.
    pub fn encode(&self, image: &RgbImage) -> Result<EncodedImage, SegmentError> {
        let _span = tracing::debug_span!("encode").entered();
        let (pixels, frame) = tracing::debug_span!("preprocess").in_scope(|| {
            self.images
                .process(image, self.input_side(), self.dtype, &self.device)
        })?;
        Ok(EncodedImage {
            embeddings: self.model.encode_image(&pixels)?,
            frame,
        })
    }

    /// One mask per box, in the same order.
    ///
    /// # Errors
    /// If the model fails.
    pub fn segment_boxes(
        &self,
        image: &EncodedImage,
        boxes: &[BoundingBox],
    ) -> Result<Vec<ScoredMask>, SegmentError> {
        let _span = tracing::debug_span!("segment", boxes = boxes.len()).entered();
        let mut masks = vec![];
        for boxes in boxes.chunks(BOXES_AT_ONCE) {
            let small = self.small_masks(image, boxes)?;
            let _span = tracing::debug_span!("post_process").entered();
            let scaled = small.par_iter().map(SmallMask::to_image_size);
            masks.extend(scaled.collect::<Vec<_>>());
        }
        Ok(masks)
    }

    /// One low-resolution mask per box, in the same order. All boxes run in one pass, at most [`BOXES_AT_ONCE`].
    ///
    /// # Errors
    /// If the model fails.
    pub fn small_masks(
        &self,
        image: &EncodedImage,
        boxes: &[BoundingBox],
    ) -> Result<Vec<SmallMask>, SegmentError> {
        let prompts = Prompts {
            boxes: Some(boxes.iter().map(|b| image.frame.corners(*b)).collect()),
            ..Prompts::default()
        };
        let predicted = self
            .model
            .predict_masks(&image.embeddings, &prompts, false)?;
        self.best_masks(&predicted, image.frame)
    }

    /// The mask of the object that an annotator marked. Points alone are ambiguous about the extent of the object, so
    /// the model predicts several masks, and the one with the best predicted IoU is returned.
    ///
    /// # Errors
    /// If the mark is empty, or the model fails.
    pub fn segment_mark(
        &self,
        image: &EncodedImage,
        mark: &Mark,
    ) -> Result<SmallMask, SegmentError> {
        let label = |point: &Point| match point.is_positive {
            true => PointLabel::Foreground,
            false => PointLabel::Background,
        };
        let points = mark.points.iter();
        let points: Vec<_> = points
            .map(|p| (image.frame.point((p.x, p.y)), label(p)))
            .collect();
        let prompts = Prompts {
            points: (!points.is_empty()).then(|| vec![points]),
            boxes: mark.bounding_box.map(|b| vec![image.frame.corners(b)]),
            ..Prompts::default()
        };
        let is_ambiguous = mark.bounding_box.is_none();
        let predicted = self
            .model
            .predict_masks(&image.embeddings, &prompts, is_ambiguous)?;
        let masks = self.best_masks(&predicted, image.frame)?;
        masks.into_iter().next().ok_or_else(|| {
            SegmentError::Model(candle_core::Error::Msg("no mask came back".to_owned()))
        })
    }

    /// The shape of an image embedding, `[1, C, G, G]`.
    fn embedding_shape(&self) -> [usize; 4] {
        let vision = &self.model.config().vision_config;
        [1, vision.output_channels, vision.grid(), vision.grid()]
    }

    fn input_side(&self) -> usize {
        self.model.config().vision_config.image_size
    }

    /// For each prompt, the mask with the best predicted IoU.
    fn best_masks(&self, masks: &Masks, frame: Frame) -> Result<Vec<SmallMask>, SegmentError> {
        let scores: Vec<Vec<f32>> = masks.iou_scores.to_dtype(DType::F32)?.to_vec2()?;
        let logits = masks.low_res_masks.to_dtype(DType::F32)?.flatten_from(2)?;
        // one copy for all: each copy from a GPU waits for it
        let logits = logits.to_device(&Device::Cpu)?;
        let mut best = vec![];
        for (prompt, scores) in scores.iter().enumerate() {
            let ranked = scores.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
            if let Some((index, score)) = ranked {
                let logits: Vec<f32> = logits.get(prompt)?.get(index)?.to_vec1()?;
                best.push(SmallMask {
                    logits,
                    score: *score,
                    input_side: self.input_side(),
                    frame,
                });
            }
        }
        Ok(best)
    }
}
