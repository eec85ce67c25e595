//! Detect, then segment: one image and one prompt to objects with boxes and masks.
//!
//! The command line computes a prediction at once ([`Models::predict`]). The server goes [`stages`] by stages, each kept
//! for whoever asks next, and each a step of the [`scheduler`].

pub mod device;
pub mod loading;
pub mod plan;
pub mod scheduler;
pub mod stages;
pub mod timings;
pub mod warm;

use std::sync::Arc;
use std::time::{Duration, Instant};

use candle_core::Device;
use image::RgbImage;

pub use self::plan::Plan;
use self::warm::EmbeddingSource;
use crate::checkpoints::LocateError;
use crate::detector::{DetectError, DetectionOptions, Detector};
use crate::geometry::{BoundingBox, Detection, ImageSize};
use crate::models::weights::CheckpointError;
use crate::prompt::Prompt;
use crate::segmenter::{ScoredMask, SegmentError, Segmenter};

/// A detection and, where a segmenter is loaded and wanted, its mask.
#[derive(Debug, Clone, PartialEq)]
pub struct DetectedObject {
    /// What and where.
    pub detection: Detection,
    /// Its exact extent.
    pub mask: Option<Arc<ScoredMask>>,
}

/// What one image and one prompt gave.
#[derive(Debug, Clone, PartialEq)]
pub struct Prediction {
    /// The size of the image.
    pub size: ImageSize,
    /// The best first.
    pub objects: Vec<DetectedObject>,
}

impl Prediction {
    /// About the bytes of memory that it takes; nearly all of them are masks.
    pub fn bytes(&self) -> usize {
        let masks = self
            .objects
            .iter()
            .filter_map(|object| object.mask.as_ref());
        let masks: usize = masks.map(|scored| scored.bytes()).sum();
        masks + size_of_val(self.objects.as_slice())
    }
}

/// How long the models took for a prediction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ModelTimes {
    /// The detector.
    pub detector: Duration,
    /// The segmenter; zero where it had nothing to do.
    pub segmenter: Duration,
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
pub struct Models {
    detector: Detector,
    segmenter: Option<Segmenter>,
    /// Of the segmenter, if there is one.
    embedding_source: Option<EmbeddingSource>,
    device: Device,
}

impl Models {
    /// Finds and cuts out what the prompt names.
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

    /// Where they compute: `cpu`, or `cuda` with its number.
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

    /// The models of the repository.
    pub(crate) fn demo_models() -> Models {
        let device = Device::Cpu;
        Models {
            detector: Detector::load(&demo(Role::Detector), DType::F32, &device).unwrap(),
            segmenter: Some(Segmenter::load(&demo(Role::Segmenter), DType::F32, &device).unwrap()),
            embedding_source: Some(EmbeddingSource::new(demo(Role::Segmenter), DType::F32)),
            device,
        }
    }
}
