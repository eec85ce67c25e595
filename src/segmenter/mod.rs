//! The segmenter: from boxes and points to masks.

mod band;
mod bilinear;
mod encoded;
pub mod image_processor;
mod interactive;
pub mod post_process;
mod scaling;

use std::fmt;
use std::sync::Arc;

use candle_core::{DType, Device};
use image::RgbImage;
use rayon::prelude::*;

pub use self::encoded::{EMBEDDING_FORMAT, EmbeddingFormatError, EncodedImage};
use self::image_processor::{Fit, Frame, ImageProcessor};
use self::post_process::upscale_mask;
use crate::geometry::{BoundingBox, ImageSize, Mask, MaskCleanup};
use crate::models::DeviceFailure;
use crate::models::sam::{Config, Family, Masks, Prompts, Sam};
use crate::models::weights::{Checkpoint, CheckpointError, tensor_dtype};
use crate::pixels::ResizeError;

/// Why a segmentation failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SegmentError {
    /// The image has no pixels.
    #[error(transparent)]
    Image(#[from] ResizeError),
    /// The earlier mask is not one of this image, or not one of this model.
    #[error(
        "the earlier mask belongs to an image of another size, or to a model with another input size"
    )]
    EarlierMask,
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

    /// The mask without small holes and islands; the same one if the options change nothing.
    pub fn cleaned(self: &Arc<Self>, cleanup: MaskCleanup) -> Arc<Self> {
        if cleanup == MaskCleanup::default() {
            return self.clone();
        }
        Arc::new(Self {
            mask: cleanup.apply(self.mask.clone()),
            score: self.score,
        })
    }
}

/// A low-resolution mask from the model, a quarter of the input's side, before it is scaled to the image.
#[derive(Debug, Clone)]
pub struct LowResMask {
    logits: Vec<f32>,
    score: f32,
    input_side: usize,
    frame: Frame,
}

impl LowResMask {
    /// Size in memory, in bytes.
    pub fn bytes(&self) -> usize {
        size_of_val(self.logits.as_slice())
    }

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
    image_processor: ImageProcessor,
    device: Device,
    /// The dtype of its tensors.
    dtype: DType,
}

impl fmt::Debug for Segmenter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Segmenter")
            .field("image_processor", &self.image_processor)
            .finish_non_exhaustive()
    }
}

/// Boxes per pass of the mask decoder on a CPU. Each box takes about 20 MB of image tokens and upscaled maps at SAM's size.
/// Four boxes per pass take 5 % less time than one.
const BOXES_PER_PASS: usize = 4;
/// The same on a GPU: a pass has the same number of launches and copies for any number of boxes, which is most of the time
/// of a small one.
const BOXES_PER_GPU_PASS: usize = 32;

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
        let (weights, config, image_processor) =
            checkpoint.open_with_processor::<Config, _>(ImageProcessor::validate)?;
        let model = weights.load(dtype, device, |vb| Sam::load(vb, &config))?;
        Ok(Self {
            model,
            image_processor,
            device: device.clone(),
            dtype: tensor_dtype(dtype, device),
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
        let side = self.config().input_side();
        let (pixels, _) = tracing::debug_span!("preprocess").in_scope(|| {
            self.image_processor
                .process(image, (side, self.fit()), self.dtype, &self.device)
        })?;
        Ok(EncodedImage {
            embeddings: self.model.encode_image(&pixels)?,
            frame: self.frame(ImageSize::of(image)),
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
        for boxes in boxes.chunks(self.boxes_per_pass()) {
            let low_res = self.low_res_masks(image, boxes)?;
            let _span = tracing::debug_span!("post_process").entered();
            let scaled = low_res.par_iter().map(LowResMask::to_image_size);
            masks.extend(scaled.collect::<Vec<_>>());
        }
        Ok(masks)
    }

    /// The number of boxes of a pass of the mask decoder.
    pub fn boxes_per_pass(&self) -> usize {
        match self.device.is_cpu() {
            true => BOXES_PER_PASS,
            false => BOXES_PER_GPU_PASS,
        }
    }

    /// One low-resolution mask per box, in the same order. All boxes run in one pass, at most [`Self::boxes_per_pass`],
    /// or in smaller ones if the device has too little memory.
    ///
    /// # Errors
    /// If the model fails.
    pub fn low_res_masks(
        &self,
        image: &EncodedImage,
        boxes: &[BoundingBox],
    ) -> Result<Vec<LowResMask>, SegmentError> {
        match self.masks_of_pass(image, boxes) {
            Err(SegmentError::Model(error))
                if boxes.len() > 1
                    && DeviceFailure::of(&error) == Some(DeviceFailure::OutOfMemory) =>
            {
                tracing::warn!(
                    boxes = boxes.len(),
                    "the device has too little memory for a pass with these boxes; they run in two passes"
                );
                let (first, second) = boxes.split_at(boxes.len() / 2);
                let mut masks = self.low_res_masks(image, first)?;
                masks.extend(self.low_res_masks(image, second)?);
                Ok(masks)
            }
            result => result,
        }
    }

    fn masks_of_pass(
        &self,
        image: &EncodedImage,
        boxes: &[BoundingBox],
    ) -> Result<Vec<LowResMask>, SegmentError> {
        let prompts = Prompts {
            boxes: Some(boxes.iter().map(|b| image.frame.corners(*b)).collect()),
            ..Prompts::default()
        };
        let predicted = self
            .model
            .predict_masks(&image.embeddings, &prompts, false)?;
        self.best_masks(&predicted, image.frame)
    }

    /// Rows, and columns, of the square in which the model's prompts have their coordinates.
    fn prompt_side(&self) -> usize {
        self.config().prompt_side()
    }

    /// How the model's images are fitted into its input.
    fn fit(&self) -> Fit {
        match self.config().family {
            Family::Sam | Family::SamHq => Fit::LongestSide,
            Family::Sam2 => Fit::Stretched,
        }
    }

    /// The position of an image in the square of the prompts.
    fn frame(&self, image: ImageSize) -> Frame {
        Frame::new(image, self.prompt_side(), self.fit())
    }

    /// For each prompt, the mask with the best predicted IoU.
    fn best_masks(&self, masks: &Masks, frame: Frame) -> Result<Vec<LowResMask>, SegmentError> {
        let scores: Vec<Vec<f32>> = masks.iou_scores.to_dtype(DType::F32)?.to_vec2()?;
        let logits = masks.low_res_masks.to_dtype(DType::F32)?.flatten_from(2)?;
        // one copy for all: each copy from a GPU waits for it
        let logits = logits.to_device(&Device::Cpu)?;
        let mut best = vec![];
        for (prompt, scores) in scores.iter().enumerate() {
            let ranked = scores.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
            if let Some((index, score)) = ranked {
                let logits: Vec<f32> = logits.get(prompt)?.get(index)?.to_vec1()?;
                best.push(LowResMask {
                    logits,
                    score: *score,
                    input_side: self.prompt_side(),
                    frame,
                });
            }
        }
        Ok(best)
    }
}
