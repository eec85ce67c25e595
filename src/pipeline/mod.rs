//! Detects objects, then segments them: one image and one prompt to objects with boxes and masks.
//!
//! The command line computes a prediction in one call ([`Models::predict`]). The server uses [`stages`]: each stage
//! is a step of the [`scheduler`], and its result is cached for later requests.

pub mod device;
pub mod handle;
mod identity;
mod loader;
mod merge;
mod query;
pub mod scheduler;
pub mod settings;
pub mod stages;
pub mod tiles;
pub mod timings;
pub mod warm;

use std::sync::Arc;
use std::time::{Duration, Instant};

use candle_core::Device;
use image::RgbImage;

pub use self::loader::ModelLoader;
use self::merge::PlacedDetection;
use self::query::WindowQueries;
pub use self::query::{Query, Rating};
use self::warm::EmbeddingSource;
use crate::checkpoints::LocateError;
use crate::detector::{CaptionPass, DetectError, Detector, Queries};
use crate::geometry::{BoundingBox, Detection, ImageSize, MaskCleanup, Window};
use crate::models::DeviceFailure;
use crate::models::weights::CheckpointError;
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
    /// The best candidate below the thresholds, if there are no objects.
    pub best_rejected: Option<Detection>,
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

    /// The prediction with masks without small holes and islands.
    pub fn with_clean_masks(mut self, cleanup: MaskCleanup) -> Self {
        for object in &mut self.objects {
            object.mask = object.mask.as_ref().map(|mask| mask.cleaned(cleanup));
        }
        self
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
    /// Something was searched for, but no detector is loaded.
    #[error(
        "no detector is loaded (DETECTOR=none), so nothing can be searched for: only objects that are marked by hand can be segmented"
    )]
    NoDetector,
    /// A mask was requested, but no segmenter is loaded.
    #[error("no segmenter is loaded (SEGMENTER=none), so there can be no masks")]
    NoSegmenter,
}

impl PredictError {
    /// Whether the device failed, and how.
    pub fn device_failure(&self) -> Option<DeviceFailure> {
        match self {
            Self::Detect(DetectError::Model(error)) | Self::Segment(SegmentError::Model(error)) => {
                DeviceFailure::of(error)
            }
            _ => None,
        }
    }
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
    /// Neither model was chosen.
    #[error("DETECTOR=none and SEGMENTER=none leave no model to run: set one of them")]
    NoModels,
    /// f16 was chosen for a CPU.
    #[error("PRECISION=f16 needs a GPU; on a CPU use f32 or bf16")]
    Precision,
}

/// The loaded models.
#[derive(Debug)]
pub struct Models {
    detector: Option<Detector>,
    segmenter: Option<Segmenter>,
    /// The source of the segmenter's embeddings; `None` without a segmenter.
    embedding_source: Option<EmbeddingSource>,
    device: Device,
}

impl Models {
    /// Detects and segments the objects of a query.
    ///
    /// # Errors
    /// If the prompt does not fit the detector, or a model fails.
    pub fn predict(
        &self,
        image: &RgbImage,
        query: &Query,
    ) -> Result<(Prediction, ModelTimes), PredictError> {
        let size = ImageSize::of(image);
        let start = Instant::now();
        let detector = self.detector()?;
        let passes = detector.passes(&query.prompt)?;
        let windows = query.windows(size, detector);
        let windows = windows.into_iter().map(|searched| {
            let queries = queries(detector, image, searched.window, &passes)?;
            Ok::<_, DetectError>(WindowQueries { searched, queries })
        });
        let windows: Vec<WindowQueries> = windows.collect::<Result<_, _>>()?;
        let (found, best_rejected) = query.objects(&passes, &windows);
        let detector_time = start.elapsed();

        let start = Instant::now();
        let masks = match &self.segmenter {
            Some(segmenter) if query.with_masks => segment(segmenter, image, &found)?,
            _ => vec![],
        };
        let segmenter_time = match masks.is_empty() {
            true => Duration::ZERO,
            false => start.elapsed(),
        };
        let masks = masks.into_iter().map(|mask| Some(Arc::new(mask)));
        let objects = found.into_iter().zip(masks.chain(std::iter::repeat(None)));
        let prediction = Prediction {
            size,
            objects: objects
                .map(|(PlacedDetection { detection, .. }, mask)| DetectedObject { detection, mask })
                .collect(),
            best_rejected,
        };
        let times = ModelTimes {
            detector: detector_time,
            segmenter: segmenter_time,
        };
        Ok((prediction, times))
    }

    fn detector(&self) -> Result<&Detector, PredictError> {
        self.detector.as_ref().ok_or(PredictError::NoDetector)
    }

    fn segmenter(&self) -> Result<&Segmenter, PredictError> {
        self.segmenter.as_ref().ok_or(PredictError::NoSegmenter)
    }

    /// The models' device: `cpu`, or `cuda:N` with its number.
    pub fn device(&self) -> String {
        device::name(&self.device)
    }
}

/// The detector's output for one window of an image.
fn queries(
    detector: &Detector,
    image: &RgbImage,
    window: Window,
    passes: &[CaptionPass],
) -> Result<Vec<Arc<Queries>>, DetectError> {
    let features = detector.encode_image(&window.pixels(image))?;
    let queries = passes.iter().map(|pass| {
        let text = detector.encode_text(&pass.caption)?;
        Ok(Arc::new(detector.run_pass(&features, &text)?))
    });
    queries.collect()
}

/// One mask per object, in the same order. Each object is segmented in the window that found it, so that a small object is
/// as large for the segmenter as it was for the detector.
fn segment(
    segmenter: &Segmenter,
    image: &RgbImage,
    found: &[PlacedDetection],
) -> Result<Vec<ScoredMask>, SegmentError> {
    let size = ImageSize::of(image);
    let mut masks = vec![None; found.len()];
    for (window, indices) in by_window(found) {
        let encoded = segmenter.encode(&window.pixels(image))?;
        let boxes: Vec<BoundingBox> = indices
            .iter()
            .map(|i| window.to_window(found[*i].detection.bounding_box))
            .collect();
        for (i, scored) in indices
            .into_iter()
            .zip(segmenter.segment_boxes(&encoded, &boxes)?)
        {
            masks[i] = Some(ScoredMask {
                mask: window.mask_to_image(&scored.mask, size),
                score: scored.score,
            });
        }
    }
    Ok(masks.into_iter().flatten().collect())
}

/// The windows that found something, each with the indices of its objects, in the order of their best objects.
fn by_window(found: &[PlacedDetection]) -> Vec<(Window, Vec<usize>)> {
    let mut windows: Vec<(Window, Vec<usize>)> = vec![];
    for (i, PlacedDetection { window, .. }) in found.iter().enumerate() {
        match windows.iter_mut().find(|(other, _)| other == window) {
            Some((_, indices)) => indices.push(i),
            None => windows.push((*window, vec![i])),
        }
    }
    windows
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
            detector: Some(
                Detector::load(&demo(Role::Detector).unwrap(), DType::F32, &device).unwrap(),
            ),
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
