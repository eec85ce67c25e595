//! Detects objects, then segments them: one image and one prompt to objects with boxes and masks.
//!
//! The command line computes a prediction in one call ([`Models::predict`]). The server uses [`stages`]: each stage
//! is a step of the [`scheduler`], and its result is cached for later requests.

pub mod device;
pub mod handle;
mod identity;
mod loader;
pub mod scheduler;
pub mod settings;
pub mod stages;
pub mod timings;
pub mod warm;

use std::sync::Arc;
use std::time::{Duration, Instant};

use candle_core::Device;
use image::RgbImage;

pub use self::loader::ModelLoader;
use self::warm::EmbeddingSource;
use crate::checkpoints::LocateError;
use crate::detector::{DetectError, DetectionOptions, Detector};
use crate::geometry::{BoundingBox, Detection, ImageSize};
use crate::models::weights::CheckpointError;
use crate::prompt::Prompt;
use crate::segmenter::{ScoredMask, SegmentError, Segmenter};

/// A detection and its mask. The mask is `None` if no segmenter is loaded or masks were not requested.
#[derive(Debug, Clone, PartialEq)]
pub struct DetectedObject {
    /// The phrase, the score and the box.
    pub detection: Detection,
    /// The mask and its score.
    pub mask: Option<Arc<ScoredMask>>,
}

/// The result for one image and one prompt.
#[derive(Debug, Clone, PartialEq)]
pub struct Prediction {
    /// The size of the image.
    pub size: ImageSize,
    /// The objects, sorted by score, best first.
    pub objects: Vec<DetectedObject>,
}

impl Prediction {
    /// Approximate size in memory, in bytes; masks are nearly all of it.
    pub fn bytes(&self) -> usize {
        let masks = self
            .objects
            .iter()
            .filter_map(|object| object.mask.as_ref());
        let masks: usize = masks.map(|scored| scored.bytes()).sum();
        masks + size_of_val(self.objects.as_slice())
    }
}

/// The time that each model took for a prediction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ModelTimes {
    /// The detector.
    pub detector: Duration,
    /// The segmenter; zero if there was nothing to segment.
    pub segmenter: Duration,
}

/// Why there is no prediction.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PredictError {
    /// The detector failed.
    #[error(transparent)]
    Detect(#[from] DetectError),
    /// The segmenter failed.
    #[error(transparent)]
    Segment(#[from] SegmentError),
    /// A mask was requested, but no segmenter is loaded.
    #[error("no segmenter is loaded (SEGMENTER=none), so there can be no masks")]
    NoSegmenter,
}

/// Why the models cannot be loaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// The name is unknown, or its checkpoint cannot be downloaded.
    #[error(transparent)]
    Locate(#[from] LocateError),
    /// The checkpoint is invalid.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The device is not available.
    #[error("the device cannot be used: {0}")]
    Device(String),
    /// f16 was chosen for a CPU.
    #[error("PRECISION=f16 needs a GPU; on a CPU use f32 or bf16")]
    Precision,
}

/// The loaded models.
#[derive(Debug)]
pub struct Models {
    detector: Detector,
    segmenter: Option<Segmenter>,
    /// The source of the segmenter's embeddings; `None` without a segmenter.
    embedding_source: Option<EmbeddingSource>,
    device: Device,
}

impl Models {
    /// Detects and segments the objects that the prompt names.
    ///
    /// # Errors
    /// If the prompt does not fit the detector, or a model fails.
    pub fn predict(
        &self,
        image: &RgbImage,
        prompt: &Prompt,
        options: &DetectionOptions,
    ) -> Result<(Prediction, ModelTimes), PredictError> {
        let start = Instant::now();
        let detections = self.detector.detect(image, prompt, options)?;
        let detector = start.elapsed();

        let start = Instant::now();
        let masks = match &self.segmenter {
            Some(segmenter) if !detections.is_empty() => {
                let encoded = segmenter.encode(image)?;
                let boxes: Vec<BoundingBox> = detections.iter().map(|d| d.bounding_box).collect();
                segmenter.segment_boxes(&encoded, &boxes)?
            }
            _ => vec![],
        };
        let segmenter = match masks.is_empty() {
            true => Duration::ZERO,
            false => start.elapsed(),
        };
        let masks = masks.into_iter().map(|mask| Some(Arc::new(mask)));
        let objects = detections
            .into_iter()
            .zip(masks.chain(std::iter::repeat(None)));
        let prediction = Prediction {
            size: ImageSize::of(image),
            objects: objects
                .map(|(detection, mask)| DetectedObject { detection, mask })
                .collect(),
        };
        let times = ModelTimes {
            detector,
            segmenter,
        };
        Ok((prediction, times))
    }

    fn segmenter(&self) -> Result<&Segmenter, PredictError> {
        self.segmenter.as_ref().ok_or(PredictError::NoSegmenter)
    }

    /// The models' device: `cpu`, or `cuda:N` with its number.
    pub fn device(&self) -> String {
        device::name(&self.device)
    }
}

#[cfg(test)]
pub(crate) mod testing {
    use candle_core::{DType, Device};

    use super::Models;
    use super::warm::EmbeddingSource;
    use crate::checkpoints::Role;
    use crate::checkpoints::demo;
    use crate::detector::Detector;
    use crate::segmenter::Segmenter;

    /// The demo models of the repository.
    pub(crate) fn demo_models() -> Models {
        let device = Device::Cpu;
        Models {
            detector: Detector::load(&demo(Role::Detector).unwrap(), DType::F32, &device).unwrap(),
            segmenter: Some(
                Segmenter::load(&demo(Role::Segmenter).unwrap(), DType::F32, &device).unwrap(),
            ),
            embedding_source: Some(EmbeddingSource::new(
                demo(Role::Segmenter).unwrap(),
                DType::F32,
            )),
            device,
        }
    }
}
