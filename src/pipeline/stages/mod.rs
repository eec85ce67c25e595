//! Computes a prediction in stages. Each stage is scheduled as a step, and its result is cached under the stage's
//! inputs.
//!
//! | stage | depends on | in the trace |
//! |---|---|---|
//! | image features | the image | detector, `encode_image` |
//! | text features | a caption | detector, `bert` |
//! | queries | the image, a caption | detector, `encoder` and `decoder` |
//! | detections | queries, thresholds | nothing: no model |
//! | image embedding | the image | segmenter, `encode` |
//! | masks | the image, a box or points | segmenter, `mask_decoder` |
//!
//! The image embedding may also be on disk ([`super::warm`]). Then it is not computed, and the image is not decoded
//! for it.
//!
//! An image is searched in one or more windows (regions of interest, tiles). Each window is an image of its own for all
//! stages: what is said above about the image holds for every window.
//!
//! So a changed threshold needs no model except the mask decoder for new boxes. Another prompt needs neither the
//! detector's backbone nor the segmenter's image encoder.

mod detector;
mod device_results;
mod segmenter;
mod step;
mod view;

use std::sync::Arc;
use std::time::Duration;

use self::device_results::{DeviceResults, ModelResults};
use self::segmenter::PromptKey;
pub(in crate::pipeline) use self::view::View;
use self::view::ViewKey;
use super::handle::{ModelsHandle, ModelsUnavailable};
use super::query::WindowQueries;
use super::scheduler::{Scheduler, StepError, Urgency};
use super::timings::Timings;
use super::warm::WarmEmbeddings;
use super::{DetectedObject, Models, PlacedDetection, PredictError, Prediction, Query, by_window};
use crate::detector::{DetectError, ImageFeatures, Queries, TextFeatures};
use crate::geometry::BoundingBox;
use crate::media::{MediaError, TaskImage};
use crate::segmenter::{EncodedImage, LowResMask, ScoredMask, SegmentError};
use crate::store::{MemoryCache, Usage};

/// Why a stage has no result.
#[derive(Debug, thiserror::Error)]
pub enum StageError {
    /// The models are not available.
    #[error(transparent)]
    ModelsUnavailable(#[from] ModelsUnavailable),
    /// The image cannot be loaded.
    #[error(transparent)]
    Media(#[from] MediaError),
    /// A model failed.
    #[error(transparent)]
    Predict(#[from] PredictError),
    /// The device has no memory left, even without cached results and with the smallest batch.
    #[error(
        "the device has too little free memory for this request: try again later, or set a smaller DETECTOR_SIZE, smaller models or PRECISION=f16 ({0})"
    )]
    DeviceMemory(String),
    /// The step did not complete.
    #[error(transparent)]
    Step(#[from] StepError),
}

impl From<DetectError> for StageError {
    fn from(error: DetectError) -> Self {
        Self::Predict(error.into())
    }
}

impl From<SegmentError> for StageError {
    fn from(error: SegmentError) -> Self {
        Self::Predict(error.into())
    }
}

/// A stage's error; all requests that wait for the same stage share it.
pub type SharedStageError = Arc<StageError>;

/// The stages and their caches; clones share them.
#[derive(Debug, Clone)]
pub struct Stages {
    scheduler: Scheduler,
    models: ModelsHandle,
    features: MemoryCache<ViewKey, ImageFeatures>,
    texts: MemoryCache<Vec<u32>, TextFeatures>,
    queries: MemoryCache<(ViewKey, Vec<u32>), Arc<Queries>>,
    embeddings: MemoryCache<ViewKey, EncodedImage>,
    device_results: DeviceResults,
    warm: Option<WarmEmbeddings>,
    masks: MemoryCache<(ViewKey, PromptKey), Arc<ScoredMask>>,
    /// Masks of objects that are marked click by click, before they are scaled.
    refined: MemoryCache<(ViewKey, PromptKey), Arc<LowResMask>>,
}

/// The request that needs a stage.
#[derive(Debug, Clone, Copy)]
pub struct StageRequest<'a> {
    /// The urgency of the request.
    pub urgency: Urgency,
    /// The timings of the request.
    pub timings: &'a Timings,
}

/// Cached results that nobody used for this time are dropped. They depend only on their inputs, so they never become
/// stale.
const UNUSED: Duration = Duration::from_secs(6 * 3600);

/// The stages' share of the cache memory, in percent; decoded images get the rest.
pub const STAGES_PERCENT: u64 = 95;

impl Stages {
    /// Creates the stages. Results of up to [`STAGES_PERCENT`] percent of `bytes` are cached in memory. Image
    /// embeddings are also cached on disk if `warm` is given.
    pub fn new(
        scheduler: Scheduler,
        models: ModelsHandle,
        bytes: u64,
        warm: Option<WarmEmbeddings>,
    ) -> Self {
        Self::sharing(scheduler, DeviceResults::default(), models, bytes, warm)
    }

    /// Creates the stages of further models on the same device, without image embeddings on disk. Their steps are scheduled
    /// together, and if the device's memory is full, the cached results of all of them are dropped.
    pub fn beside(other: &Self, models: ModelsHandle, bytes: u64) -> Self {
        let (scheduler, results) = (other.scheduler.clone(), other.device_results.clone());
        Self::sharing(scheduler, results, models, bytes, None)
    }

    fn sharing(
        scheduler: Scheduler,
        device_results: DeviceResults,
        models: ModelsHandle,
        bytes: u64,
        warm: Option<WarmEmbeddings>,
    ) -> Self {
        let share = |percent: u64| bytes / 100 * percent;
        let features = MemoryCache::new(share(40), UNUSED, ImageFeatures::bytes);
        let texts = MemoryCache::new(share(3), UNUSED, TextFeatures::bytes);
        let embeddings = MemoryCache::new(share(32), UNUSED, EncodedImage::bytes);
        device_results.add(ModelResults {
            features: features.clone(),
            texts: texts.clone(),
            embeddings: embeddings.clone(),
        });
        Self {
            scheduler,
            models,
            features,
            texts,
            queries: MemoryCache::new(share(10), UNUSED, |queries: &Arc<Queries>| queries.bytes()),
            embeddings,
            device_results,
            warm,
            refined: MemoryCache::new(share(2), UNUSED, |mask: &Arc<LowResMask>| mask.bytes()),
            masks: MemoryCache::new(share(8), UNUSED, |mask: &Arc<ScoredMask>| mask.bytes()),
        }
    }

    /// The models and their loading state.
    pub fn models_handle(&self) -> &ModelsHandle {
        &self.models
    }

    /// The scheduler of the steps.
    pub fn scheduler(&self) -> &Scheduler {
        &self.scheduler
    }

    /// Removes expired results from the caches.
    pub async fn tidy(&self) {
        self.features.run_maintenance().await;
        self.texts.run_maintenance().await;
        self.queries.run_maintenance().await;
        self.embeddings.run_maintenance().await;
        self.masks.run_maintenance().await;
        self.refined.run_maintenance().await;
    }

    /// The usage of each stage's cache.
    pub fn usage(&self) -> impl Iterator<Item = (&'static str, Usage)> {
        let in_memory = [
            ("image_features", self.features.usage()),
            ("text_features", self.texts.usage()),
            ("queries", self.queries.usage()),
            ("image_embeddings", self.embeddings.usage()),
            ("masks", self.masks.usage()),
            ("refined_masks", self.refined.usage()),
        ];
        let on_disk = self.warm.as_ref().map(WarmEmbeddings::usage);
        in_memory
            .into_iter()
            .chain(on_disk.map(|usage| ("warm_embeddings", usage)))
    }

    /// The image embeddings on disk; `None` if the settings disable them.
    pub fn warm_embeddings(&self) -> Option<&WarmEmbeddings> {
        self.warm.as_ref()
    }

    /// Detects and segments the objects of a query.
    ///
    /// # Errors
    /// See [`StageError`].
    pub async fn predict(
        &self,
        image: &TaskImage<'_>,
        query: &Query,
        request: StageRequest<'_>,
    ) -> Result<Prediction, SharedStageError> {
        let models = self.models().await?;
        let passes = self.passes(&models, query).await?;
        let mut windows = vec![];
        let detector = models.detector().map_err(StageError::from)?;
        for searched in query.windows(image.size, detector) {
            let view = View {
                image,
                window: searched.window,
            };
            let mut queries = vec![];
            for pass in &passes {
                queries.push(self.queries(&models, view, pass, request).await?);
            }
            windows.push(WindowQueries { searched, queries });
        }
        let (found, best_rejected) = {
            let query = query.clone();
            off_thread(move || query.objects(&passes, &windows)).await?
        };
        let mut masks = vec![None; found.len()];
        if models.segmenter.is_some() && query.with_masks {
            // each object is segmented in the window that found it, as in `Models::predict`
            for (window, indices) in by_window(&found) {
                let boxes = indices.iter().map(|i| found[*i].detection.bounding_box);
                let boxes: Vec<BoundingBox> = boxes.map(|b| window.to_window(b)).collect();
                let view = View { image, window };
                let of_window = self.masks(&models, view, &boxes, request).await?;
                for (i, mask) in indices.into_iter().zip(of_window) {
                    masks[i] = Some(mask);
                }
            }
        }
        let objects = found.into_iter().zip(masks);
        Ok(Prediction {
            size: image.size,
            objects: objects
                .map(|(PlacedDetection { detection, .. }, mask)| DetectedObject { detection, mask })
                .collect(),
            best_rejected,
        })
    }

    pub(super) async fn models(&self) -> Result<Arc<Models>, SharedStageError> {
        Ok(self.models.get().await.map_err(StageError::from)?)
    }
}

/// Runs CPU-heavy work that is not the models' on a blocking thread.
///
/// # Errors
/// If it panics.
pub async fn off_thread<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, StageError> {
    // its log lines belong to the request's span
    let span = tracing::Span::current();
    let done = tokio::task::spawn_blocking(move || span.in_scope(work)).await;
    done.map_err(|_| StageError::Step(StepError::Panicked))
}
