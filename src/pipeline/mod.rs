//! Detect, then segment: one image and one prompt to objects with boxes and masks. Synchronous; the
//! server runs it on the thread of [`worker`].

pub mod device;
mod embeddings;
pub mod plan;
pub mod worker;

use std::time::{Duration, Instant};

use candle_core::Device;
use image::RgbImage;

use self::embeddings::Embeddings;
pub use self::embeddings::ImageKey;
pub use self::plan::Plan;
use crate::checkpoints::LocateError;
use crate::detector::{DetectError, DetectionOptions, Detector};
use crate::geometry::{BoundingBox, Detection, ImageSize, Mark};
use crate::models::weights::CheckpointError;
use crate::prompt::Prompt;
use crate::segmenter::{EncodedImage, ScoredMask, SegmentError, Segmenter};

/// A detection and, where a segmenter is loaded and wanted, its mask.
#[derive(Debug, Clone, PartialEq)]
pub struct DetectedObject {
    /// What and where.
    pub detection: Detection,
    /// Its exact extent.
    pub mask: Option<ScoredMask>,
}

/// What one image and one prompt gave.
#[derive(Debug, Clone, PartialEq)]
pub struct Prediction {
    /// The size of the image.
    pub size: ImageSize,
    /// The best first.
    pub objects: Vec<DetectedObject>,
    /// How long the detector took.
    pub detector_time: Duration,
    /// How long the segmenter took; zero where it had nothing to do.
    pub segmenter_time: Duration,
}

/// Why there is no prediction.
#[derive(Debug, thiserror::Error)]
pub enum PredictError {
    /// The first half failed.
    #[error(transparent)]
    Detect(#[from] DetectError),
    /// The second half failed.
    #[error(transparent)]
    Segment(#[from] SegmentError),
    /// A mask was asked for, and nothing can make one.
    #[error("no segmenter is loaded (SEGMENTER=none), so nothing can be cut out")]
    NoSegmenter,
}

/// Why there are no models.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A name that is no checkpoint, or one that cannot be had.
    #[error(transparent)]
    Locate(#[from] LocateError),
    /// A checkpoint that cannot be used.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The device is not there.
    #[error("cannot compute on the chosen device: {0}")]
    Device(String),
    /// f16, on a CPU.
    #[error("PRECISION=f16 needs a GPU: a CPU computes in f32, or with PRECISION=bf16")]
    Precision,
}

/// The loaded models.
#[derive(Debug)]
pub struct Pipeline {
    detector: Detector,
    segmenter: Option<Segmenter>,
    embeddings: Embeddings,
    device: Device,
}

impl Pipeline {
    /// Finds and cuts out what the prompt names.
    ///
    /// # Errors
    /// If the prompt does not fit the detector, or a model fails.
    pub fn predict(
        &self,
        image: &RgbImage,
        prompt: &Prompt,
        options: &DetectionOptions,
        with_masks: bool,
    ) -> Result<Prediction, PredictError> {
        let start = Instant::now();
        let found = self.detector.detect(&[(image, prompt)], options)?;
        let detections: Vec<Detection> = found.into_iter().flatten().collect();
        let detector_time = start.elapsed();

        let start = Instant::now();
        let masks = match &self.segmenter {
            Some(segmenter) if with_masks && !detections.is_empty() => {
                let encoded = segmenter.encode(image)?;
                let boxes: Vec<BoundingBox> = detections.iter().map(|d| d.bounding_box).collect();
                segmenter.segment_boxes(&encoded, &boxes)?
            }
            _ => vec![],
        };
        let segmenter_time = if masks.is_empty() {
            Duration::ZERO
        } else {
            start.elapsed()
        };
        let masks = masks.into_iter().map(Some).chain(std::iter::repeat(None));
        Ok(Prediction {
            size: ImageSize::of(image),
            objects: detections
                .into_iter()
                .zip(masks)
                .map(|(detection, mask)| DetectedObject { detection, mask })
                .collect(),
            detector_time,
            segmenter_time,
        })
    }

    /// As [`Self::predict`], but a phrase that the model cannot read is left out: nobody typed it, it is one
    /// label of many.
    ///
    /// # Errors
    /// If no phrase can be read, or a model fails.
    pub fn predict_readable(
        &self,
        image: &RgbImage,
        prompt: &Prompt,
        options: &DetectionOptions,
        with_masks: bool,
    ) -> Result<Prediction, PredictError> {
        let mut readable = prompt.clone();
        for phrase in self.detector.unreadable(prompt)? {
            tracing::warn!(
                phrase,
                "the detector cannot read this label: it is not looked for"
            );
            // where nothing is left, the prediction below says so
            readable = readable.without(&phrase).unwrap_or(readable);
        }
        self.predict(image, &readable, options, with_masks)
    }

    /// The image embedding of an image that was marked before; `None` if it is not kept.
    pub fn remembered(&self, key: &ImageKey) -> Option<EncodedImage> {
        self.embeddings.get(key)
    }

    /// Encodes an image for marks, and keeps its embedding.
    ///
    /// # Errors
    /// If no segmenter is loaded, or the model fails.
    pub fn encode(&self, key: ImageKey, image: &RgbImage) -> Result<EncodedImage, PredictError> {
        let encoded = self.segmenter()?.encode(image)?;
        self.embeddings.keep(key, encoded.clone());
        Ok(encoded)
    }

    /// Cuts out what an annotator marked, one mask per mark, in their order.
    ///
    /// # Errors
    /// If no segmenter is loaded, or the model fails.
    pub fn cut_out(
        &self,
        image: &EncodedImage,
        marks: &[Mark],
    ) -> Result<Vec<ScoredMask>, PredictError> {
        let segmenter = self.segmenter()?;
        let masks = marks.iter().map(|m| segmenter.segment_mark(image, m));
        Ok(masks.collect::<Result<_, _>>()?)
    }

    fn segmenter(&self) -> Result<&Segmenter, PredictError> {
        self.segmenter.as_ref().ok_or(PredictError::NoSegmenter)
    }

    /// Where it computes: `cpu`, or `cuda` with its number.
    pub fn device(&self) -> String {
        device::name(&self.device)
    }
}
